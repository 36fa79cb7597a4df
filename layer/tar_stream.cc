#include "layer/tar_stream.h"

#include <optional>
#include <utility>

#include "layer/internal/gzip_codec.h"
#include "layer/internal/tar_reader.h"
#include "layer/internal/zstd_codec.h"

namespace lazyblob::layer {
namespace {

constexpr uint64_t kNoCheckpoints = uint64_t{1} << 40;
static_assert(StreamDecoder::kMostZstdWindow == internal::kMaxZstdWindow);

}  // namespace

class TarFollower::Impl {
 public:
  internal::TarReader reader;
};

TarFollower::TarFollower() : impl_(std::make_unique<Impl>()) {}
TarFollower::~TarFollower() = default;

absl::Status TarFollower::Feed(absl::Span<const uint8_t> bytes, EntrySink on_entry) {
  internal::TarReader& reader = impl_->reader;
  return reader.Feed(
      bytes, [&](Entry entry) { return on_entry(std::move(entry), reader.offset()); },
      [](const internal::ScrubRange&) {});
}

absl::Status TarFollower::Finish() const { return impl_->reader.Finish(); }
uint64_t TarFollower::entries_end() const { return impl_->reader.entries_end(); }

class StreamDecoder::Impl {
 public:
  Impl(oci::Compression compression, uint64_t max_zstd_window) {
    if (compression == oci::Compression::kGzip) gzip.emplace(kNoCheckpoints);
    if (compression == oci::Compression::kZstd) zstd.emplace(max_zstd_window);
  }
  std::optional<internal::GzipDecoder> gzip;
  std::optional<internal::ZstdDecoder> zstd;
};

StreamDecoder::StreamDecoder(oci::Compression compression, uint64_t max_zstd_window)
    : impl_(std::make_unique<Impl>(compression, max_zstd_window)) {}
StreamDecoder::~StreamDecoder() = default;

absl::Status StreamDecoder::Feed(absl::Span<const uint8_t> bytes, DataSink data) {
  if (impl_->gzip) return impl_->gzip->Feed(bytes, data, [](uint64_t, const internal::GzipCheckpoint&) {});
  if (impl_->zstd) {
    const absl::Status status = impl_->zstd->Feed(bytes, data, [](uint64_t) {});
    return impl_->zstd->window_too_large() ? absl::ResourceExhaustedError(status.message()) : status;
  }
  return data(bytes);
}

absl::Status StreamDecoder::Finish() {
  if (impl_->gzip) return impl_->gzip->Finish();
  if (impl_->zstd) return impl_->zstd->Finish();
  return absl::OkStatus();
}

}  // namespace lazyblob::layer
