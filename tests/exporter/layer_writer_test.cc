#include "exporter/layer_writer.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "tests/exporter/layer_reading.h"
#include "tests/exporter/tree_making.h"
#include "tests/support/layer_maker.h"
#include "tests/support/tar_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::exporter {
namespace {

using support::Directory;
using support::File;
using support::MakeTar;
using support::RandomBytes;
using support::TempDir;

constexpr LayerCompression kAll[] = {LayerCompression::kNone, LayerCompression::kGzip,
                                     LayerCompression::kZstd, LayerCompression::kEstargz,
                                     LayerCompression::kZstdChunked};

bool HasToc(LayerCompression compression) {
  return compression == LayerCompression::kEstargz || compression == LayerCompression::kZstdChunked;
}

absl::StatusOr<MadeLayer> Compress(absl::string_view tar, const LayerOptions& options,
                                   size_t step = 1 << 20) {
  MadeLayer made;
  ASSIGN_OR_RETURN(const auto writer, LayerWriter::Create(options, [&made](absl::Span<const uint8_t> bytes) {
                     made.blob.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
                     return absl::OkStatus();
                   }));
  for (size_t at = 0; at < tar.size(); at += step)
    RETURN_IF_ERROR(writer->Write(AsBytes(tar.substr(at, step))));
  ASSIGN_OR_RETURN(made.result, writer->Finish());
  return made;
}

// What the blob says of itself is right, and it shows `expected` by table of contents and when streamed.
void ExpectShows(const ReadLayer& expected, const MadeLayer& made) {
  EXPECT_EQ(made.result.digest, base::Digest::Of(made.blob));
  EXPECT_EQ(made.result.size, made.blob.size());
  EXPECT_EQ(made.result.annotations.at("containerd.io/uncompressed"), made.result.diff_id.ToString());
  const oci::Descriptor layer = made.result.Descriptor();
  for (const bool streamed : {false, true}) {
    const auto read = streamed ? ReadStreamed(made.blob, layer, made.result.diff_id)
                               : ReadBack(made.blob, layer, made.result.diff_id);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(DifferenceOf(expected, *read), "") << (streamed ? "streamed" : "by table of contents");
  }
}

TreeOptions WithRoot() {
  TreeOptions options;
  options.root_entry = true;
  return options;
}

class EveryCompression : public testing::TestWithParam<LayerCompression> {
 protected:
  LayerOptions Options() const {
    LayerOptions options;
    options.compression = GetParam();
    return options;
  }
};
INSTANTIATE_TEST_SUITE_P(, EveryCompression, testing::ValuesIn(kAll),
                         [](const auto& info) { return std::string(LayerCompressionName(info.param)); });

TEST_P(EveryCompression, ShowsTheTreeItWasMadeOf) {
  ASSERT_EQ(::geteuid(), 0U) << "run as root";
  const TempDir directory;
  const std::string root = directory.File("tree");
  MakeFullTree(root, HasToc(GetParam()));
  const auto made = MakeLayerOf({SourceKind::kDirectory, root, ""}, Options(), WithRoot());
  ASSERT_TRUE(made.ok()) << made.status();
  ExpectShows(ReadDirectory(root), *made);
}

TEST_P(EveryCompression, ShowsRandomTrees) {
  ASSERT_EQ(::geteuid(), 0U) << "run as root";
  const TempDir directory;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(seed);
    const std::string root = directory.File(absl::StrCat(seed));
    MakeRandomTree(root, seed);
    LayerOptions options = Options();
    options.chunk_size = seed % 2 == 0 ? 4096 : 100'000;
    options.level = GetParam() == LayerCompression::kNone ? 0 : static_cast<int>(seed % 10);
    const auto made = MakeLayerOf({SourceKind::kDirectory, root, ""}, options, WithRoot());
    ASSERT_TRUE(made.ok()) << made.status();
    ExpectShows(ReadDirectory(root), *made);
  }
}

