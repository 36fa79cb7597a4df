#include "layer/layer_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/fault.h"
#include "base/file.h"
#include "layer/erofs.h"
#include "layer/internal/data_area.h"
#include "layer/internal/extent_layout.h"
#include "layer/internal/index_tables.h"
#include "layer/internal/index_writer.h"
#include "tests/layer/index_harness.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::layer {
namespace {

using internal::IndexContents;
using internal::WriteLayerFiles;
using oci::Compression;
using support::MakeLayer;
using support::MakeTar;
using support::RandomBytes;
using support::TextBytes;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ReadAll(const std::string& path) { return *base::ReadFile(path, 1 << 30); }

Tree EmptyTree() {
  Tree tree;
  tree.inodes.resize(1);
  tree.inodes[0].mode = 0040755;
  tree.inodes[0].nlink = 2;
  return tree;
}

IndexContents OneChunk(const std::string& data) {
  IndexContents contents;
  contents.info.blob_digest = base::Digest::Of(data);
  contents.info.blob_size = data.size();
  contents.info.data_size = 4096;
  Chunk chunk;
  chunk.data_size = chunk.blob_size = data.size();
  chunk.sha256 = base::Sha256(BytesOf(data));
  contents.chunks = {chunk};
  return contents;
}

absl::Status DecodeInto(const LayerIndex& index, uint64_t i, absl::string_view blob, std::string* out) {
  out->assign(index.chunk(i).data_size, 'x');
  return index.Decode(i, BytesOf(blob), {reinterpret_cast<uint8_t*>(out->data()), out->size()});
}

TEST(LayerIndex, AnyDamagedByteOfTheIndexIsNoticed) {
  const support::Layer layer =
      MakeLayer(MakeTar({support::File("a", TextBytes(400'000)), support::File("b", RandomBytes(90'000, 1))}),
                Compression::kGzip);
  BuildLimits limits;
  limits.checkpoint_spacing = 64 << 10;
  const IndexRun run = RunIndexer(layer, 1 << 20, limits);
  ASSERT_TRUE(run.status.ok()) << run.status;
  const std::string path = run.directory->File("index"), good = ReadAll(path);
  const auto* header = reinterpret_cast<const internal::IndexHeader*>(good.data());
  const uint64_t tables_end = header->tables_end;
  ASSERT_GT(good.size(), tables_end);  // it has windows
  for (size_t at = 0; at < good.size(); ++at) {
    std::string damaged = good;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x20);
    const auto tables = internal::IndexTables::Parse(BytesOf(damaged));
    if (at < tables_end) {
      ASSERT_EQ(tables.status().code(), absl::StatusCode::kDataLoss) << at;
      continue;
    }
    if (at % 50 != 0) continue;
    // A window: noticed by the chunk that needs it, and never wrong bytes.
    ASSERT_TRUE(tables.ok());
    for (uint64_t i = 0; i < tables->chunks().size(); ++i) {
      const Chunk chunk = tables->ChunkAt(i);
      std::string out(chunk.data_size, 'x');
      const absl::Status status =
          tables->Decode(i, BytesOf(layer.blob.substr(chunk.blob_offset, chunk.blob_size)),
                         {reinterpret_cast<uint8_t*>(out.data()), out.size()});
      ASSERT_EQ(out, status.ok() ? run.data.substr(chunk.data_offset, chunk.data_size)
                                 : std::string(out.size(), '\0'));
    }
  }
  for (const size_t size : {size_t{0}, size_t{100}, size_t{511}, size_t{512}, good.size() - 1}) {
    EXPECT_EQ(internal::IndexTables::Parse(BytesOf(good.substr(0, size))).status().code(),
              absl::StatusCode::kDataLoss);
  }
}

