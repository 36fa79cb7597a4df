// Any bytes as a zstd stream, and what comes out of its frames one by one: the same. The stream is cut into
// pieces at two lengths, which must not matter.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "layer/internal/zstd_codec.h"

namespace {

using lazyblob::layer::internal::DecodeZstdFrames;
using lazyblob::layer::internal::DecompressPart;
using lazyblob::layer::internal::ZstdDecoder;

constexpr size_t kMaxOutput = 4 << 20;
constexpr uint64_t kMaxWindow = 8 << 20;

void Require(bool condition) {
  if (!condition) __builtin_trap();
}

struct Decoded {
  bool whole = false;
  std::vector<uint8_t> data;
  std::vector<std::pair<uint64_t, uint64_t>> frames;  // start in the blob, and in the data
};

Decoded Stream(absl::Span<const uint8_t> blob, size_t step) {
  ZstdDecoder decoder(kMaxWindow);
  Decoded out;
  uint64_t blob_at = 0, data_at = 0;
  absl::Status status;
  for (size_t at = 0; at < blob.size() && status.ok(); at += step) {
    const absl::Span<const uint8_t> from = blob.subspan(at, step);
    const std::vector<uint8_t> piece(from.begin(), from.end());  // alone in memory
    status = decoder.Feed(
        piece,
        [&](absl::Span<const uint8_t> bytes) {
          if (out.data.size() + bytes.size() > kMaxOutput) return absl::ResourceExhaustedError("enough");
          out.data.insert(out.data.end(), bytes.begin(), bytes.end());
          return absl::OkStatus();
        },
        [&](uint64_t end) {
          Require(end > blob_at && end <= blob.size());
          out.frames.emplace_back(std::exchange(blob_at, end), std::exchange(data_at, out.data.size()));
        });
  }
  out.whole = status.ok() && decoder.Finish().ok();
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::Span<const uint8_t> blob(data, size);
  const Decoded decoded = Stream(blob, 97);
  const Decoded at_once = Stream(blob, std::max<size_t>(size, 1));
  Require(decoded.whole == at_once.whole);
  std::vector<uint8_t> part(std::min<size_t>(size, 1) * 4096);
  (void)DecompressPart(blob, absl::MakeSpan(part));
  if (!decoded.whole) return 0;
  Require(decoded.data == at_once.data && decoded.frames == at_once.frames);
  for (size_t i = 0; i < std::min<size_t>(decoded.frames.size(), 4); ++i) {
    const auto& [blob_at, data_at] = decoded.frames[i];
    const uint64_t rest = decoded.data.size() - data_at;
    const uint64_t skip = rest / 3;
    std::vector<uint8_t> out(rest - skip);
    Require(DecodeZstdFrames(blob.subspan(blob_at), skip, absl::MakeSpan(out)).ok());
    Require(std::equal(out.begin(), out.end(), decoded.data.end() - static_cast<ptrdiff_t>(out.size())));
  }
  return 0;
}
