#pragma once

// What the stream indexer makes of the decoded stream: chunks with their digests, and the parts of sparse
// files that must be materialised. One thread at a time.

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "base/digest.h"
#include "layer/entry.h"
#include "layer/internal/index_writer.h"
#include "layer/tree.h"

namespace lazyblob::layer::internal {

// Cuts the data area into chunks. A group is what one place in the blob decodes to (a checkpoint span, some
// frames); it has one chunk, or several when it is larger than a chunk may be.
class Chunker {
 public:
  Chunker(Codec codec, uint64_t max_chunk_bytes) : codec_(codec), max_chunk_bytes_(max_chunk_bytes) {}

  void Append(absl::Span<const uint8_t> bytes);
  // Data from here on comes from `blob_offset` and what follows it; `argument` is a kGzipCheckpoint chunk's.
  // Ends the group before, whose blob bytes end at `blob_end`.
  void StartGroup(uint64_t blob_end, uint64_t blob_offset, uint64_t argument);
  void Finish(uint64_t blob_end);

  uint64_t data_size() const { return data_size_; }
  // Data in the present group.
  uint64_t group_size() const { return data_size_ - group_data_; }
  // False when a group is so large that getting at its last chunk is no longer random access.
  bool random_access() const { return random_access_; }
  std::vector<Chunk>& chunks() { return chunks_; }

 private:
  void EndChunk();
  void EndGroup(uint64_t blob_end);

  const Codec codec_;
  const uint64_t max_chunk_bytes_;
  std::vector<Chunk> chunks_;
  uint64_t data_size_ = 0;
  uint64_t chunk_size_ = 0;  // of the open chunk, so far
  base::Hasher hasher_;
  size_t group_first_ = 0;   // its first chunk
  uint64_t group_data_ = 0;  // where it starts
  uint64_t group_blob_ = 0;
  uint64_t group_argument_ = 0;
  bool random_access_ = true;
};

// Files whose runs EROFS cannot map (extent_layout.h) get a copy at the end of the data area, in units of
// their chunk size, kept in the index itself: at most kMaxBytes of them in a layer.
class InlineStore {
 public:
  static constexpr uint64_t kMaxBytes = 256 << 20;

  // Replaces the entry's extents by ones whose data_offset counts from kBase; remembers which bytes of the
  // stream to copy. InvalidArgument when that is too much. Entries come in the order of their data.
  absl::Status Materialise(Entry* entry);
  // The stream's bytes, all of them, in order.
  void Append(uint64_t stream_offset, absl::Span<const uint8_t> bytes);
  // Ends the store: its first byte is at `data_offset` of the data area. Adds chunks, parts and gives the
  // data out.
  absl::Status Finish(uint64_t data_offset, IndexContents* contents,
                      absl::FunctionRef<absl::Status(uint64_t, absl::Span<const uint8_t>)> data);
  uint64_t size() const { return size_; }
  // Puts the final offsets into the tree.
  static void Relocate(uint64_t data_offset, Tree* tree);

  // Beyond every offset in a stream: a stream may not be longer.
  static constexpr uint64_t kBase = kMaxDataBytes - kMaxBytes;

 private:
  struct Copy {
    uint64_t stream_offset = 0;
    uint64_t length = 0;
    uint64_t position = 0;  // in the store
  };
  void WriteAt(uint64_t position, absl::Span<const uint8_t> bytes);
  void Seal();  // the open piece is complete

  std::deque<Copy> copies_;  // ascending
  uint64_t size_ = 0;        // promised
  std::vector<uint8_t> open_;
  struct Piece {
    std::string part;
    uint64_t size = 0;
    base::Sha256Bytes sha256{};
  };
  std::vector<Piece> pieces_;
};

}  // namespace lazyblob::layer::internal
