#include "exporter/internal/encoder.h"

#include <isa-l/igzip_lib.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::exporter::internal {
namespace {

using Bytes = absl::Span<const uint8_t>;

constexpr size_t kOutputBytes = 128 << 10;
constexpr size_t kMaxInput = 1 << 30;  // at once; the libraries count in 32 bits
// What ISA-L makes of some bytes depends on the pieces in which it gets them: always the same, then.
constexpr size_t kIsalInput = 128 << 10;
constexpr int kLastIsalLevel = 3;
constexpr int kDefaultGzipLevel = 6;
constexpr int kDefaultZstdLevel = 3;
constexpr int kGzipWindow = 15 + 16;  // zlib's way to ask for a gzip header

absl::Status NoMemory() { return absl::ResourceExhaustedError("no memory for a compressor"); }

class IdentityEncoder final : public Encoder {
 public:
  explicit IdentityEncoder(BlobOutput* output) : output_(output) {}
  absl::Status Write(Bytes bytes) override { return output_->Write(bytes); }
  absl::Status EndFrame() override { return absl::OkStatus(); }

 private:
  BlobOutput* const output_;
};

class ZlibEncoder final : public Encoder {
 public:
  explicit ZlibEncoder(BlobOutput* output) : output_(output), buffer_(kOutputBytes) {}
  ~ZlibEncoder() override { ::deflateEnd(&stream_); }
  ZlibEncoder(const ZlibEncoder&) = delete;
  ZlibEncoder& operator=(const ZlibEncoder&) = delete;

  bool Init(int level) {
    return ::deflateInit2(&stream_, level, Z_DEFLATED, kGzipWindow, 8, Z_DEFAULT_STRATEGY) == Z_OK;
  }

  absl::Status Write(Bytes bytes) override {
    open_ = true;
    while (!bytes.empty()) {
      const Bytes piece = bytes.first(std::min(bytes.size(), kMaxInput));
      bytes.remove_prefix(piece.size());
      stream_.next_in = const_cast<uint8_t*>(piece.data());
      stream_.avail_in = static_cast<uInt>(piece.size());
      RETURN_IF_ERROR(Run(Z_NO_FLUSH));
    }
    return absl::OkStatus();
  }

  absl::Status EndFrame() override {
    if (!open_) return absl::OkStatus();
    open_ = false;
    RETURN_IF_ERROR(Run(Z_FINISH));
    return ::deflateReset(&stream_) == Z_OK ? absl::OkStatus() : absl::InternalError("deflateReset failed");
  }

 private:
  absl::Status Run(int flush) {
    do {
      stream_.next_out = buffer_.data();
      stream_.avail_out = static_cast<uInt>(buffer_.size());
      if (::deflate(&stream_, flush) == Z_STREAM_ERROR) return absl::InternalError("deflate failed");
      RETURN_IF_ERROR(output_->Write(Bytes(buffer_).first(buffer_.size() - stream_.avail_out)));
    } while (stream_.avail_out == 0);
    return absl::OkStatus();
  }

  BlobOutput* const output_;
  std::vector<uint8_t> buffer_;
  z_stream stream_{};
  bool open_ = false;
};

class IsalEncoder final : public Encoder {
 public:
  IsalEncoder(BlobOutput* output, int level)
      : output_(output),
        buffer_(kOutputBytes),
        level_(static_cast<uint32_t>(level)),
        level_buffer_(LevelBytes(level)),
        stream_(std::make_unique<isal_zstream>()) {
    input_.reserve(kIsalInput);
  }

  absl::Status Write(Bytes bytes) override {
    if (!open_) Open();
    while (!bytes.empty()) {
      if (input_.size() == kIsalInput) RETURN_IF_ERROR(Run());
      const Bytes piece = bytes.first(std::min(bytes.size(), kIsalInput - input_.size()));
      bytes.remove_prefix(piece.size());
      input_.insert(input_.end(), piece.begin(), piece.end());
    }
    return absl::OkStatus();
  }

  absl::Status EndFrame() override {
    if (!open_) return absl::OkStatus();
    open_ = false;
    stream_->end_of_stream = 1;
    return Run();
  }

 private:
  static size_t LevelBytes(int level) {
    return level == 1 ? ISAL_DEF_LVL1_DEFAULT : level == 2 ? ISAL_DEF_LVL2_DEFAULT : ISAL_DEF_LVL3_DEFAULT;
  }