TEST_P(EveryCompression, TheSameTreeGivesTheSameBytesOnAllThreads) {
  ASSERT_EQ(::geteuid(), 0U) << "run as root";
  const TempDir directory;
  const std::string root = directory.File("tree");
  MakeFullTree(root, true);
  // The same tree with inodes and directory entries in another order.
  const std::string copy = directory.File("copy");
  ASSERT_EQ(
      ::system(
          absl::StrCat("cd ", root, " && mkdir ", copy,
                       " && find . -depth -print0 | sort -rz | "
                       "tar --null --no-recursion -T - --xattrs --xattrs-include='*' --format=posix -cf - | "
                       "tar -C ",
                       copy, " --xattrs --xattrs-include='*' --same-owner -xpf -")
              .c_str()),
      0);
  std::vector<absl::StatusOr<MadeLayer>> made(6, absl::UnknownError("not run"));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < made.size(); ++i) {
    threads.emplace_back([&, i] {
      made[i] = MakeLayerOf({SourceKind::kDirectory, i % 2 == 0 ? root : copy, ""}, Options(), WithRoot());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& one : made) {
    ASSERT_TRUE(one.ok()) << one.status();
    EXPECT_TRUE(one->blob == made[0]->blob) << LayerCompressionName(GetParam());
    EXPECT_EQ(one->result.diff_id, made[0]->result.diff_id);
  }
}

TEST_P(EveryCompression, TheSizesOfThePiecesDoNotMatter) {
  const std::string tar =
      MakeTar({Directory("d/"), File("d/a", RandomBytes(20'000, 1)),
               File("d/text", support::TextBytes(700'000)), File("d/b", ""), File("d/c", "short")});
  LayerOptions options = Options();
  options.chunk_size = 300'000;
  for (const int level : {0, 1, 2, 3, 9}) {
    if (GetParam() == LayerCompression::kNone && level > 0) break;
    options.level = level;
    const auto whole = Compress(tar, options, tar.size());
    ASSERT_TRUE(whole.ok()) << whole.status();
    for (const size_t step : {7, 511, 512, 1000, 65'536, 300'001}) {
      const auto pieces = Compress(tar, options, step);
      ASSERT_TRUE(pieces.ok()) << pieces.status();
      EXPECT_TRUE(pieces->blob == whole->blob) << "level " << level << ", pieces of " << step;
    }
  }
}

TEST_P(EveryCompression, TheTarIsKeptByteForByte) {
  // Old dialects, and more after the end than two blocks.
  support::TarMember gnu = File(std::string(150, 'n'), "contents");
  gnu.dialect = support::TarDialect::kGnu;
  support::TarMaker maker;
  maker.Add(gnu).Add(File("second", RandomBytes(1000, 3)));
  for (const std::string& tar : {maker.Finish(true), maker.Finish(false), maker.Unfinished(),
                                 maker.Unfinished() + std::string(512, '\0')}) {
    const auto made = Compress(tar, Options());
    ASSERT_TRUE(made.ok()) << made.status();
    if (GetParam() == LayerCompression::kEstargz) {
      // The entries, then one more, then the end.
      const auto unzipped = [&] {
        std::string bytes;
        const TempDir directory;
        WriteFile(directory.File("b"), made->blob);
        EXPECT_TRUE(ReadTar({SourceKind::kTar, directory.File("b"), ""}, nullptr,
                            [&bytes](absl::Span<const uint8_t> piece) {
                              bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
                              return absl::OkStatus();
                            })
                        .ok());
        return bytes;
      }();
      EXPECT_TRUE(absl::StartsWith(unzipped, maker.Unfinished() + "stargz.index.json"));
      EXPECT_EQ(made->result.diff_id, base::Digest::Of(unzipped));
      EXPECT_EQ(made->result.tar_size, unzipped.size());
      EXPECT_EQ(made->result.annotations.at("io.containers.estargz.uncompressed-size"),
                absl::StrCat(unzipped.size()));
    } else {
      EXPECT_EQ(made->result.diff_id, base::Digest::Of(tar));
      EXPECT_EQ(made->result.tar_size, tar.size());
    }
    const auto read = ReadBack(made->blob, made->result.Descriptor(), made->result.diff_id);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->contents.at("second"), base::Digest::Of(RandomBytes(1000, 3)).ToString());
  }
}

// What overlayfs keeps of changes comes back as overlayfs wants it.
TEST_P(EveryCompression, AnUpperDirectoryComesBackAsItWas) {
  ASSERT_EQ(::geteuid(), 0U) << "run as root";
  const TempDir directory;
  const std::string upper = directory.File("upper");
  ASSERT_TRUE(base::MakeDirectories(upper + "/opaque/inside").ok());
  for (const char* name : {"/gone", "/opaque/inside/gone too"}) {
    ASSERT_EQ(::mknod((upper + name).c_str(), S_IFCHR, 0), 0);
    SetTime(upper + name, 0, 0);
  }
  WriteFile(upper + "/opaque/new", "new");
  SetXattr(upper + "/opaque", "trusted.overlay.opaque", "y");
  const ReadLayer expected = ReadDirectory(upper);
  SetXattr(upper + "/opaque", "trusted.overlay.origin", "mark");
  SetXattr(upper + "/opaque/new", "trusted.overlay.origin", "mark");
  const auto made = MakeLayerOf({SourceKind::kOverlayUpper, upper, ""}, Options(), WithRoot());
  ASSERT_TRUE(made.ok()) << made.status();
  ExpectShows(expected, *made);
}

TEST_P(EveryCompression, AnEmptyTreeIsALayer) {
  const TempDir directory;
  const auto made = MakeLayerOf({SourceKind::kDirectory, directory.path(), ""}, Options());
  ASSERT_TRUE(made.ok()) << made.status();
  const auto read = ReadBack(made->blob, made->result.Descriptor(), made->result.diff_id);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->tree.size(), 1U);  // the root
}

TEST_P(EveryCompression, DamagedTarsAreRefusedByEntry) {
  const std::string tar = MakeTar({File("first", "1"), File("second", std::string(3000, '2'))});
  const absl::Status cut = Compress(tar.substr(0, 2000), Options()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(cut)) << cut;
  EXPECT_TRUE(absl::StrContains(cut.message(), "second")) << cut;
  EXPECT_TRUE(absl::IsInvalidArgument(Compress("", Options()).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Compress(RandomBytes(5000, 1), Options()).status()));
}

TEST_P(EveryCompression, CancellingAndSinkErrorsEndItAndStay) {
  base::CancelToken cancel;
  LayerOptions options = Options();
  options.cancel = &cancel;
  const std::string tar = MakeTar({File("f", RandomBytes(3'000'000, 1))});
  uint64_t calls = 0;
  auto writer = LayerWriter::Create(options, [&](absl::Span<const uint8_t>) {
    ++calls;
    cancel.Cancel();
    return absl::OkStatus();
  });
  ASSERT_TRUE(writer.ok());
  EXPECT_TRUE(absl::IsCancelled((*writer)->Write(AsBytes(tar))));
  EXPECT_TRUE(absl::IsCancelled((*writer)->Finish().status()));
  options.cancel = nullptr;
  writer =
      LayerWriter::Create(options, [](absl::Span<const uint8_t>) { return absl::DataLossError("sink"); });
  EXPECT_EQ((*writer)->Write(AsBytes(tar)), absl::DataLossError("sink"));
  EXPECT_EQ((*writer)->Finish().status(), absl::DataLossError("sink"));
}

TEST_P(EveryCompression, MediaTypesAreThoseOfTheFormat) {
  const auto made = Compress(MakeTar({File("f", "x")}), Options());
  ASSERT_TRUE(made.ok());
  const auto compression = oci::LayerCompression(made->result.MediaType(false));
  EXPECT_EQ(compression, oci::LayerCompression(made->result.MediaType(true)));
  EXPECT_TRUE(absl::StartsWith(made->result.MediaType(true), "application/vnd.docker.image.rootfs.diff.tar"));
  EXPECT_TRUE(absl::StartsWith(made->result.MediaType(false), "application/vnd.oci.image.layer.v1.tar"));
  switch (GetParam()) {
    case LayerCompression::kNone:
      EXPECT_EQ(compression, oci::Compression::kNone);
      break;
    case LayerCompression::kGzip:
    case LayerCompression::kEstargz:
      EXPECT_EQ(compression, oci::Compression::kGzip);
      break;
    default:
      EXPECT_EQ(compression, oci::Compression::kZstd);
  }
}

class WithToc : public EveryCompression {};
INSTANTIATE_TEST_SUITE_P(, WithToc,
                         testing::Values(LayerCompression::kEstargz, LayerCompression::kZstdChunked),
                         [](const auto& info) { return std::string(LayerCompressionName(info.param)); });

TEST_P(WithToc, WhatItCannotHoldIsNamed) {
  support::TarMember sparse = File("holes", std::string(1 << 20, '\0'));
  sparse.sparse = support::SparseStyle::kPax10;
  sparse.runs = {{4096, 512}};
  support::TarMember raw = File("raw\xff", "x");
  raw.dialect = support::TarDialect::kUstar;
  for (const auto& [member, why] : {std::pair{sparse, "holes"}, {raw, "raw\\xff"}}) {
    const absl::Status status = Compress(MakeTar({member}), Options()).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), why)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "use gzip or zstd")) << status;
    LayerOptions plain;
    EXPECT_TRUE(Compress(MakeTar({member}), plain).ok());
  }
}

TEST_P(WithToc, EveryChunkCanBeHadAlone) {
  LayerOptions options = Options();
  options.chunk_size = 10'000;
  const std::string tar = MakeTar({File("big", RandomBytes(95'000, 1)), File("exact", RandomBytes(20'000, 2)),
                                   File("zeros", std::string(50'000, '\0')), File("small", "s")});
  const auto made = Compress(tar, options);
  ASSERT_TRUE(made.ok()) << made.status();
  const auto read = ReadBack(made->blob, made->result.Descriptor(), made->result.diff_id);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->contents.size(), 4U);
  EXPECT_EQ(read->contents.at("big"), base::Digest::Of(RandomBytes(95'000, 1)).ToString());
  EXPECT_EQ(read->contents.at("zeros"), base::Digest::Of(std::string(50'000, '\0')).ToString());
}

TEST(LayerWriter, AnOwnTableOfContentsInTheTreeIsRefused) {
  LayerOptions options;
  options.compression = LayerCompression::kEstargz;
  const absl::Status status = Compress(MakeTar({File("./stargz.index.json", "{}")}), options).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "stargz.index.json")) << status;
}

TEST(LayerWriter, OptionsOutOfRangeAreRefused) {
  const auto create = [](LayerCompression compression, int level, uint64_t chunk) {
    LayerOptions options;
    options.compression = compression;
    options.level = level;
    options.chunk_size = chunk;
    return LayerWriter::Create(options, [](absl::Span<const uint8_t>) { return absl::OkStatus(); }).status();
  };
  EXPECT_TRUE(create(LayerCompression::kGzip, 9, 4096).ok());
  EXPECT_TRUE(create(LayerCompression::kZstd, 19, 16 << 20).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(create(LayerCompression::kGzip, 10, 4096)));
  EXPECT_TRUE(absl::IsInvalidArgument(create(LayerCompression::kGzip, -1, 4096)));
  EXPECT_TRUE(absl::IsInvalidArgument(create(LayerCompression::kZstd, 20, 4096)));
  EXPECT_TRUE(absl::IsInvalidArgument(create(LayerCompression::kNone, 1, 4096)));
  EXPECT_TRUE(absl::IsInvalidArgument(create(LayerCompression::kEstargz, 1, 4095)));
  EXPECT_TRUE(absl::IsInvalidArgument(create(LayerCompression::kEstargz, 1, (16 << 20) + 1)));
  for (const LayerCompression compression : kAll) {
    EXPECT_EQ(*ParseLayerCompression(LayerCompressionName(compression)), compression);
  }
  EXPECT_TRUE(absl::StrContains(ParseLayerCompression("lzma").status().message(), "estargz"));
}

TEST(LayerWriter, LevelsTradeTimeForSize) {
  const std::string tar =
      MakeTar({File("f", support::TextBytes(1'500'000)), File("g", RandomBytes(500'000, 1))});
  for (const LayerCompression compression : {LayerCompression::kGzip, LayerCompression::kZstd}) {
    LayerOptions options;
    options.compression = compression;
    std::vector<size_t> sizes;
    const int highest = compression == LayerCompression::kZstd ? 19 : 9;
    for (const int level : {1, 6, highest}) {
      options.level = level;
      const auto made = Compress(tar, options);
      ASSERT_TRUE(made.ok()) << made.status();
      sizes.push_back(made->blob.size());
      ExpectShows(*ReadStreamed(made->blob, made->result.Descriptor(), made->result.diff_id), *made);
    }
    EXPECT_GE(sizes.front(), sizes.back());
  }
}

TEST(LayerWriter, PrioritizedFilesLieBeforeTheLandmark) {
  const TempDir directory;
  for (const char* name : {"a", "b", "c"}) WriteFile(directory.File(name), RandomBytes(50'000, 1));
  LayerOptions options;
  options.compression = LayerCompression::kEstargz;
  TreeOptions tree;
  tree.first = {"c"};
  tree.landmark = Landmark::kPrefetch;
  const auto made = MakeLayerOf({SourceKind::kDirectory, directory.path(), ""}, options, tree);
  ASSERT_TRUE(made.ok()) << made.status();
  ExpectShows(*ReadStreamed(made->blob, made->result.Descriptor(), made->result.diff_id), *made);
  EXPECT_TRUE(absl::IsInvalidArgument(
      MakeLayerOf({SourceKind::kTar, directory.File("a"), ""}, options, tree).status()));
}

TEST(LayerWriter, MemoryDoesNotGrowWithTheFile) {
  const TempDir directory;
  WriteFile(directory.File("huge"), "");
  ASSERT_EQ(::truncate(directory.File("huge").c_str(), off_t{256} << 20), 0);
  rusage before{};
  ASSERT_EQ(::getrusage(RUSAGE_SELF, &before), 0);
  for (const LayerCompression compression : {LayerCompression::kZstd, LayerCompression::kZstdChunked}) {
    LayerOptions options;
    options.compression = compression;
    options.level = 1;
    const auto made = MakeLayerOf({SourceKind::kDirectory, directory.path(), ""}, options);
    ASSERT_TRUE(made.ok()) << made.status();
    EXPECT_GT(made->result.tar_size, uint64_t{256} << 20);
  }
  rusage after{};
  ASSERT_EQ(::getrusage(RUSAGE_SELF, &after), 0);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 48 << 10) << "KiB";
}

}  // namespace
}  // namespace lazyblob::exporter
