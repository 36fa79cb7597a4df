#pragma once

// A tar stream, pushed in pieces of any size, becomes entries. Reads what Go's archive/tar reads (containerd
// and umoci unpack with it) and refuses what containerd refuses: v7, ustar, star, PAX, GNU long names,
// base-256, sparse files (old GNU; PAX 0.0, 0.1, 1.0). Global PAX headers are checked but have no effect, as
// with containerd. Two zero blocks, or the end of the stream at a block boundary, end the archive; what
// follows them is ignored. One thread at a time.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "layer/entry.h"
#include "layer/internal/index_writer.h"
#include "layer/internal/tar_header.h"

namespace lazyblob::layer::internal {

class TarReader {
 public:
  // Gets each entry before the bytes of its file come. Extents are offsets in the tar stream.
  using EntrySink = absl::FunctionRef<absl::Status(Entry)>;
  // Padding after a member's bytes that is not zero, within the bytes just fed.
  using PaddingSink = absl::FunctionRef<void(const ScrubRange&)>;

  // InvalidArgument names the entry, or the offset of its header. The reader is done after an error.
  absl::Status Feed(absl::Span<const uint8_t> bytes, EntrySink on_entry, PaddingSink on_padding);
  // InvalidArgument when the stream ended inside an entry.
  absl::Status Finish() const;

  uint64_t offset() const { return offset_; }
  // Bytes from here on may be, or are, the end of the archive.
  uint64_t entries_end() const {
    if (state_ == State::kEnd) return archive_end_;
    if (state_ == State::kSecondZero) return offset_ - block_used_ - kTarBlockBytes;
    return state_ == State::kHeader ? offset_ - block_used_ : offset_;
  }

 private:
  enum class State {
    kHeader,      // a header block
    kSecondZero,  // the block after a zero block
    kSpecial,     // payload of an 'x', 'g', 'L' or 'K' header
    kOldSparse,   // extension blocks of an old GNU sparse header
    kSparseMap,   // sparse map 1.0, at the start of the data
    kData,        // bytes of a file
    kPadding,     // up to the next block
    kEnd,
  };

  // Copies into block_; true when it is full (and then block_used_ is 0 again).
  bool FillBlock(absl::Span<const uint8_t>* bytes);
  absl::Status TakeHeader(EntrySink on_entry);
  absl::Status TakeSpecial();
  absl::Status TakeEntryHeader(const TarHeader& header, EntrySink on_entry);
  absl::Status ApplyPax(TarHeader* header);
  absl::Status ApplyXattrs();
  absl::Status SetUpSparsePax(bool* map_in_data);
  absl::Status TakeSparseMapBlock(EntrySink on_entry);
  absl::Status EmitEntry(EntrySink on_entry);
  absl::Status SetExtents();
  void StartData(uint64_t bytes);
  void TakePadding(absl::Span<const uint8_t>* bytes, PaddingSink on_padding);
  absl::Status Bad(absl::string_view why) const;

  State state_ = State::kHeader;
  uint64_t offset_ = 0;         // of the next byte in the stream
  uint64_t header_offset_ = 0;  // of the header being read, for messages
  uint64_t archive_end_ = 0;    // in kEnd: where the first zero block starts
  uint8_t block_[kTarBlockBytes];
  size_t block_used_ = 0;

  // What special headers said about the entry to come.
  char special_type_ = 0;
  std::string special_;  // payload so far
  PaxRecords pax_;
  std::string long_name_;
  std::string long_link_;

  Entry entry_;  // being read
  bool sparse_ = false;
  std::vector<SparsePiece> pieces_;
  uint64_t old_sparse_bytes_ = 0;  // of extension blocks
  std::string sparse_map_;         // text of a 1.0 map so far
  uint64_t sparse_map_lines_ = 0;
  uint64_t stored_bytes_ = 0;  // of the entry, still to come when its data starts

  uint64_t remaining_ = 0;  // in kSpecial, kData, kPadding
  uint64_t padding_ = 0;    // after kSpecial, kData
};

}  // namespace lazyblob::layer::internal
