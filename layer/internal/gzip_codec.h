#pragma once

// gzip (RFC 1952) over ISA-L's inflate: a streaming decoder that leaves checkpoints behind, and decoding from
// one. Members follow each other without gaps; anything else after a member is an error, as in Go's
// compress/gzip.
//
// ISA-L has no way to stop at the end of a deflate block. It does stop at the end of the *last* block, and
// whether a block is the last one is a flag in its state, set when the block's header has been read. A
// decoder that wants to stop raises that flag in the middle of a block and puts things right when ISA-L has
// stopped.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "layer/internal/index_writer.h"

struct inflate_state;

namespace lazyblob::layer::internal {

// Length of the gzip member header at the start of `bytes`; nullopt: more bytes are needed. InvalidArgument
// when it is none. Name, comment and extra field together are limited to 256 KiB.
absl::StatusOr<std::optional<size_t>> ParseGzipHeader(absl::Span<const uint8_t> bytes);

// One thread at a time; done after an error.
class GzipDecoder {
 public:
  using DataSink = absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)>;
  // A new checkpoint, number `checkpoint`: all data before it has been given out, none after it.
  using CheckpointSink = absl::FunctionRef<void(uint64_t checkpoint, const GzipCheckpoint&)>;

  // A checkpoint at the first block boundary after every `spacing` bytes of output. The distance doubles (up
  // to 8 MiB) each time `checkpoints_per_spacing` have been made, which bounds the memory they take.
  explicit GzipDecoder(uint64_t spacing, uint64_t checkpoints_per_spacing = 8192);
  ~GzipDecoder();

  // InvalidArgument: not gzip, or damaged.
  absl::Status Feed(absl::Span<const uint8_t> bytes, DataSink data, CheckpointSink checkpoint);
  // InvalidArgument when the stream ended inside a member, or had none.
  absl::Status Finish();
  // All checkpoints, windows included. After Finish.
  std::vector<GzipCheckpoint> TakeCheckpoints() { return std::move(checkpoints_); }

 private:
  enum class State { kHeader, kBody, kTrailer };
  class WindowCutter;

  absl::Status TakeHeader(absl::Span<const uint8_t>* bytes, CheckpointSink checkpoint);
  absl::Status TakeBody(absl::Span<const uint8_t>* bytes, DataSink data, CheckpointSink checkpoint);
  absl::Status TakeTrailer(absl::Span<const uint8_t>* bytes);
  void AddCheckpoint(uint64_t bit, CheckpointSink checkpoint);
  void EndMember();
  void FinishWindow();
  absl::Status Bad(absl::string_view why) const;

  State state_ = State::kHeader;
  uint64_t blob_offset_ = 0;  // of the next byte not yet taken
  uint64_t data_offset_ = 0;  // of the next byte to come out
  uint64_t members_ = 0;
  std::string pending_;  // bytes of a header or trailer so far

  std::unique_ptr<inflate_state> inflate_;
  std::vector<uint8_t> buffer_;  // history of the member (window_ bytes), then room for output
  size_t window_ = 0;
  uint32_t crc_ = 0;
  uint64_t member_bytes_ = 0;

  std::vector<GzipCheckpoint> checkpoints_;
  const uint64_t checkpoints_per_spacing_;
  uint64_t spacing_;
  bool stopping_ = false;                 // the flag is raised: ISA-L stops at the end of this block …
  bool last_block_ = false;               // … which really is the last one
  std::unique_ptr<WindowCutter> cutter_;  // of the newest checkpoint, while its window is not settled
};

// Decodes out.size() bytes, after skipping `skip`, from `blob`: raw deflate data from bit `bit` (0 … 7) of
// its first byte with `window` as history; a member that ends is followed by the next one. DataLoss when that
// fails.
absl::Status InflateFromCheckpoint(absl::Span<const uint8_t> blob, unsigned bit,
                                   absl::Span<const uint8_t> window, uint64_t skip, absl::Span<uint8_t> out);
// The same from the header of a gzip member.
absl::Status InflateMembers(absl::Span<const uint8_t> blob, uint64_t skip, absl::Span<uint8_t> out);

}  // namespace lazyblob::layer::internal
