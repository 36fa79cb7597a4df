#include "layer/internal/gzip_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "layer/internal/zstd_codec.h"
#include "tests/layer/index_harness.h"
#include "tests/support/layer_maker.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::layer::internal {
namespace {

using support::Gzip;
using support::RandomBytes;
using support::TextBytes;
using ::testing::HasSubstr;

struct Decoded {
  absl::Status status;
  std::string data;
  std::vector<GzipCheckpoint> checkpoints;
};

Decoded Decode(absl::string_view blob, uint64_t spacing, size_t step = 1 << 20) {
  Decoded out;
  GzipDecoder decoder(spacing);
  uint64_t announced = 0;
  for (size_t at = 0; at < blob.size() && out.status.ok(); at += step) {
    out.status = decoder.Feed(
        BytesOf(blob.substr(at, step)),
        [&](absl::Span<const uint8_t> bytes) {
          out.data.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
          return absl::OkStatus();
        },
        [&](uint64_t number, const GzipCheckpoint& checkpoint) {
          EXPECT_EQ(number, announced++);
          EXPECT_EQ(checkpoint.data_offset, out.data.size());
        });
  }
  if (out.status.ok()) out.status = decoder.Finish();
  out.checkpoints = decoder.TakeCheckpoints();
  return out;
}

std::string Window(const GzipCheckpoint& checkpoint) {
  std::string window(checkpoint.window_size, '\0');
  if (!window.empty()) {
    EXPECT_TRUE(
        DecompressPart(BytesOf(checkpoint.window), {reinterpret_cast<uint8_t*>(window.data()), window.size()})
            .ok());
  }
  return window;
}

// Decodes from a checkpoint to the end of the data.
void ExpectRestOf(absl::string_view blob, const Decoded& decoded, const GzipCheckpoint& checkpoint) {
  std::string out(decoded.data.size() - checkpoint.data_offset, '\0');
  const std::string window = Window(checkpoint);
  const absl::Status status =
      InflateFromCheckpoint(BytesOf(blob.substr(checkpoint.bit_offset / 8)), checkpoint.bit_offset % 8,
                            BytesOf(window), 0, {reinterpret_cast<uint8_t*>(out.data()), out.size()});
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_TRUE(out == absl::string_view(decoded.data).substr(checkpoint.data_offset));
}

// A gzip member whose header has every optional part.
std::string FullHeader() {
  std::string header("\x1f\x8b\x08\x1e\0\0\0\0\0\x03", 10);  // FHCRC, FEXTRA, FNAME, FCOMMENT
  header += std::string("\x04\0abcd", 6) + std::string("name\0", 5) + std::string("comment\0", 8);
  uint32_t crc = 0xffffffff;
  for (const char c : header) {
    crc ^= static_cast<uint8_t>(c);
    for (int i = 0; i < 8; ++i) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
  }
  crc = ~crc;
  header.push_back(static_cast<char>(crc & 0xff));
  header.push_back(static_cast<char>(crc >> 8 & 0xff));
  return header;
}

TEST(GzipHeader, NeedsMoreAtEveryLength) {
  const std::string header = FullHeader();
  for (size_t size = 0; size < header.size(); ++size) {
    const auto parsed = ParseGzipHeader(BytesOf(header.substr(0, size)));
    ASSERT_TRUE(parsed.ok()) << size;
    EXPECT_FALSE(parsed->has_value()) << size;
  }
  const auto parsed = ParseGzipHeader(BytesOf(header + "more"));
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(*parsed, header.size());
}

TEST(GzipHeader, Wrong) {
  for (const size_t at : {0, 1, 2}) {
    std::string header = FullHeader();
    ++header[at];
    EXPECT_FALSE(ParseGzipHeader(BytesOf(header)).ok());
    EXPECT_FALSE(ParseGzipHeader(BytesOf(header.substr(0, at + 1))).ok());  // as early as can be known
  }
  std::string header = FullHeader();
  header[12] = 'z';
  EXPECT_THAT(std::string(ParseGzipHeader(BytesOf(header)).status().message()), HasSubstr("checksum"));
  header = FullHeader();
  header[3] = static_cast<char>(header[3] | 0x20);
  EXPECT_FALSE(ParseGzipHeader(BytesOf(header)).ok());  // RFC 1952: reserved, must be zero
  const std::string endless = std::string("\x1f\x8b\x08\x08\0\0\0\0\0\x03", 10) + std::string(300 << 10, 'n');
  EXPECT_THAT(std::string(ParseGzipHeader(BytesOf(endless)).status().message()), HasSubstr("too long"));
}

TEST(GzipDecoder, HeadersWithEverything) {
  const std::string data = TextBytes(100'000);
  const std::string plain = Gzip(data);
  const std::string blob = FullHeader() + plain.substr(10) + FullHeader() + plain.substr(10);
  for (const size_t step : {size_t{1} << 20, size_t{1}}) {
    const Decoded decoded = Decode(blob, 32 << 10, step);
    ASSERT_TRUE(decoded.status.ok()) << decoded.status;
    EXPECT_EQ(decoded.data, data + data);
  }
}

TEST(GzipDecoder, EveryCheckpointLeadsToTheRest) {
  const std::string data =
      TextBytes(700'000) + RandomBytes(600'000, 3) + std::string(400'000, '\0') + TextBytes(300'000, 4);
  for (const int level : {0, 1, 6, 9}) {
    const std::string blob = Gzip(data, level);
    for (const size_t step : {size_t{1} << 20, size_t{333}}) {
      const Decoded decoded = Decode(blob, 100'000, step);
      ASSERT_TRUE(decoded.status.ok()) << decoded.status;
      ASSERT_TRUE(decoded.data == data);
      EXPECT_GT(decoded.checkpoints.size(), 5u);
      for (const GzipCheckpoint& checkpoint : decoded.checkpoints) ExpectRestOf(blob, decoded, checkpoint);
    }
  }
}

TEST(GzipDecoder, WindowsAreCutToWhatIsReferredTo) {
  // Noise is stored: nothing after a checkpoint refers to what came before.
  const Decoded noise = Decode(Gzip(RandomBytes(1 << 20, 8)), 200'000);
  ASSERT_GT(noise.checkpoints.size(), 3u);
  for (const GzipCheckpoint& checkpoint : noise.checkpoints) EXPECT_LT(checkpoint.window_size, 16u << 10);

  // Text refers to some of the window, and each byte kept is the true one.
  const std::string data = TextBytes(2 << 20);
  const Decoded text = Decode(Gzip(data), 200'000);
  ASSERT_GT(text.checkpoints.size(), 1u);
  bool some_kept = false;
  for (const GzipCheckpoint& checkpoint : text.checkpoints) {
    const std::string window = Window(checkpoint);
    const absl::string_view before =
        absl::string_view(data).substr(checkpoint.data_offset - window.size(), window.size());
    for (size_t i = 0; i < window.size(); ++i) {
      ASSERT_TRUE(window[i] == before[i] || window[i] == 0);
      some_kept |= window[i] != 0;
    }
  }
  EXPECT_TRUE(some_kept);
}

TEST(GzipDecoder, MembersStartWithoutAWindow) {
  const std::string data = TextBytes(600'000);
  const std::string blob = support::GzipMembers(data, 50'000);
  const Decoded decoded = Decode(blob, 120'000);
  ASSERT_TRUE(decoded.status.ok()) << decoded.status;
  ASSERT_TRUE(decoded.data == data);
  EXPECT_GE(decoded.checkpoints.size(), 4u);
  for (const GzipCheckpoint& checkpoint : decoded.checkpoints) {
    EXPECT_TRUE(checkpoint.data_offset % 50'000 != 0 || checkpoint.window_size == 0);
    ExpectRestOf(blob, decoded, checkpoint);
  }
}

TEST(GzipDecoder, EmptyMembersInBetween) {
  const std::string blob = Gzip("") + Gzip("hello ") + Gzip("") + Gzip("") + Gzip("world") + Gzip("");
  for (const size_t step : {size_t{1} << 20, size_t{1}, size_t{7}}) {
    const Decoded decoded = Decode(blob, 1 << 20, step);
    ASSERT_TRUE(decoded.status.ok()) << decoded.status;
    EXPECT_EQ(decoded.data, "hello world");
    EXPECT_EQ(decoded.checkpoints.size(), 1u);
  }
}

TEST(GzipDecoder, SpacingGrowsSoThatCheckpointsStayFew) {
  const std::string blob = Gzip(std::string(6 << 20, 'z'), 0);  // stored blocks of 64 KiB at most
  const auto count = [&](uint64_t checkpoints_per_spacing) {
    GzipDecoder decoder(64 << 10, checkpoints_per_spacing);
    EXPECT_TRUE(decoder
                    .Feed(
                        BytesOf(blob), [](absl::Span<const uint8_t>) { return absl::OkStatus(); },
                        [](uint64_t, const GzipCheckpoint&) {})
                    .ok());
    EXPECT_TRUE(decoder.Finish().ok());
    return decoder.TakeCheckpoints().size();
  };
  const uint64_t all = count(8192), few = count(4);
  EXPECT_GT(all, 30u);
  EXPECT_LT(few, all / 2);
  EXPECT_GT(few, 8u);
}

TEST(GzipDecoder, ChecksumAndLengthOfMembersAreChecked) {
  const std::string blob = Gzip("hello");
  for (size_t i = 1; i <= 8; ++i) {
    std::string wrong = blob;
    ++wrong[wrong.size() - i];
    const Decoded decoded = Decode(wrong, 1 << 20);
    EXPECT_EQ(decoded.status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(decoded.status.message()), HasSubstr(i <= 4 ? "length" : "CRC"));
  }
}

TEST(GzipDecoder, DamagedStreamsInSmallPieces) {
  const std::string blob = Gzip(TextBytes(40'000) + RandomBytes(3000, 2), 9);
  for (size_t at = 10; at < blob.size(); at += 3) {
    std::string damaged = blob;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << (at % 8)));
    EXPECT_EQ(Decode(damaged, 32 << 10, 64 + at % 200).status.code(), absl::StatusCode::kInvalidArgument)
        << at;
  }
}

TEST(GzipDecoder, Truncated) {
  const std::string blob = Gzip(TextBytes(1000)) + Gzip("second");
  const size_t first = Gzip(TextBytes(1000)).size();
  for (size_t size = 0; size < blob.size(); ++size) {
    EXPECT_EQ(Decode(blob.substr(0, size), 1 << 20).status.ok(), size == first) << size;
  }
}

TEST(InflateMembers, SkipsAndCrossesMembers) {
  const std::string data = TextBytes(500'000), blob = support::GzipMembers(data, 70'000);
  for (const auto& [skip, size] : std::vector<std::pair<size_t, size_t>>{
           {0, 1}, {0, 70'000}, {0, 70'001}, {69'999, 2}, {123'456, 300'000}, {0, 500'000}, {499'999, 1}}) {
    std::string out(size, 'x');
    ASSERT_TRUE(InflateMembers(BytesOf(blob), skip, {reinterpret_cast<uint8_t*>(out.data()), size}).ok());
    ASSERT_TRUE(out == data.substr(skip, size)) << skip;
  }
  std::string out(2, 'x');
  const absl::Span<uint8_t> span(reinterpret_cast<uint8_t*>(out.data()), 2);
  EXPECT_EQ(InflateMembers(BytesOf(blob), 499'999, span).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(InflateMembers(BytesOf("no"), 0, span).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(InflateFromCheckpoint({}, 0, {}, 0, span).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(InflateFromCheckpoint(BytesOf("x"), 8, {}, 0, span).code(), absl::StatusCode::kDataLoss);
}

TEST(ZstdFrames, SkipsAndCrossesFrames) {
  const std::string data = TextBytes(500'000), blob = support::ZstdFrames(data, 70'000);
  for (const auto& [skip, size] : std::vector<std::pair<size_t, size_t>>{
           {0, 1}, {0, 70'001}, {69'999, 2}, {123'456, 300'000}, {499'999, 1}}) {
    std::string out(size, 'x');
    ASSERT_TRUE(DecodeZstdFrames(BytesOf(blob), skip, {reinterpret_cast<uint8_t*>(out.data()), size}).ok());
    ASSERT_TRUE(out == data.substr(skip, size)) << skip;
  }
  std::string out(2, 'x');
  const absl::Span<uint8_t> span(reinterpret_cast<uint8_t*>(out.data()), 2);
  EXPECT_EQ(DecodeZstdFrames(BytesOf(blob), 499'999, span).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(DecodeZstdFrames(BytesOf("garbage"), 0, span).code(), absl::StatusCode::kDataLoss);
}

TEST(Parts, ComeBackAndNoticeDamage) {
  const std::string data = TextBytes(32 << 10);
  const std::string part = CompressPart(BytesOf(data));
  EXPECT_LT(part.size(), data.size());
  std::string out(data.size(), 'x');
  const absl::Span<uint8_t> span(reinterpret_cast<uint8_t*>(out.data()), out.size());
  ASSERT_TRUE(DecompressPart(BytesOf(part), span).ok());
  EXPECT_EQ(out, data);
  EXPECT_FALSE(DecompressPart(BytesOf(part), span.first(100)).ok());
  for (size_t i = 0; i < part.size(); ++i) {
    std::string damaged = part;
    damaged[i] = static_cast<char>(damaged[i] ^ 4);
    // Some bits of the frame header mean nothing; what comes out is never wrong.
    EXPECT_TRUE(!DecompressPart(BytesOf(damaged), span).ok() || out == data) << i;
  }
}

}  // namespace
}  // namespace lazyblob::layer::internal
