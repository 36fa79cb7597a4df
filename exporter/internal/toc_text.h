#pragma once

// The JSON of a table of contents as eStargz and zstd:chunked have it, made entry by entry. Formats:
// stargz-snapshotter docs/estargz.md; containers/storage's zstd:chunked. docs/LAYER_WRITING.md says which
// fields stand when. One thread at a time.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/digest.h"
#include "layer/entry.h"

namespace lazyblob::exporter::internal {

struct TocChunk {
  uint64_t blob_offset = 0;
  uint64_t file_offset = 0;
  uint64_t size = 0;
  bool zeros = false;
  base::Digest digest;
};

class TocText {
 public:
  enum class Dialect : uint8_t { kEstargz, kZstdChunked };
  explicit TocText(Dialect dialect) : dialect_(dialect) {}

  // InvalidArgument: a name or link target that is not UTF-8, which JSON cannot hold.
  static absl::Status Check(const layer::Entry& entry);
  // A checked entry; `digest` of a file's contents and their `chunks`, in order; none for all else.
  // `blob_end` is where the last chunk ends.
  void Add(const layer::Entry& entry, const base::Digest& digest, const std::vector<TocChunk>& chunks,
           uint64_t blob_end);
  // The whole text; `tar_split` may be empty. Once.
  std::string Finish(const base::Digest& tar_split);

 private:
  void AppendNumber(const char* key, uint64_t value);  // not when 0
  void AppendText(const char* key, absl::string_view value);
  void AppendMetadata(const layer::Entry& entry);
  void AppendChunk(const TocChunk& chunk, bool several);

  const Dialect dialect_;
  std::string text_ = R"({"version":1,"entries":[)";
  bool first_ = true;
};

}  // namespace lazyblob::exporter::internal
