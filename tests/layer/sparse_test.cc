// Sparse files of plain layers: mapped where EROFS can, else materialised.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "layer/internal/data_area.h"
#include "layer/internal/extent_layout.h"
#include "tests/layer/index_harness.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::layer {
namespace {

using internal::ChunkBits;
using internal::InlineStore;
using internal::MaterialisedChunkBits;
using oci::Compression;
using support::MakeLayer;
using support::MakeTar;
using support::RandomBytes;
using support::SparseStyle;
using support::TarMember;
using ::testing::HasSubstr;

using Runs = std::vector<std::pair<uint64_t, uint64_t>>;

TarMember SparseFile(std::string name, uint64_t size, Runs runs, SparseStyle style = SparseStyle::kPax10) {
  std::string contents(size, '\0');
  for (const auto& [offset, length] : runs) contents.replace(offset, length, RandomBytes(length, offset + 1));
  TarMember member = support::File(std::move(name), std::move(contents));
  member.sparse = style;
  member.runs = std::move(runs);
  return member;
}

TEST(ChunkBits, WholeFiles) {
  EXPECT_EQ(ChunkBits(0, {}), 40);
  EXPECT_EQ(ChunkBits(5, {{0, 512, 5}}), 40);
  EXPECT_EQ(ChunkBits(uint64_t{3} << 40, {{0, 512, uint64_t{3} << 40}}), 40);
  EXPECT_EQ(ChunkBits(5, {{0, 513, 5}}), std::nullopt);
  EXPECT_EQ(ChunkBits(uint64_t{1} << 61, {}), std::nullopt);  // too many chunks
}

TEST(ChunkBits, SparseFiles) {
  EXPECT_EQ(ChunkBits(20480, {{4096, 512, 4096}, {12288, 4608, 8192}}), 12);
  EXPECT_EQ(ChunkBits(20485, {{16384, 512, 4101}}), 14);
  EXPECT_EQ(ChunkBits(30000, {{16384, 512, 4101}}),
            std::nullopt);  // ends before the file, and not at a chunk's end
  EXPECT_EQ(ChunkBits(20480, {{2048, 512, 2048}}), std::nullopt);
  EXPECT_EQ(ChunkBits(8192, {{0, 512, 4096}}), 12);
  EXPECT_EQ(ChunkBits((uint64_t{1} << 32) + 1, {{4096, 512, 4096}}), std::nullopt);  // over a million indexes
  EXPECT_EQ(ChunkBits(uint64_t{1} << 32, {{4096, 512, 4096}}), 12);
}

TEST(ChunkBits, Materialised) {
  EXPECT_EQ(MaterialisedChunkBits(0), 12);
  EXPECT_EQ(MaterialisedChunkBits(uint64_t{1} << 32), 12);
  EXPECT_EQ(MaterialisedChunkBits((uint64_t{1} << 32) + 1), 13);
  EXPECT_EQ(MaterialisedChunkBits(uint64_t{100} << 30), 17);
}

TEST(Sparse, AlignedRunsAreMappedWhereTheyAre) {
  const TarMember member =
      SparseFile("sparse", 1 << 20, {{8192, 4096}, {65536, 16384}, {(1 << 20) - 4096, 4096}});
  const support::Layer layer = MakeLayer(MakeTar({member, support::File("after", "x")}), Compression::kGzip);
  const IndexRun run = RunIndexer(layer);
  ASSERT_TRUE(run.status.ok()) << run.status;
  EXPECT_TRUE(FileContents(run, "sparse") == member.contents);
  EXPECT_EQ(run.index->info().data_size, (layer.tar.size() + 4095) / 4096 * 4096);
  ExpectRandomAccess(run, layer.blob);
}

TEST(Sparse, OtherRunsAreMaterialised) {
  std::vector<TarMember> members = {
      SparseFile("odd", 300'000, {{5, 10}, {4095, 2}, {8000, 300}, {100'000, 12'345}, {299'999, 1}}),
      SparseFile("aligned", 65536, {{4096, 4096}}),
      SparseFile("short blocks", 100 * 8192, {{512, 512}, {8192, 512}, {16384 + 512, 1024}},
                 SparseStyle::kPax01),
      SparseFile("gnu", 50'000, {{1024, 512}, {40'960, 512}}, SparseStyle::kOldGnu)};
  members.back().dialect = support::TarDialect::kGnu;
  for (const Compression compression : {Compression::kNone, Compression::kGzip, Compression::kZstd}) {
    const support::Layer layer = MakeLayer(MakeTar(members), compression);
    for (const uint64_t step : {uint64_t{1} << 20, uint64_t{77}}) {
      const IndexRun run = RunIndexer(layer, step);
      ASSERT_TRUE(run.status.ok()) << run.status;
      for (const TarMember& member : members)
        EXPECT_TRUE(FileContents(run, member.name) == member.contents) << member.name;
      EXPECT_GT(run.index->info().data_size, layer.tar.size() + 4096);
      EXPECT_EQ(run.index->chunk(run.index->chunk_count() - 1).codec, Codec::kInline);
      ExpectRandomAccess(run, layer.blob);
    }
  }
}

