#include "layer/internal/zstd_codec.h"

#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "layer/internal/index_writer.h"

namespace lazyblob::layer::internal {
namespace {

using Bytes = absl::Span<const uint8_t>;

constexpr size_t kOutputBytes = 256 << 10;
constexpr size_t kScratchBytes = 64 << 10;
constexpr int kPartLevel = 3;

ZstdContext NewContext(uint64_t max_window) {
  ZstdContext context(ZSTD_createDCtx());
  const auto log =
      static_cast<int>(std::bit_width(std::clamp<uint64_t>(max_window, 1 << 10, kMaxZstdWindow))) - 1;
  if (context != nullptr) ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, log);
  return context;
}

}  // namespace

void FreeZstd::operator()(ZSTD_DCtx_s* context) const { ZSTD_freeDCtx(context); }

ZstdDecoder::ZstdDecoder(uint64_t max_window)
    : max_window_(max_window), context_(NewContext(max_window)), buffer_(kOutputBytes) {}

absl::Status ZstdDecoder::Feed(Bytes bytes, DataSink data, FrameSink frame) {
  if (context_ == nullptr) return absl::ResourceExhaustedError("no memory for zstd");
  bool may_hold_output = false;
  while (!bytes.empty() || may_hold_output) {
    ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
    ZSTD_outBuffer out{buffer_.data(), buffer_.size(), 0};
    const size_t result = ZSTD_decompressStream(context_.get(), &out, &in);
    if (ZSTD_isError(result) != 0) {
      if (ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation) {
        return absl::ResourceExhaustedError("no memory for zstd");
      }
      window_too_large_ = ZSTD_getErrorCode(result) == ZSTD_error_frameParameter_windowTooLarge;
      const std::string hint =
          window_too_large_ ? absl::StrCat(" (the limit is ", max_window_ >> 20, " MiB)") : "";
      return absl::InvalidArgumentError(
          absl::StrCat("zstd stream, near byte ", blob_offset_, ": ", ZSTD_getErrorName(result), hint));
    }
    bytes.remove_prefix(in.pos);
    blob_offset_ += in.pos;
    if (out.pos > 0) RETURN_IF_ERROR(data(Bytes(buffer_.data(), out.pos)));
    const bool was_inside = inside_frame_ || in.pos > 0;
    inside_frame_ = result != 0;
    if (was_inside && !inside_frame_) frame(blob_offset_);
    if (in.pos == 0 && out.pos == 0 && !bytes.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("zstd stream, near byte ", blob_offset_, ": no progress"));
    }
    may_hold_output = inside_frame_ && out.pos == out.size;
  }
  return absl::OkStatus();
}

absl::Status ZstdDecoder::Finish() const {
  if (blob_offset_ == 0) return absl::InvalidArgumentError("zstd stream is empty");
  if (inside_frame_) {
    return absl::InvalidArgumentError(
        absl::StrCat("zstd stream ends inside a frame, at byte ", blob_offset_));
  }
  return absl::OkStatus();
}

absl::Status DecodeZstdFrames(Bytes blob, uint64_t skip, absl::Span<uint8_t> out) {
  const absl::Status damaged = absl::DataLossError("zstd data cannot be decoded");
  const ZstdContext context = NewContext(kMaxZstdWindow);
  if (context == nullptr) return absl::ResourceExhaustedError("no memory for zstd");
  std::vector<uint8_t> scratch(std::min<uint64_t>(skip, kScratchBytes));
  ZSTD_inBuffer in{blob.data(), blob.size(), 0};
  while (!out.empty()) {
    const absl::Span<uint8_t> room =
        skip > 0 ? absl::MakeSpan(scratch).first(std::min<uint64_t>(skip, scratch.size())) : out;
    ZSTD_outBuffer target{room.data(), room.size(), 0};
    const size_t before = in.pos;
    const size_t result = ZSTD_decompressStream(context.get(), &target, &in);
    if (ZSTD_isError(result) != 0 || (target.pos == 0 && in.pos == before)) return damaged;
    if (skip > 0) {
      skip -= target.pos;
    } else {
      out.remove_prefix(target.pos);
    }
  }
  return absl::OkStatus();
}

std::string CompressPart(Bytes bytes) {
  std::string out(ZSTD_compressBound(bytes.size()), '\0');
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, kPartLevel);
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  const size_t size = ZSTD_compress2(context, out.data(), out.size(), bytes.data(), bytes.size());
  ZSTD_freeCCtx(context);
  // The only error left is want of memory; an empty part is then refused when the index is written.
  out.resize(ZSTD_isError(size) != 0 ? 0 : size);
  return out;
}

absl::Status DecompressPart(Bytes part, absl::Span<uint8_t> out) {
  const ZstdContext context = NewContext(kMaxZstdWindow);
  if (context == nullptr) return absl::ResourceExhaustedError("no memory for zstd");
  const size_t size = ZSTD_decompressDCtx(context.get(), out.data(), out.size(), part.data(), part.size());
  if (ZSTD_isError(size) != 0 || size != out.size()) {
    return absl::DataLossError("a part of the layer index is damaged");
  }
  return absl::OkStatus();
}

}  // namespace lazyblob::layer::internal
