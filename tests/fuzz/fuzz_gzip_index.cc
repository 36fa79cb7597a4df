// First byte even: the rest is a gzip stream; what its checkpoints lead to must be what was streamed. Odd:
// the rest is an index file (its checksum is not looked at); whatever chunks it claims, decoding them stays
// in bounds.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "layer/internal/gzip_codec.h"
#include "layer/internal/index_tables.h"
#include "layer/internal/zstd_codec.h"

namespace {

using lazyblob::layer::Chunk;
using lazyblob::layer::internal::DecompressPart;
using lazyblob::layer::internal::GzipCheckpoint;
using lazyblob::layer::internal::GzipDecoder;
using lazyblob::layer::internal::IndexTables;
using lazyblob::layer::internal::InflateFromCheckpoint;

constexpr size_t kMaxOutput = 8 << 20;

void Require(bool condition) {
  if (!condition) __builtin_trap();
}

void StreamAndComeBack(absl::Span<const uint8_t> blob) {
  GzipDecoder decoder(1);
  std::vector<uint8_t> data;
  absl::Status status;
  for (size_t at = 0; at < blob.size() && status.ok(); at += 1021) {
    const absl::Span<const uint8_t> from = blob.subspan(at, 1021);
    const std::vector<uint8_t> piece(from.begin(), from.end());  // alone in memory
    status = decoder.Feed(
        piece,
        [&](absl::Span<const uint8_t> bytes) {
          if (data.size() + bytes.size() > kMaxOutput) return absl::ResourceExhaustedError("enough");
          data.insert(data.end(), bytes.begin(), bytes.end());
          return absl::OkStatus();
        },
        [](uint64_t, const GzipCheckpoint&) {});
  }
  if (!status.ok() || !decoder.Finish().ok()) return;
  for (const GzipCheckpoint& checkpoint : decoder.TakeCheckpoints()) {
    std::vector<uint8_t> window(checkpoint.window_size), out(data.size() - checkpoint.data_offset);
    if (!window.empty()) {
      const absl::Span<const uint8_t> part(reinterpret_cast<const uint8_t*>(checkpoint.window.data()),
                                           checkpoint.window.size());
      Require(DecompressPart(part, absl::MakeSpan(window)).ok());
    }
    Require(InflateFromCheckpoint(blob.subspan(checkpoint.bit_offset / 8), checkpoint.bit_offset % 8, window,
                                  0, absl::MakeSpan(out))
                .ok());
    Require(
        std::equal(out.begin(), out.end(), data.begin() + static_cast<ptrdiff_t>(checkpoint.data_offset)));
  }
}

void DecodeWhatItClaims(absl::Span<const uint8_t> bytes) {
  // Read in place: it must be aligned, as a mapping is.
  std::vector<uint64_t> aligned(bytes.size() / 8 + 1);
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(aligned.data()));
  const auto tables = IndexTables::Parse({reinterpret_cast<const uint8_t*>(aligned.data()), bytes.size()},
                                         /*check_digest=*/false);
  if (!tables.ok()) return;
  (void)tables->Info();
  const uint64_t count = std::min<uint64_t>(tables->chunks().size(), 8);
  for (uint64_t i = 0; i < count; ++i) {
    const Chunk chunk = tables->ChunkAt(i);
    Require(tables->FindChunk(chunk.data_offset) == i);
    if (chunk.blob_size > kMaxOutput || chunk.codec_argument > kMaxOutput) continue;
    std::vector<uint8_t> blob(chunk.blob_size, 0x1f), out(chunk.data_size);
    (void)tables->Decode(i, blob, absl::MakeSpan(out));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::Span<const uint8_t> rest(data + 1, size - 1);
  if (data[0] % 2 == 0) {
    StreamAndComeBack(rest);
  } else {
    DecodeWhatItClaims(rest);
  }
  return 0;
}