TEST(LayerIndex, DamagedFilesOnDisk) {
  const support::TempDir directory;
  EXPECT_TRUE(absl::IsNotFound(LayerIndex::Open(directory.path()).status()));
  ASSERT_TRUE(WriteLayerFiles(OneChunk("hello"), EmptyTree(), directory.path()).ok());
  ASSERT_TRUE(LayerIndex::Open(directory.path()).ok());

  const std::string index = ReadAll(directory.File("index")), meta = ReadAll(directory.File("meta.erofs"));
  std::string wrong = index;
  wrong[8] = 2;
  ASSERT_TRUE(base::WriteFileAtomically(directory.File("index"), wrong).ok());
  EXPECT_THAT(std::string(LayerIndex::Open(directory.path()).status().message()), HasSubstr("version 2"));
  ASSERT_TRUE(base::WriteFileAtomically(directory.File("index"), index).ok());

  for (const size_t at : {size_t{0}, meta.size() / 2, meta.size() - 1}) {
    wrong = meta;
    ++wrong[at];
    ASSERT_TRUE(base::WriteFileAtomically(directory.File("meta.erofs"), wrong).ok());
    EXPECT_EQ(LayerIndex::Open(directory.path()).status().code(), absl::StatusCode::kDataLoss);
  }
  ASSERT_TRUE(base::WriteFileAtomically(directory.File("meta.erofs"), meta + "x").ok());
  EXPECT_EQ(LayerIndex::Open(directory.path()).status().code(), absl::StatusCode::kDataLoss);
  ASSERT_TRUE(base::RemoveTree(directory.File("meta.erofs")).ok());
  EXPECT_EQ(LayerIndex::Open(directory.path()).status().code(), absl::StatusCode::kDataLoss);
}

TEST(LayerIndex, InfoAndTreeFactsComeBack) {
  const support::TempDir directory;
  IndexContents contents = OneChunk("hello");
  contents.info.format = Format::kEstargz;
  contents.info.diff_id = base::Digest::Of("tar");
  contents.info.random_access = false;
  Tree tree = EmptyTree();
  tree.has_whiteouts = true;
  tree.implied_directories = {"", "a", "a/b"};
  ASSERT_TRUE(WriteLayerFiles(contents, tree, directory.path()).ok());
  const auto index = LayerIndex::Open(directory.path());
  ASSERT_TRUE(index.ok()) << index.status();
  const LayerInfo& info = (*index)->info();
  EXPECT_EQ(info.format, Format::kEstargz);
  EXPECT_EQ(info.diff_id, base::Digest::Of("tar"));
  EXPECT_FALSE(info.random_access);
  EXPECT_TRUE(info.has_whiteouts);
  EXPECT_THAT(info.implied_directories, ElementsAre("", "a", "a/b"));
  EXPECT_EQ(info.inode_count, 1u);
  EXPECT_EQ(info.data_size, 4096u);
  std::string out;
  ASSERT_TRUE(DecodeInto(**index, 0, "hello", &out).ok());
  EXPECT_EQ(out, "hello");
}

TEST(LayerIndex, DecodeChecksSizesAndDigest) {
  const support::TempDir directory;
  ASSERT_TRUE(WriteLayerFiles(OneChunk("hello"), EmptyTree(), directory.path()).ok());
  const auto index = LayerIndex::Open(directory.path());
  ASSERT_TRUE(index.ok());
  std::string out(5, 'x');
  const absl::Span<uint8_t> span(reinterpret_cast<uint8_t*>(out.data()), 5);
  EXPECT_EQ((*index)->Decode(0, BytesOf("hell"), span).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*index)->Decode(0, BytesOf("hello"), span.first(4)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ((*index)->Decode(1, BytesOf("hello"), span).code(), absl::StatusCode::kInvalidArgument);
  const absl::Status status = (*index)->Decode(0, BytesOf("hellO"), span);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr((*index)->info().blob_digest.ToString()));
  EXPECT_EQ(out, std::string(5, '\0'));
}

