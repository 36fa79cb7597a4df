#pragma once

// Reads a blob piecemeal for IndexFromToc with few requests: the first read, at the end of the blob, brings
// the tail in which small tables lie whole; later ones bring at least a block.

#include <cstdint>
#include <map>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"

namespace lazyblob::contentstore {

// Used by one thread.
class TocReader {
 public:
  // Reads exactly out.size() bytes from the source.
  using Fetch = absl::FunctionRef<absl::Status(uint64_t offset, absl::Span<uint8_t> out)>;

  TocReader(uint64_t blob_size, Fetch fetch);
  absl::Status Read(uint64_t offset, absl::Span<uint8_t> out);
  // The last error of the source, as opposed to one of the table.
  const absl::Status& source_status() const { return source_status_; }

 private:
  absl::Status Bring(uint64_t offset, uint64_t wanted);

  const uint64_t blob_size_;
  const Fetch fetch_;
  std::map<uint64_t, std::vector<uint8_t>> blocks_;  // by offset, not overlapping
  uint64_t held_ = 0;
  absl::Status source_status_;
};

}  // namespace lazyblob::contentstore
