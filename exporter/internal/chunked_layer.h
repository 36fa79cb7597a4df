#pragma once

// The two layer formats in which files can be fetched alone: the contents of every file are gzip members or
// zstd frames of their own, cut into chunks, and a table of contents stands behind them. One thread at a
// time.

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/digest.h"
#include "exporter/internal/encoder.h"
#include "exporter/internal/tar_split.h"
#include "exporter/internal/toc_text.h"
#include "layer/entry.h"

namespace lazyblob::exporter::internal {

class ChunkedLayer {
 public:
  // `tar_hasher` gets what the writer adds to the tar; the caller gives it the rest.
  static absl::StatusOr<std::unique_ptr<ChunkedLayer>> Create(TocText::Dialect dialect, int level,
                                                              uint64_t chunk_size, BlobOutput* output,
                                                              base::Hasher* tar_hasher);

  // An entry whose header ends just before `header_end` in the tar; before Take gets bytes from there on.
  // InvalidArgument: the format cannot hold it (not named: the caller does).
  absl::Status Announce(layer::Entry entry, uint64_t header_end);
  // The next bytes of the tar.
  absl::Status Take(absl::Span<const uint8_t> bytes);

  struct Result {
    std::map<std::string, std::string> annotations;
    uint64_t added_tar_bytes = 0;
  };
  // Table of contents and footer.
  absl::StatusOr<Result> Finish();

 private:
  struct Announced {
    layer::Entry entry;
    uint64_t header_end = 0;
  };
  ChunkedLayer(TocText::Dialect dialect, uint64_t chunk_size, BlobOutput* output, base::Hasher* tar_hasher)
      : dialect_(dialect), chunk_size_(chunk_size), output_(output), tar_hasher_(tar_hasher), toc_(dialect) {}

  absl::Status TakeRaw(absl::Span<const uint8_t> bytes);
  absl::Status TakeContents(absl::Span<const uint8_t> bytes);
  absl::Status BeginEntry();
  absl::Status BeginChunk();
  void EndChunk();
  absl::Status EndFile();
  absl::StatusOr<Result> FinishEstargz();
  absl::StatusOr<Result> FinishZstdChunked();
  absl::Status WriteSkippable(absl::string_view bytes);

  const TocText::Dialect dialect_;
  const uint64_t chunk_size_;
  BlobOutput* const output_;
  base::Hasher* const tar_hasher_;
  std::unique_ptr<Encoder> encoder_;
  std::unique_ptr<TarSplit> split_;  // of zstd:chunked
  TocText toc_;
  std::deque<Announced> announced_;
  uint64_t position_ = 0;  // in the tar

  // The file whose contents are coming.
  layer::Entry file_;
  uint64_t file_left_ = 0;
  base::Hasher file_hasher_;
  std::vector<TocChunk> chunks_;
  uint64_t chunk_left_ = 0;
  base::Hasher chunk_hasher_;
  bool chunk_zeros_ = false;
};

}  // namespace lazyblob::exporter::internal
