#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "layer/index_builder.h"
#include "tests/layer/index_harness.h"
#include "tests/support/layer_maker.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::layer {
namespace {

using oci::Compression;
using support::Layer;
using support::MakeLayer;
using support::MakeLayerOf;
using support::MakeTar;
using support::RandomBytes;
using support::TarMaker;
using support::TextBytes;
using ::testing::HasSubstr;

// Text, noise and zeros, so that blocks of all kinds are made; several MiB.
std::string MixedTar() {
  return MakeTar({support::Directory("d"), support::File("d/text", TextBytes(3'000'001)),
                  support::File("d/noise", RandomBytes(2'500'003, 1)),
                  support::File("d/zeros", std::string(1'700'000, '\0')), support::File("d/small", "small"),
                  support::File("d/more", TextBytes(900'000, 7)), support::Symlink("link", "d/text"),
                  support::HardLink("hard", "d/small")});
}

std::string Digest(absl::string_view bytes) { return base::Digest::Of(bytes).ToString(); }

void ExpectMixedFiles(const IndexRun& run) {
  EXPECT_EQ(Digest(FileContents(run, "d/text")), Digest(TextBytes(3'000'001)));
  EXPECT_EQ(Digest(FileContents(run, "d/noise")), Digest(RandomBytes(2'500'003, 1)));
  EXPECT_EQ(Digest(FileContents(run, "d/zeros")), Digest(std::string(1'700'000, '\0')));
  EXPECT_EQ(FileContents(run, "hard"), "small");
}

struct Case {
  std::string name;
  Compression compression;
  uint64_t member_size;

  friend void PrintTo(const Case& value, std::ostream* out) { *out << value.name; }
};

class PlainFormats : public ::testing::TestWithParam<Case> {};

TEST_P(PlainFormats, EveryChunkDecodesToWhatWasStreamed) {
  const Layer layer = MakeLayer(MixedTar(), GetParam().compression, GetParam().member_size);
  for (const uint64_t step : {uint64_t{1} << 20, uint64_t{4099}}) {
    const IndexRun run = RunIndexer(layer, step);
    ASSERT_TRUE(run.status.ok()) << run.status;
    EXPECT_EQ(run.data.substr(0, layer.tar.size()), layer.tar);
    ExpectRandomAccess(run, layer.blob);
    ExpectMixedFiles(run);
    const LayerInfo& info = run.index->info();
    EXPECT_EQ(info.blob_digest, layer.descriptor.digest);
    EXPECT_EQ(info.blob_size, layer.blob.size());
    EXPECT_EQ(info.diff_id, layer.diff_id);
    EXPECT_EQ(info.data_size % kDataAlignment, 0u);
    EXPECT_EQ(info.inode_count, 8u);  // the root too; a hard link has none of its own
    EXPECT_TRUE(info.random_access);
    EXPECT_FALSE(info.has_whiteouts);
    EXPECT_EQ(run.index->chunk_count() > 5, true);
  }
}

TEST_P(PlainFormats, PiecesOfOneByteMakeTheSameIndex) {
  const Layer layer = MakeLayer(MakeTar({support::File("a", TextBytes(70'000)), support::File("b", "b")}),
                                GetParam().compression, GetParam().member_size == 0 ? 0 : 20'000);
  BuildLimits limits;
  limits.checkpoint_spacing = 32 << 10;
  const IndexRun whole = RunIndexer(layer, layer.blob.size(), limits), bytes = RunIndexer(layer, 1, limits);
  ASSERT_TRUE(whole.status.ok() && bytes.status.ok()) << whole.status << bytes.status;
  EXPECT_EQ(whole.data, bytes.data);
  ExpectRandomAccess(bytes, layer.blob);
  EXPECT_EQ(FileContents(bytes, "a"), TextBytes(70'000));
}

TEST_P(PlainFormats, EveryFlippedByteIsNoticed) {
  const Layer layer =
      MakeLayer(MakeTar({support::File("a", TextBytes(3000)), support::File("b", RandomBytes(700, 2))}),
                GetParam().compression, GetParam().member_size == 0 ? 0 : 1500);
  for (size_t at = 0; at < layer.blob.size(); ++at) {
    std::string blob = layer.blob;
    blob[at] = static_cast<char>(blob[at] ^ 0x10);
    const IndexRun run = RunIndexer(layer, 1 << 20, {}, blob);
    ASSERT_FALSE(run.status.ok()) << "byte " << at;
    ASSERT_EQ(run.index, nullptr);
    ASSERT_THAT(std::string(run.status.message()), HasSubstr(layer.descriptor.digest.ToString()));
  }
}

TEST_P(PlainFormats, FlippedBytesAreNoticedByRandomAccess) {
  const Layer layer = MakeLayer(
      MakeTar({support::File("a", TextBytes(150'000)), support::File("b", RandomBytes(150'000, 2))}),
      GetParam().compression, GetParam().member_size == 0 ? 0 : 60'000);
  BuildLimits limits;
  limits.checkpoint_spacing = 32 << 10;
  const IndexRun run = RunIndexer(layer, 1 << 20, limits);
  ASSERT_TRUE(run.status.ok()) << run.status;
  ASSERT_GT(run.index->chunk_count(), 1u);
  uint64_t noticed = 0;
  for (uint64_t i = 0; i < run.index->chunk_count(); ++i) {
    const Chunk chunk = run.index->chunk(i);
    for (uint64_t at = 0; at < chunk.blob_size; at += 97) {
      std::string bytes = layer.blob.substr(chunk.blob_offset, chunk.blob_size);
      bytes[at] = static_cast<char>(bytes[at] ^ 0x01);
      std::string out(chunk.data_size, 'x');
      const absl::Status status =
          run.index->Decode(i, BytesOf(bytes), {reinterpret_cast<uint8_t*>(out.data()), out.size()});
      // Bytes that decoding does not use (a member's trailer) may be wrong; what comes out never is.
      if (status.ok()) {
        ASSERT_EQ(out, run.data.substr(chunk.data_offset, chunk.data_size));
        continue;
      }
      ++noticed;
      ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
      ASSERT_EQ(out, std::string(chunk.data_size, '\0'));
    }
  }
  EXPECT_GT(noticed, 100u);
}

TEST_P(PlainFormats, ATruncatedBlobIsNoticed) {
  const Layer layer = MakeLayer(MakeTar({support::File("a", TextBytes(3000))}), GetParam().compression,
                                GetParam().member_size == 0 ? 0 : 1500);
  for (size_t size = 0; size < layer.blob.size(); size += layer.blob.size() > 1000 ? 13 : 1) {
    // Also when the descriptor agrees with what came.
    const std::string cut = layer.blob.substr(0, size);
    const IndexRun run = RunIndexer(layer, 512, {}, cut.empty() ? absl::string_view("x") : cut);
    ASSERT_FALSE(run.status.ok()) << size;
    Layer agreed = MakeLayerOf(layer.tar, cut, GetParam().compression);
    agreed.diff_id = layer.diff_id;
    const IndexRun second = RunIndexer(agreed, 512);
    ASSERT_FALSE(second.status.ok()) << size;
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, PlainFormats,
                         ::testing::Values(Case{"tar", Compression::kNone, 0},
                                           Case{"gzip", Compression::kGzip, 0},
                                           Case{"gzip_members", Compression::kGzip, 400'000},
                                           Case{"zstd_frames", Compression::kZstd, 700'000}),
                         [](const auto& info) { return info.param.name; });

TEST(StreamIndexer, GzipOfEveryKindOfBlock) {
  const std::string tar = MixedTar();
  constexpr int kHuffmanOnly = 2, kRle = 3, kFixed = 4;
  for (const auto& [level, strategy] :
       std::vector<std::pair<int, int>>{{0, 0}, {1, 0}, {9, 0}, {6, kHuffmanOnly}, {6, kRle}, {6, kFixed}}) {
    SCOPED_TRACE(absl::StrCat("level ", level, " strategy ", strategy));
    const Layer layer = MakeLayerOf(tar, support::Gzip(tar, level, strategy), Compression::kGzip);
    for (const uint64_t step : {uint64_t{10'007}, uint64_t{1} << 20}) {
      const IndexRun run = RunIndexer(layer, step);
      ExpectRandomAccess(run, layer.blob);
      ASSERT_TRUE(run.index != nullptr);
      EXPECT_GE(run.index->chunk_count(), 4u);
    }
  }
}

TEST(StreamIndexer, ChunksCoverTheStreamAndShareNoBlobBytesButOneAtEachEdge) {
  const Layer layer = MakeLayer(MixedTar(), Compression::kGzip);
  const IndexRun run = RunIndexer(layer);
  ASSERT_TRUE(run.status.ok()) << run.status;
  uint64_t data = 0, blob = 0;
  for (uint64_t i = 0; i < run.index->chunk_count(); ++i) {
    const Chunk chunk = run.index->chunk(i);
    EXPECT_EQ(chunk.data_offset, data);
    EXPECT_LE(chunk.data_size, uint64_t{1} << 22);
    EXPECT_TRUE(i == 0 || chunk.blob_offset == blob || chunk.blob_offset + 1 == blob) << i;
    data += chunk.data_size;
    blob = chunk.blob_offset + chunk.blob_size;
  }
  EXPECT_EQ(data, layer.tar.size());
  EXPECT_EQ(blob, layer.blob.size());
}

TEST(StreamIndexer, TarChunksAreAligned) {
  const Layer layer = MakeLayer(MixedTar(), Compression::kNone);
  const IndexRun run = RunIndexer(layer);
  ASSERT_TRUE(run.status.ok()) << run.status;
  for (uint64_t i = 0; i < run.index->chunk_count(); ++i) {
    EXPECT_EQ(run.index->chunk(i).data_offset, i << 18);
    EXPECT_EQ(run.index->chunk(i).blob_offset, i << 18);
  }
}

TEST(StreamIndexer, PaddingIsZeroInWhatIsVisible) {
  std::string tar = MakeTar(
      {support::File("a", "hello"), support::File("b", std::string(700, 'b')), support::File("c", "c")});
  // After the 5 bytes of "a" (block 1), the 700 of "b" (blocks 3 and 4) and, partly, the byte of "c" (block
  // 6).
  const auto spoil = [&](size_t from, size_t to) { std::fill(tar.begin() + from, tar.begin() + to, 'X'); };
  spoil(512 + 5, 1024);
  spoil(3 * 512 + 188 + 512, 5 * 512);
  tar[6 * 512 + 511] = 'Y';
  for (const Compression compression : {Compression::kNone, Compression::kGzip, Compression::kZstd}) {
    const Layer layer = MakeLayer(tar, compression);
    for (const uint64_t step : {uint64_t{1} << 20, uint64_t{7}}) {
      const IndexRun run = RunIndexer(layer, step);
      ASSERT_TRUE(run.status.ok()) << run.status;
      EXPECT_EQ(run.data.substr(512, 512), std::string("hello") + std::string(507, '\0'));
      EXPECT_FALSE(absl::StrContains(run.data, "X"));
      EXPECT_FALSE(absl::StrContains(run.data, "Y"));
      ExpectRandomAccess(run, layer.blob);
    }
  }
}

TEST(StreamIndexer, OneBigZstdFrameHasNoRandomAccessButRightChunks) {
  const std::string tar = MakeTar({support::File("a", RandomBytes(20 << 20, 5))});
  const Layer layer = MakeLayer(tar, Compression::kZstd);
  const IndexRun run = RunIndexer(layer);
  ASSERT_TRUE(run.status.ok()) << run.status;
  EXPECT_FALSE(run.index->info().random_access);
  EXPECT_EQ(run.index->chunk_count(), 2u);
  EXPECT_EQ(run.index->chunk(1).blob_offset, 0u);
  EXPECT_EQ(run.index->chunk(1).blob_size, layer.blob.size());
  EXPECT_EQ(run.index->chunk(1).codec_argument, kMaxChunkBytes);
  ExpectRandomAccess(run, layer.blob);
}

TEST(StreamIndexer, OneHugeDeflateBlockIsSeveralChunks) {
  // A member whose only Huffman block makes 40 MiB: zlib limits blocks to symbols, and 258 zeros are one.
  const std::string tar = MakeTar({support::File("zeros", std::string(40 << 20, '\0'))});
  const Layer layer = MakeLayer(tar, Compression::kGzip);
  const IndexRun run = RunIndexer(layer);
  ASSERT_TRUE(run.status.ok()) << run.status;
  for (uint64_t i = 0; i < run.index->chunk_count(); ++i)
    EXPECT_LE(run.index->chunk(i).data_size, kMaxChunkBytes);
  ExpectRandomAccess(run, layer.blob);
}

TEST(StreamIndexer, SkippableZstdFramesAreSkipped) {
  const std::string tar = MixedTar();
  const std::string skippable("\x50\x2a\x4d\x18\x05\x00\x00\x00hello", 13);
  const std::string blob = skippable + support::ZstdFrames(tar, 1'500'000) + skippable;
  const Layer layer = MakeLayerOf(tar, blob, Compression::kZstd);
  for (const uint64_t step : {uint64_t{5}, uint64_t{1} << 20}) {
    const IndexRun run = RunIndexer(layer, step);
    ExpectRandomAccess(run, blob);
    EXPECT_TRUE(run.index != nullptr && run.index->info().random_access);
  }
}

TEST(StreamIndexer, GarbageAfterTheLastMember) {
  const std::string tar = MakeTar({support::File("a", "a")});
  for (const std::string& tail : {std::string(1, '\0'), std::string(512, '\0'), std::string("garbage")}) {
    const Layer gzip = MakeLayerOf(tar, support::Gzip(tar) + tail, Compression::kGzip);
    EXPECT_THAT(std::string(RunIndexer(gzip).status.message()), HasSubstr("no gzip member"));
    const Layer zstd = MakeLayerOf(tar, support::Zstd(tar) + tail, Compression::kZstd);
    EXPECT_FALSE(RunIndexer(zstd).status.ok());
  }
  // After the end of the archive, inside the compressed stream, anything goes.
  const std::string with_tail = tar + "garbage";
  const IndexRun run = RunIndexer(MakeLayer(with_tail, Compression::kGzip));
  ASSERT_TRUE(run.status.ok()) << run.status;
  EXPECT_EQ(FileContents(run, "a"), "a");
}

TEST(StreamIndexer, EmptyLayers) {
  const IndexRun nothing = RunIndexer(MakeLayer("", Compression::kGzip));
  ASSERT_TRUE(nothing.status.ok()) << nothing.status;
  EXPECT_EQ(nothing.index->info().data_size, kDataAlignment);
  EXPECT_EQ(nothing.index->chunk_count(), 0u);
  EXPECT_EQ(nothing.index->info().inode_count, 1u);
  const Layer zeros = MakeLayer(std::string(1024, '\0'), Compression::kGzip);
  ExpectRandomAccess(RunIndexer(zeros), zeros.blob);
  EXPECT_TRUE(RunIndexer(MakeLayer("", Compression::kNone)).status.ok());
  EXPECT_FALSE(RunIndexer(MakeLayerOf("", "", Compression::kGzip)).status.ok());
  EXPECT_FALSE(RunIndexer(MakeLayerOf("", "", Compression::kZstd)).status.ok());
}

TEST(StreamIndexer, WrongDiffIdIsDataLoss) {
  Layer layer = MakeLayer(MakeTar({support::File("a", "a")}), Compression::kGzip);
  layer.diff_id = base::Digest::Of("something else");
  const IndexRun run = RunIndexer(layer);
  EXPECT_EQ(run.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(run.status.message()), HasSubstr("diffID"));
  layer.diff_id = base::Digest();
  EXPECT_TRUE(RunIndexer(layer).status.ok());
}

TEST(StreamIndexer, Sha512Digests) {
  for (const Compression compression : {Compression::kNone, Compression::kGzip}) {
    Layer layer = MakeLayer(MakeTar({support::File("a", "a")}), compression);
    base::Hasher hasher(base::DigestAlgorithm::kSha512);
    hasher.Update(layer.blob);
    layer.descriptor.digest = hasher.Finish();
    const IndexRun run = RunIndexer(layer);
    ASSERT_TRUE(run.status.ok()) << run.status;
    EXPECT_EQ(run.index->info().blob_digest, layer.descriptor.digest);
    EXPECT_EQ(run.index->info().diff_id, layer.diff_id);
  }
}

TEST(StreamIndexer, MoreBytesThanTheDescriptorSays) {
  Layer layer = MakeLayer(MakeTar({support::File("a", "a")}), Compression::kGzip);
  --layer.descriptor.size;
  EXPECT_EQ(RunIndexer(layer).status.code(), absl::StatusCode::kDataLoss);
  layer.descriptor.size += 2;
  EXPECT_EQ(RunIndexer(layer).status.code(), absl::StatusCode::kDataLoss);
}

TEST(StreamIndexer, LimitsStopTheStream) {
  const std::string tar = MakeTar({support::File("zeros", std::string(100 << 20, '\0'))});
  const Layer gzip = MakeLayer(tar, Compression::kGzip), zstd = MakeLayer(tar, Compression::kZstd);
  BuildLimits limits;
  limits.max_ratio = 100;
  for (const Layer& layer : {gzip, zstd}) {
    const IndexRun run = RunIndexer(layer, 64 << 10, limits);
    EXPECT_EQ(run.status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(run.status.message()), HasSubstr("decompression bomb"));
    EXPECT_LE(run.data.size(), size_t{80} << 20);
  }
  // zstd packs zeros better than the default allows; gzip cannot.
  EXPECT_TRUE(RunIndexer(gzip).status.ok());
  EXPECT_FALSE(RunIndexer(zstd).status.ok());

  BuildLimits data;
  data.max_data_bytes = 50 << 20;
  const IndexRun large = RunIndexer(gzip, 64 << 10, data);
  EXPECT_THAT(std::string(large.status.message()), HasSubstr("more than the limit"));
  EXPECT_LE(large.data.size(), size_t{50} << 20);

  BuildLimits entries;
  entries.max_entries = 3;
  std::vector<support::TarMember> members;
  for (int i = 0; i < 5; ++i) members.push_back(support::File(absl::StrCat("f", i), "x"));
  EXPECT_FALSE(RunIndexer(MakeLayer(MakeTar(members), Compression::kGzip), 4096, entries).status.ok());
}

TEST(StreamIndexer, ZstdWindowsAreLimited) {
  const std::string tar = MakeTar({support::File("a", std::string(12 << 20, 'a'))});
  const std::string blob = support::Zstd(tar, 22);  // a single segment of 12 MiB
  const Layer layer = MakeLayerOf(tar, blob, Compression::kZstd);
  const IndexRun run = RunIndexer(layer);
  EXPECT_EQ(run.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(run.status.message()), HasSubstr("the limit is 8 MiB"));
  BuildLimits limits;
  limits.max_zstd_window = 32 << 20;
  const IndexRun allowed = RunIndexer(layer, 64 << 10, limits);
  ExpectRandomAccess(allowed, blob);
  limits.max_zstd_window = 256 << 20;
  EXPECT_FALSE(RunIndexer(layer, 64 << 10, limits).status.ok());
}

TEST(StreamIndexer, ErrorsStick) {
  const Layer layer = MakeLayer(MakeTar({support::File("a", "a")}), Compression::kGzip);
  auto indexer = StreamIndexer::Create(Format::kTarGzip, layer.descriptor, layer.diff_id, {});
  ASSERT_TRUE(indexer.ok());
  const auto sink = [](uint64_t, absl::Span<const uint8_t>) { return absl::OkStatus(); };
  const absl::Status first = (*indexer)->Feed(BytesOf("not gzip"), sink);
  EXPECT_EQ(first.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*indexer)->Feed(BytesOf(layer.blob), sink), first);
  const support::TempDir directory;
  EXPECT_EQ((*indexer)->Finish(directory.path(), sink), first);
}

TEST(StreamIndexer, ErrorsOfTheSinkComeBack) {
  const Layer layer = MakeLayer(MakeTar({support::File("a", "a")}), Compression::kGzip);
  auto indexer = StreamIndexer::Create(Format::kTarGzip, layer.descriptor, layer.diff_id, {});
  ASSERT_TRUE(indexer.ok());
  const absl::Status status = (*indexer)->Feed(BytesOf(layer.blob), [](uint64_t, absl::Span<const uint8_t>) {
    return absl::ResourceExhaustedError("disk full");
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

TEST(StreamIndexer, OnlyPlainFormats) {
  const Layer layer = MakeLayer("", Compression::kGzip);
  EXPECT_FALSE(StreamIndexer::Create(Format::kEstargz, layer.descriptor, {}, {}).ok());
}

}  // namespace
}  // namespace lazyblob::layer