  void Open() {
    open_ = true;
    ::isal_deflate_init(stream_.get());
    stream_->level = level_;
    stream_->level_buf = level_buffer_.data();
    stream_->level_buf_size = static_cast<uint32_t>(level_buffer_.size());
    stream_->gzip_flag = IGZIP_GZIP;
    stream_->flush = NO_FLUSH;
  }

  // Compresses what has been gathered.
  absl::Status Run() {
    stream_->next_in = input_.data();
    stream_->avail_in = static_cast<uint32_t>(input_.size());
    do {
      stream_->next_out = buffer_.data();
      stream_->avail_out = static_cast<uint32_t>(buffer_.size());
      if (::isal_deflate(stream_.get()) != COMP_OK) return absl::InternalError("isal_deflate failed");
      RETURN_IF_ERROR(output_->Write(Bytes(buffer_).first(buffer_.size() - stream_->avail_out)));
    } while (stream_->avail_out == 0 || stream_->avail_in > 0);
    input_.clear();
    return absl::OkStatus();
  }

  BlobOutput* const output_;
  std::vector<uint8_t> buffer_;
  const uint32_t level_;
  std::vector<uint8_t> level_buffer_;
  std::unique_ptr<isal_zstream> stream_;
  std::vector<uint8_t> input_;
  bool open_ = false;
};

struct FreeZstd {
  void operator()(ZSTD_CCtx* context) const { ::ZSTD_freeCCtx(context); }
};

class ZstdEncoder final : public Encoder {
 public:
  explicit ZstdEncoder(BlobOutput* output)
      : output_(output), buffer_(kOutputBytes), context_(::ZSTD_createCCtx()) {}

  bool Init(int level) {
    return context_ != nullptr &&
           ::ZSTD_isError(::ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_compressionLevel, level)) == 0 &&
           ::ZSTD_isError(::ZSTD_CCtx_setParameter(context_.get(), ZSTD_c_checksumFlag, 1)) == 0;
  }

  absl::Status Write(Bytes bytes) override {
    open_ = true;
    return Run(bytes, ZSTD_e_continue);
  }
  absl::Status EndFrame() override {
    if (!open_) return absl::OkStatus();
    open_ = false;
    return Run({}, ZSTD_e_end);
  }

 private:
  absl::Status Run(Bytes bytes, ZSTD_EndDirective how) {
    ZSTD_inBuffer in{bytes.data(), bytes.size(), 0};
    for (;;) {
      ZSTD_outBuffer out{buffer_.data(), buffer_.size(), 0};
      const size_t left = ::ZSTD_compressStream2(context_.get(), &out, &in, how);
      if (::ZSTD_isError(left) != 0) {
        return absl::InternalError(absl::StrCat("zstd: ", ::ZSTD_getErrorName(left)));
      }
      RETURN_IF_ERROR(output_->Write(Bytes(buffer_).first(out.pos)));
      if (how == ZSTD_e_end ? left == 0 : in.pos == in.size) return absl::OkStatus();
    }
  }

  BlobOutput* const output_;
  std::vector<uint8_t> buffer_;
  const std::unique_ptr<ZSTD_CCtx, FreeZstd> context_;
  bool open_ = false;
};

}  // namespace

absl::Status BlobOutput::Write(Bytes bytes) {
  if (bytes.empty()) return absl::OkStatus();
  hasher_.Update(bytes);
  size_ += bytes.size();
  return sink_(bytes);
}

absl::StatusOr<std::unique_ptr<Encoder>> Encoder::Create(Codec codec, int level, BlobOutput* output) {
  switch (codec) {
    case Codec::kIdentity:
      return std::make_unique<IdentityEncoder>(output);
    case Codec::kGzip: {
      if (level == 0) level = kDefaultGzipLevel;
      if (level <= kLastIsalLevel) return std::make_unique<IsalEncoder>(output, level);
      auto encoder = std::make_unique<ZlibEncoder>(output);
      if (!encoder->Init(level)) return NoMemory();
      return encoder;
    }
    case Codec::kZstd: {
      auto encoder = std::make_unique<ZstdEncoder>(output);
      if (!encoder->Init(level == 0 ? kDefaultZstdLevel : level)) return NoMemory();
      return encoder;
    }
  }
  return absl::InternalError("unknown codec");
}

}  // namespace lazyblob::exporter::internal