TEST(Sparse, SeveralMiBAreMaterialisedInPieces) {
  Runs runs;
  for (uint64_t at = 100; at + 700'000 < 9'000'000; at += 1'000'000) runs.emplace_back(at, 700'000);
  const TarMember member = SparseFile("big", 9'000'000, runs);
  const support::Layer layer = MakeLayer(MakeTar({member}), Compression::kGzip);
  const IndexRun run = RunIndexer(layer);
  ASSERT_TRUE(run.status.ok()) << run.status;
  EXPECT_TRUE(FileContents(run, "big") == member.contents);
  ExpectRandomAccess(run, layer.blob);
}

TEST(Sparse, HugeHolesCostNothing) {
  // 4 TiB with two runs: far more than the data area could hold. The contents are given by hand.
  const std::string size = std::to_string(uint64_t{4} << 40);
  TarMember member = support::File("huge", std::string(1024, 'd'));
  member.pax_records = {{"GNU.sparse.major", "0"},
                        {"GNU.sparse.minor", "1"},
                        {"GNU.sparse.realsize", size},
                        {"GNU.sparse.numblocks", "2"},
                        {"GNU.sparse.map", "0,512,1099511627776,512"}};
  const support::Layer layer = MakeLayer(MakeTar({member}), Compression::kGzip);
  const IndexRun run = RunIndexer(layer);
  ASSERT_TRUE(run.status.ok()) << run.status;
  // Two units of 4 MiB, the smallest with at most 2^20 in the file.
  EXPECT_LT(run.index->info().data_size, uint64_t{9} << 20);
  ExpectRandomAccess(run, layer.blob);
}

TEST(Sparse, WhatCannotBeMaterialisedIsAClearError) {
  Runs runs;
  std::string map;
  for (uint64_t i = 0; i < 100; ++i) map += (i > 0 ? "," : "") + std::to_string((i * 4 << 20) + 5) + ",1";
  TarMember member = support::File("greedy", std::string(100, 'd'));
  member.pax_records = {{"GNU.sparse.major", "0"},
                        {"GNU.sparse.minor", "1"},
                        {"GNU.sparse.realsize", std::to_string(uint64_t{4} << 40)},
                        {"GNU.sparse.numblocks", "100"},
                        {"GNU.sparse.map", map}};
  const IndexRun run = RunIndexer(MakeLayer(MakeTar({member}), Compression::kGzip));
  EXPECT_EQ(run.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(run.status.message()), HasSubstr("\"greedy\" has runs that cannot be mapped"));

  member.contents = "";
  member.pax_records = {{"GNU.sparse.major", "0"},
                        {"GNU.sparse.minor", "1"},
                        {"GNU.sparse.realsize", "9223372036854775807"},
                        {"GNU.sparse.numblocks", "0"}};
  EXPECT_FALSE(RunIndexer(MakeLayer(MakeTar({member}), Compression::kGzip)).status.ok());
}

TEST(InlineStore, NeighbouringRunsShareTheirUnit) {
  Entry entry;
  entry.path = "f";
  entry.size = 20'000;
  entry.extents = {{10, 512, 20}, {100, 532, 50}, {4090, 582, 10}, {16'400, 592, 3600}};
  InlineStore store;
  ASSERT_TRUE(store.Materialise(&entry).ok());
  ASSERT_EQ(entry.extents.size(), 2u);
  EXPECT_EQ(entry.extents[0].file_offset, 0u);
  EXPECT_EQ(entry.extents[0].length, 8192u);
  EXPECT_EQ(entry.extents[0].data_offset, InlineStore::kBase);
  EXPECT_EQ(entry.extents[1].file_offset, 16'384u);
  EXPECT_EQ(entry.extents[1].length, 20'000u - 16'384);
  EXPECT_EQ(entry.extents[1].data_offset, InlineStore::kBase + 8192);
  EXPECT_EQ(store.size(), 12'288u);
  EXPECT_EQ(ChunkBits(entry.size, entry.extents), 13);
}

}  // namespace
}  // namespace lazyblob::layer