TEST(LayerIndex, MemberAndFrameChunksWithSkippedBytes) {
  const std::string data = TextBytes(10'000);
  for (const auto& [codec, blob] : {std::pair(Codec::kGzipMember, support::GzipMembers(data, 3000)),
                                    std::pair(Codec::kZstdFrame, support::ZstdFrames(data, 3000))}) {
    IndexContents contents;
    contents.info.format = Format::kZstdChunked;
    contents.info.blob_digest = base::Digest::Of(blob);
    contents.info.blob_size = blob.size();
    contents.info.data_size = 12288;
    Chunk chunk;
    chunk.codec = codec;
    chunk.data_offset = 4096;
    chunk.data_size = 5000;
    chunk.blob_size = blob.size();
    chunk.codec_argument = 2500;
    chunk.sha256 = base::Sha256(BytesOf(data.substr(2500, 5000)));
    contents.chunks = {chunk};
    const support::TempDir directory;
    ASSERT_TRUE(WriteLayerFiles(contents, EmptyTree(), directory.path()).ok());
    const auto index = LayerIndex::Open(directory.path());
    ASSERT_TRUE(index.ok()) << index.status();
    std::string out;
    ASSERT_TRUE(DecodeInto(**index, 0, blob, &out).ok());
    EXPECT_EQ(out, data.substr(2500, 5000));
    EXPECT_EQ((*index)->FindChunk(0), 0u);
    EXPECT_EQ((*index)->FindChunk(9095), 0u);
    EXPECT_EQ((*index)->FindChunk(9096), 1u);
  }
}

TEST(LayerIndex, ScrubRangesAcrossChunks) {
  const std::string data = "0123456789abcdefghijklmnopqrstuv";
  const std::string clean =
      std::string("0123456") + std::string(12, '\0') + "jklmnopqrstu" + std::string(1, '\0');
  IndexContents contents = OneChunk(data);
  contents.chunks.clear();
  for (uint64_t at = 0; at < 32; at += 8) {
    Chunk chunk;
    chunk.data_offset = chunk.blob_offset = at;
    chunk.data_size = chunk.blob_size = 8;
    chunk.sha256 = base::Sha256(BytesOf(clean.substr(at, 8)));
    contents.chunks.push_back(chunk);
  }
  contents.scrub = {{7, 12}, {31, 1}};
  const support::TempDir directory;
  ASSERT_TRUE(WriteLayerFiles(contents, EmptyTree(), directory.path()).ok());
  const auto index = LayerIndex::Open(directory.path());
  std::string all;
  for (uint64_t i = 0; i < 4; ++i) {
    std::string out;
    ASSERT_TRUE(DecodeInto(**index, i, data.substr(i * 8, 8), &out).ok()) << i;
    all += out;
  }
  EXPECT_EQ(all, clean);
}

TEST(LayerIndex, ContentsThatBreakTheRulesAreNotWritten) {
  const support::TempDir directory;
  const auto refused = [&](auto change) {
    IndexContents contents = OneChunk("hello");
    change(contents);
    const absl::Status status = WriteLayerFiles(contents, EmptyTree(), directory.path());
    EXPECT_TRUE(absl::IsNotFound(LayerIndex::Open(directory.path()).status()));
    return status.code() == absl::StatusCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](IndexContents& c) { c.info.data_size = 4095; }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.info.data_size = 0; }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.chunks[0].data_size = 0; }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.chunks[0].data_size = kMaxChunkBytes + 1; }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.chunks[0].blob_offset = 1; }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.chunks[0].blob_size = ~uint64_t{0}; }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.chunks.push_back(c.chunks[0]); }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.chunks[0].codec = Codec::kGzipCheckpoint; }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.chunks[0].codec = Codec::kInline; }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.chunks[0].codec = static_cast<Codec>(9); }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.scrub = {{4095, 2}}; }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.scrub = {{0, 2}, {1, 2}}; }));
  EXPECT_TRUE(refused([](IndexContents& c) { c.checkpoints = {{40, 0, 0, ""}}; }));
}

