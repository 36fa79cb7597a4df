#pragma once

// From a tar stream to the blob of a layer, in one pass: compressed, hashed, given out in order. The same
// tar, options and library versions give the same bytes (gzip levels 1 to 3 also want the same kind of
// processor: docs/LAYER_WRITING.md). Memory: compressor state and, for the formats with a table of contents,
// the text of that table. One writer belongs to one thread at a time; any number of writers run side by side.
// Formats: OCI image-spec layer.md; stargz-snapshotter docs/estargz.md; containers/storage docs on
// zstd:chunked and tar-split.

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/cancel.h"
#include "base/digest.h"
#include "exporter/tar_writer.h"
#include "exporter/tree.h"
#include "oci/descriptor.h"

namespace lazyblob::exporter {

enum class LayerCompression : uint8_t { kNone, kGzip, kZstd, kEstargz, kZstdChunked };
// "none", "gzip", "zstd", "estargz", "zstdchunked"; InvalidArgument lists them.
absl::StatusOr<LayerCompression> ParseLayerCompression(absl::string_view name);
absl::string_view LayerCompressionName(LayerCompression compression);

struct LayerOptions {
  LayerCompression compression = LayerCompression::kGzip;
  // gzip and estargz: 1–9, 1–3 by ISA-L (several times faster, some larger), 4–9 by zlib; 0 is 6.
  // zstd and zstdchunked: 1–19; 0 is 3. Not for kNone.
  int level = 0;
  // Files are cut into chunks of this many bytes, each of which can be fetched alone. 4 KiB … 16 MiB.
  uint64_t chunk_size = 4 << 20;
  const base::CancelToken* cancel = nullptr;
};

struct LayerResult {
  base::Digest diff_id;  // of the tar inside the blob: eStargz adds its table of contents to it
  uint64_t tar_size = 0;
  base::Digest digest;
  uint64_t size = 0;
  LayerCompression compression = LayerCompression::kGzip;
  // What readers of the format need; containerd.io/uncompressed (the diffID) always.
  std::map<std::string, std::string> annotations;

  std::string MediaType(bool docker) const;
  // With media type and annotations.
  oci::Descriptor Descriptor(bool docker = false) const;
};

class LayerWriter {
 public:
  // `sink` gets the blob, in pieces of any size. InvalidArgument when an option is out of its range.
  static absl::StatusOr<std::unique_ptr<LayerWriter>> Create(const LayerOptions& options, ByteSink sink);
  ~LayerWriter();

  // The next bytes of the tar, which is read along: InvalidArgument names the entry that is damaged, or that
  // a table of contents cannot hold (a sparse file, a name that is not UTF-8, stargz.index.json). Cancelled.
  // Errors are sticky.
  absl::Status Write(absl::Span<const uint8_t> tar_bytes);
  // The tar is complete. Once.
  absl::StatusOr<LayerResult> Finish();

 private:
  class Impl;
  explicit LayerWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The whole way: source to blob. `tree` applies to directories; of a tar, `first` and `landmark` are
// InvalidArgument (its order is its own).
absl::StatusOr<LayerResult> WriteLayer(const Source& source, const TreeOptions& tree,
                                       const LayerOptions& options, ByteSink sink);

}  // namespace lazyblob::exporter
