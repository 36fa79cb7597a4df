#pragma once

// Making a layer index: from a stream of a plain layer's bytes, or from the table of contents of eStargz and
// zstd:chunked by a few range reads. Both write `index` and `meta.erofs` into a directory of the caller's.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "layer/layer_index.h"
#include "oci/descriptor.h"

namespace lazyblob::layer {

// How a layer will be read, decided from media type and annotations alone; no I/O.
// A TOC format only when the annotations name a TOC digest; two annotations that name different TOCs (or a
// TOC for another compression) are FailedPrecondition: not lazy, callers treat the layer as plain.
absl::StatusOr<Format> FormatOf(const oci::Descriptor& layer);
// The plain format of the layer, whatever its annotations say. InvalidArgument: not a layer media type.
absl::StatusOr<Format> PlainFormatOf(const oci::Descriptor& layer);

struct BuildLimits {
  uint64_t max_data_bytes = kMaxDataBytes;
  uint64_t max_entries = 2'000'000;
  uint64_t max_toc_bytes = 384 << 20;       // uncompressed
  uint64_t max_ratio = 2000;                // data bytes per blob byte beyond the first 64 MiB
  uint64_t checkpoint_spacing = 256 << 10;  // bytes of output between gzip checkpoints; size of tar chunks
  uint64_t max_zstd_window = 8 << 20;       // memory a zstd frame may ask for; at most 128 MiB
};

// Receives the data area in order of offset while a plain layer is streamed.
using DataSink = absl::FunctionRef<absl::Status(uint64_t data_offset, absl::Span<const uint8_t>)>;

// One pass over a plain layer: push bytes in order, then Finish. One thread at a time.
class StreamIndexer {
 public:
  virtual ~StreamIndexer() = default;
  // `format` is a plain one. `diff_id` empty: not checked. Every blob byte passes here exactly once.
  static absl::StatusOr<std::unique_ptr<StreamIndexer>> Create(Format format, const oci::Descriptor& layer,
                                                               const base::Digest& diff_id,
                                                               const BuildLimits& limits);
  // Decodes `blob_bytes` and gives what comes out to `data` (padding after tar members zeroed). DataLoss or
  // InvalidArgument name the entry or the offset.
  virtual absl::Status Feed(absl::Span<const uint8_t> blob_bytes, DataSink data) = 0;
  // All bytes are there: checks size, blob digest and diffID (DataLoss), then writes the index into
  // `directory`, which exists. Materialised parts of sparse files are given to `data` too.
  virtual absl::Status Finish(const std::string& directory, DataSink data) = 0;
};

// Random access to a blob for the TOC formats. Reads exactly out.size() bytes or fails.
using BlobReader = absl::FunctionRef<absl::Status(uint64_t blob_offset, absl::Span<uint8_t> out)>;
// Fetches the TOC blob of an eStargz layer whose footer says that its TOC lies in another image, whole;
// called only then. What it gives is not trusted: only the digest in the layer's own descriptor counts.
using ExternalToc = std::function<absl::StatusOr<std::string>()>;
// Reads footer and TOC, verifies the TOC's digest against the descriptor's annotation, checks every number in
// it and writes the index. InvalidArgument/DataLoss: the TOC lies or is damaged; FailedPrecondition: no
// usable TOC, which includes an external one that cannot be had (`external` empty or failing, other than by
// Cancelled or DeadlineExceeded) or is another one.
absl::Status IndexFromToc(Format format, const oci::Descriptor& layer, BlobReader read,
                          const BuildLimits& limits, const std::string& directory,
                          const ExternalToc& external = nullptr);
inline constexpr uint64_t kMaxCompressedTocBytes = 256 << 20;

}  // namespace lazyblob::layer