TEST(LayerIndex, ACrashWhileWritingLeavesNoIndex) {
  const support::TempDir directory;
  ASSERT_TRUE(WriteLayerFiles(OneChunk("hello"), EmptyTree(), directory.path()).ok());
  {
    const base::ScopedFault fault("layer.index.before_sync",
                                  [] { return absl::UnavailableError("stopped"); });
    EXPECT_EQ(WriteLayerFiles(OneChunk("other"), EmptyTree(), directory.path()).code(),
              absl::StatusCode::kUnavailable);
  }
  EXPECT_TRUE(absl::IsNotFound(LayerIndex::Open(directory.path()).status()));
  EXPECT_THAT(*base::ListDirectory(directory.path()), ElementsAre("meta.erofs"));
  ASSERT_TRUE(WriteLayerFiles(OneChunk("other"), EmptyTree(), directory.path()).ok());
  EXPECT_TRUE(LayerIndex::Open(directory.path()).ok());
}

TEST(LayerIndex, ManyChunksOpenFast) {
  IndexContents contents = OneChunk("x");
  constexpr uint64_t kChunks = 500'000;
  contents.info.blob_size = kChunks;
  contents.info.data_size = kChunks * 4096;
  contents.chunks.resize(kChunks);
  for (uint64_t i = 0; i < kChunks; ++i) {
    contents.chunks[i].data_offset = i * 4096;
    contents.chunks[i].blob_offset = i;
    contents.chunks[i].data_size = contents.chunks[i].blob_size = 1;
    contents.chunks[i].sha256 = base::Sha256(BytesOf("x"));
  }
  const support::TempDir directory;
  ASSERT_TRUE(WriteLayerFiles(contents, EmptyTree(), directory.path()).ok());
  const auto index = LayerIndex::Open(directory.path());
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ((*index)->chunk_count(), kChunks);
  for (const uint64_t i : {uint64_t{0}, kChunks / 2, kChunks - 1}) {
    EXPECT_EQ((*index)->FindChunk(i * 4096), i);
    EXPECT_EQ((*index)->FindChunk(i * 4096 + 1), i + 1);
  }
}

// docs/LAYER_INDEX.md shows these bytes; what depends on meta.erofs (its identity, hence the checksum) is
// left out.
TEST(LayerIndex, WorkedExample) {
  const std::string doc = ReadAll(LAZYBLOB_SOURCE_DIR "/docs/LAYER_INDEX.md");
  const IndexRun run =
      RunIndexer(MakeLayer(MakeTar({support::File("hello.txt", "hello\n")}), Compression::kNone));
  ASSERT_TRUE(run.status.ok()) << run.status;
  const std::string index = ReadAll(run.directory->File("index"));
  ASSERT_EQ(index.size(), 0x249u);
  int shown = 0;
  for (size_t at = 0; at < index.size(); at += 16) {
    const bool of_meta = (at >= 0x10 && at < 0x30) || (at >= 0x170 && at <= 0x190);
    const bool left_out = at > 0x60 && at < 0x170;
    if (of_meta || left_out) continue;
    std::string line = absl::StrFormat("%08x:", at);
    for (size_t i = at; i < std::min(at + 16, index.size()); ++i) {
      absl::StrAppendFormat(&line, "%s%02x", i % 2 == 0 ? " " : "", static_cast<uint8_t>(index[i]));
    }
    EXPECT_THAT(doc, HasSubstr(line));
    ++shown;
  }
  EXPECT_EQ(shown, 37 - 2 - 3 - 16);
}

TEST(FormatName, All) {
  EXPECT_EQ(FormatName(Format::kTar), "tar");
  EXPECT_EQ(FormatName(Format::kTarGzip), "tar+gzip");
  EXPECT_EQ(FormatName(Format::kTarZstd), "tar+zstd");
  EXPECT_EQ(FormatName(Format::kEstargz), "estargz");
  EXPECT_EQ(FormatName(Format::kZstdChunked), "zstd:chunked");
}

}  // namespace
}  // namespace lazyblob::layer
