#pragma once

// zstd (RFC 8878): a streaming decoder that tells where frames end, decoding of some frames, and the small
// frames in which an index keeps windows and inline chunks.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

struct ZSTD_DCtx_s;

namespace lazyblob::layer::internal {

inline constexpr uint64_t kMaxZstdWindow = 128 << 20;  // what zstd's own tools accept at most

struct FreeZstd {
  void operator()(ZSTD_DCtx_s* context) const;
};
using ZstdContext = std::unique_ptr<ZSTD_DCtx_s, FreeZstd>;

// One thread at a time; done after an error.
class ZstdDecoder {
 public:
  using DataSink = absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)>;
  // A frame (also a skippable one) ended just before this blob offset; its data has been given out.
  using FrameSink = absl::FunctionRef<void(uint64_t blob_offset)>;

  // Frames that need more than `max_window` bytes of memory are refused.
  explicit ZstdDecoder(uint64_t max_window);

  // InvalidArgument: not zstd, damaged, or a window that is too large.
  absl::Status Feed(absl::Span<const uint8_t> bytes, DataSink data, FrameSink frame);
  // InvalidArgument when the stream ended inside a frame, or had none.
  absl::Status Finish() const;
  // Whether it is the window for which Feed has failed.
  bool window_too_large() const { return window_too_large_; }

 private:
  const uint64_t max_window_;
  ZstdContext context_;
  std::vector<uint8_t> buffer_;
  uint64_t blob_offset_ = 0;
  bool inside_frame_ = false;
  bool window_too_large_ = false;
};

// Decodes out.size() bytes, after skipping `skip`, from the frames at the start of `blob`. DataLoss.
absl::Status DecodeZstdFrames(absl::Span<const uint8_t> blob, uint64_t skip, absl::Span<uint8_t> out);

// Undoes CompressPart: `part` must hold exactly out.size() bytes. DataLoss.
absl::Status DecompressPart(absl::Span<const uint8_t> part, absl::Span<uint8_t> out);

}  // namespace lazyblob::layer::internal
