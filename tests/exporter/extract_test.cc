#include "exporter/extract.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/thread_pool.h"
#include "exporter/layer_writer.h"
#include "tests/exporter/layer_reading.h"
#include "tests/exporter/local_blob.h"
#include "tests/exporter/tree_making.h"
#include "tests/support/gate.h"
#include "tests/support/layer_maker.h"
#include "tests/support/tar_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::exporter {
namespace {

using support::Directory;
using support::File;
using support::HardLink;
using support::OpaqueMarker;
using support::Symlink;
using support::TarMember;
using support::TempDir;
using support::Whiteout;

using Members = std::vector<TarMember>;

ExtractLayer LayerOf(const Members& members, bool local = true,
                     oci::Compression compression = oci::Compression::kGzip) {
  const support::Layer layer = support::MakeLayer(support::MakeTar(members), compression);
  return {std::make_shared<TestBlob>(layer.descriptor, layer.blob, local), layer.diff_id};
}

absl::StatusOr<ExtractSummary> Extract(const std::vector<Members>& layers, const std::string& directory,
                                       bool local = true) {
  std::vector<ExtractLayer> blobs;
  for (const Members& members : layers) blobs.push_back(LayerOf(members, local));
  return ExtractLayers(blobs, directory, {});
}

std::string Contents(const std::string& path) { return base::ReadFile(path, 1 << 20).value_or("<none>"); }
bool Exists(const std::string& path) {
  struct stat st{};
  return lstat(path.c_str(), &st) == 0;
}
struct stat StatOf(const std::string& path) {
  struct stat st{};
  EXPECT_EQ(lstat(path.c_str(), &st), 0) << path;
  return st;
}

TreeOptions WithRoot() {
  TreeOptions options;
  options.root_entry = true;
  return options;
}

TEST(Extract, APackedTreeComesOutAsItWas) {
  for (const bool local : {true, false}) {
    for (const LayerCompression compression :
         {LayerCompression::kNone, LayerCompression::kGzip, LayerCompression::kZstd}) {
      TempDir dir;
      const std::string tree = dir.File("tree");
      ASSERT_EQ(base::MakeDirectories(tree), absl::OkStatus());
      MakeFullTree(tree);
      const absl::StatusOr<MadeLayer> made =
          MakeLayerOf({SourceKind::kDirectory, tree, ""}, {.compression = compression}, WithRoot());
      ASSERT_TRUE(made.ok()) << made.status();
      const ExtractLayer layer = {std::make_shared<TestBlob>(made->result.Descriptor(), made->blob, local),
                                  made->result.diff_id};
      const absl::StatusOr<ExtractSummary> summary = ExtractLayers({layer}, dir.File("out"), {});
      ASSERT_TRUE(summary.ok()) << summary.status();
      EXPECT_EQ(DifferenceOf(ReadDirectory(tree), ReadDirectory(dir.File("out"))), "");
    }
  }
}

TEST(Extract, RandomTreesComeOutAsTheyWere) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    TempDir dir;
    const std::string tree = dir.File("tree");
    ASSERT_EQ(base::MakeDirectories(tree), absl::OkStatus());
    MakeRandomTree(tree, seed);
    const absl::StatusOr<MadeLayer> made =
        MakeLayerOf({SourceKind::kDirectory, tree, ""}, {.compression = LayerCompression::kZstd}, WithRoot());
    ASSERT_TRUE(made.ok()) << made.status();
    const ExtractLayer layer = {std::make_shared<TestBlob>(made->result.Descriptor(), made->blob, false),
                                made->result.diff_id};
    ASSERT_EQ(ExtractLayers({layer}, dir.File("out"), {}).status(), absl::OkStatus());
    EXPECT_EQ(DifferenceOf(ReadDirectory(tree), ReadDirectory(dir.File("out"))), "") << seed;
  }
}

TEST(Extract, AWhiteoutDeletesFromLowerLayersOnly) {
  TempDir dir;
  const std::string out = dir.File("out");
  ASSERT_EQ(Extract({{Directory("d"), File("d/low", "1"), File("d/both", "1"), File("gone", "1")},
                     {File("d/both", "2"), Whiteout("d/both"), Whiteout("d/low"), Whiteout("gone"),
                      Whiteout("never"), Whiteout("no/such/dir")}},
                    out)
                .status(),
            absl::OkStatus());
  EXPECT_EQ(Contents(out + "/d/both"), "2");
  EXPECT_FALSE(Exists(out + "/d/low"));
  EXPECT_FALSE(Exists(out + "/gone"));
  EXPECT_FALSE(Exists(out + "/no"));
}

TEST(Extract, AWhiteoutOfADirectoryThatTheLayerHasTooHidesWhatWasInIt) {
  TempDir dir;
  const std::string out = dir.File("out");
  ASSERT_EQ(Extract({{Directory("d"), File("d/old", "1"), Directory("d/sub"), File("d/sub/x", "1")},
                     {Directory("d", 0700), File("d/new", "2"), Whiteout("d")}},
                    out)
                .status(),
            absl::OkStatus());
  EXPECT_EQ(*base::ListDirectory(out + "/d"), std::vector<std::string>{"new"});
}

TEST(Extract, AnOpaqueMarkerHidesLowerLayersWhereverItStands) {
  for (const bool first : {true, false}) {
    TempDir dir;
    const std::string out = dir.File("out");
    Members upper = {Directory("d"), File("d/new", "2"), File("d/deep/new", "2")};
    upper.insert(first ? upper.begin() + 1 : upper.end(), OpaqueMarker("d"));
    ASSERT_EQ(
        Extract({{Directory("d"), File("d/old", "1"), Directory("d/deep"), File("d/deep/old", "1")}, upper},
                out)
            .status(),
        absl::OkStatus());
    EXPECT_EQ(*base::ListDirectory(out + "/d"), (std::vector<std::string>{"deep", "new"}));
    EXPECT_EQ(*base::ListDirectory(out + "/d/deep"), std::vector<std::string>{"new"});
  }
}

TEST(Extract, TypesReplaceEachOther) {
  TempDir dir;
  const std::string out = dir.File("out");
  ASSERT_EQ(Extract({{Directory("a"), File("a/x", "1"), File("b", "1"), Symlink("c", "a"), Symlink("s", "b")},
                     {File("a", "2"), Directory("b"), Directory("c"), File("s", "2")}},
                    out)
                .status(),
            absl::OkStatus());
  EXPECT_EQ(Contents(out + "/a"), "2");
  EXPECT_TRUE(S_ISDIR(StatOf(out + "/b").st_mode));
  EXPECT_TRUE(S_ISDIR(StatOf(out + "/c").st_mode));
  EXPECT_TRUE(S_ISREG(StatOf(out + "/s").st_mode));
}

TEST(Extract, DirectoriesKeepTheirTimesWhenLowerLayersContentsChange) {
  TempDir dir;
  const std::string out = dir.File("out");
  Members lower = {Directory("d"), Directory("d/e"), File("d/e/f", "1")};
  lower[0].mtime = 1'000'000'001;
  lower[0].mtime_nanoseconds = 7;
  lower[1].mtime = 1'000'000'002;
  ASSERT_EQ(Extract({lower, {Whiteout("d/e/f"), File("d/e/g", "2"), File("i/j", "2")}}, out).status(),
            absl::OkStatus());
  EXPECT_EQ(StatOf(out + "/d").st_mtim.tv_sec, 1'000'000'001);
  EXPECT_EQ(StatOf(out + "/d").st_mtim.tv_nsec, 7);
  EXPECT_EQ(StatOf(out + "/d/e").st_mtim.tv_sec, 1'000'000'002);
  EXPECT_EQ(StatOf(out + "/i").st_mtim.tv_sec, 0);
}

TEST(Extract, AttributesOfADirectoryAreThoseOfTheTopmostLayer) {
  TempDir dir;
  const std::string out = dir.File("out");
  Members lower = {Directory("d", 0755)};
  lower[0].xattrs = {{"user.old", "1"}, {"user.both", "1"}};
  Members upper = {Directory("d", 01777)};
  upper[0].xattrs = {{"user.both", "2"}};
  upper[0].uid = 5;
  ASSERT_EQ(Extract({lower, upper}, out).status(), absl::OkStatus());
  const ReadLayer tree = ReadDirectory(out + "/d");
  TempDir expected;
  const std::string other = expected.File("out");
  ASSERT_EQ(Extract({upper}, other).status(), absl::OkStatus());
  EXPECT_EQ(StatOf(out + "/d").st_mode & 07777, 01777U);
  EXPECT_EQ(DifferenceOf(ReadDirectory(other + "/d"), tree), "");
}

TEST(Extract, OnlyAnEmptyDirectoryIsTaken) {
  TempDir dir;
  ASSERT_EQ(base::WriteFileAtomically(dir.File("mine"), "x"), absl::OkStatus());
  const absl::Status refused = Extract({{File("a", "1")}}, dir.path()).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(absl::StrContains(refused.message(), "mine")) << refused;
  EXPECT_EQ(Contents(dir.File("mine")), "x");
}

TEST(Extract, AFailureLeavesNothing) {
  const support::Layer good = support::MakeLayer(support::MakeTar({File("a", "1")}), oci::Compression::kGzip);
  const support::Layer other =
      support::MakeLayer(support::MakeTar({File("b", "1")}), oci::Compression::kGzip);
  for (const bool local : {true, false}) {
    for (const bool blob : {true, false}) {
      TempDir dir;
      const std::string out = dir.File("out");
      oci::Descriptor lie = good.descriptor;
      if (blob) lie.digest = other.descriptor.digest;
      const ExtractLayer bad = {std::make_shared<TestBlob>(lie, good.blob, local),
                                blob ? good.diff_id : other.diff_id};
      const absl::Status failed =
          ExtractLayers({LayerOf({Directory("d"), File("d/x", "1")}), bad}, out, {}).status();
      EXPECT_EQ(failed.code(), absl::StatusCode::kDataLoss) << failed;
      EXPECT_TRUE(absl::StrContains(failed.message(), "layer 2 of 2")) << failed;
      EXPECT_FALSE(Exists(out));
      ASSERT_EQ(mkdir(out.c_str(), 0750), 0);
      EXPECT_FALSE(ExtractLayers({bad}, out, {}).ok());
      EXPECT_TRUE(base::ListDirectory(out)->empty());
      EXPECT_EQ(StatOf(out).st_mode & 0777, 0750U);
    }
  }
}

TEST(Extract, LayersAreFetchedAtTheSameTimeAndUnpackedInOrder) {
  TempDir dir;
  support::Gate gate;
  std::vector<ExtractLayer> layers;
  for (int i = 0; i < 3; ++i) {
    layers.push_back(
        LayerOf({File("f", absl::StrCat(i)), File(absl::StrCat("only", i), "x")}, /*local=*/false));
    static_cast<TestBlob*>(layers.back().blob.get())->before_read = [&](const contentstore::FetchContext&) {
      return gate.Pass() ? absl::OkStatus() : absl::DeadlineExceededError("nobody opened");
    };
  }
  std::vector<size_t> done;
  ExtractOptions options;
  options.parallel_fetches = 3;
  options.progress = [&](const ExtractProgress& progress) {
    if (progress.done) done.push_back(progress.layer);
  };
  absl::Status status;
  {
    base::ThreadPool pool("extract", 1);
    pool.Schedule([&] { status = ExtractLayers(layers, dir.File("out"), options).status(); });
    EXPECT_TRUE(gate.AwaitWaiting(3)) << "they are fetched one after the other";
    gate.Open();
  }
  ASSERT_EQ(status, absl::OkStatus());
  EXPECT_EQ(done, (std::vector<size_t>{0, 1, 2}));
  EXPECT_EQ(Contents(dir.File("out/f")), "2");
}

TEST(Extract, WhatIsNotToBeCommittedLeavesNothing) {
  TempDir dir;
  ExtractOptions options;
  options.prepared = [&] {
    EXPECT_TRUE(Exists(dir.File("out/f")));
    return absl::AbortedError("another destination failed");
  };
  const std::vector<ExtractLayer> layers = {LayerOf({File("f", "1")})};
  EXPECT_TRUE(absl::IsAborted(ExtractLayers(layers, dir.File("out"), options).status()));
  EXPECT_FALSE(Exists(dir.File("out")));
}

TEST(Extract, CancellingEndsItAndLeavesNothing) {
  TempDir dir;
  ExtractOptions options;
  options.context.cancel = std::make_shared<base::CancelToken>();
  ExtractLayer layer = LayerOf({File("f", "1")}, /*local=*/false);
  static_cast<TestBlob*>(layer.blob.get())->before_read = [&](const contentstore::FetchContext& context) {
    options.context.cancel->Cancel();
    return context.cancel->cancelled() ? absl::CancelledError("cancelled") : absl::InternalError("not told");
  };
  EXPECT_EQ(ExtractLayers({layer}, dir.File("out"), options).status().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(Exists(dir.File("out")));
}

// Layers that try to get out of the directory, or to change what is not theirs. Beside the directory lies a
// canary tree, which they name in every way there is; the cases are those of containerd's archive tests.
struct Breakout {
  const char* name;
  Members members;
  bool refused = false;
  std::map<std::string, std::string> expected = {};  // files in the directory afterwards
};

std::vector<Breakout> SymlinkBreakouts() {
  const TarMember etc = Directory("etc");
  const TarMember passwd = File("etc/passwd", "inside");
  return {
      {"SymlinkAbsolute",
       {etc, passwd, Symlink("localetc", "/etc"), File("localetc/unbroken", "x")},
       false,
       {{"etc/unbroken", "x"}}},
      {"SymlinkUpAndOut",
       {etc, Directory("dummy"), Symlink("localetc", "/dummy/../../../../../../etc"),
        File("localetc/unbroken", "x")},
       false,
       {{"etc/unbroken", "x"}}},
      {"SymlinkToCanary", {Symlink("l", "CANARY"), File("l/new", "x")}, false, {}},
      {"SymlinkToCanaryRelative",
       {Symlink("l", "../canary"), File("l/new", "x")},
       false,
       {{"canary/new", "x"}}},
      {"SymlinkMultipleAbsolute",
       {etc, Symlink("one", "/two"), Symlink("two", "/etc"), File("one/unbroken", "x")},
       false,
       {{"etc/unbroken", "x"}}},
      {"SymlinkMultipleRelative",
       {Directory("a"), Symlink("a/one", "../two"), Symlink("two", "../../../etc"), etc,
        File("a/one/unbroken", "x")},
       false,
       {{"etc/unbroken", "x"}}},
      {"SymlinkEmptyFile",
       {etc, File("etc/emptied", "notempty"), Symlink("localetc", "/etc"), File("localetc/emptied", "")},
       false,
       {{"etc/emptied", ""}}},
      {"SymlinkEmptyFilename", {etc, passwd, Symlink("", "/etc")}, true},
      {"SymlinkParentDirectory", {etc, passwd, Symlink("etc/..", "/etc")}, true},
      {"SymlinkParentRelative",
       {etc, passwd, Symlink("localetc/../x", "/etc"), File("x/passwd", "new")},
       false,
       {{"etc/passwd", "new"}}},
      {"SymlinkSlashEnded",
       {etc, Directory("localetc/"), Symlink("localetc/", "/etc"), File("localetc/unbroken", "x")},
       false,
       {{"etc/unbroken", "x"}}},
      {"SymlinkOverrideDirectory",
       {etc, Directory("d"), File("d/f", "1"), Symlink("d", "/etc"), File("d/unbroken", "x")},
       false,
       {{"etc/unbroken", "x"}}},
      {"SymlinkOverridePath",
       {etc, Directory("a/b"), Symlink("a", "/etc"), File("a/unbroken", "x")},
       false,
       {{"etc/unbroken", "x"}}},
      {"SymlinkDangling", {Symlink("l", "/no/where"), File("l/f", "x")}, false, {{"no/where/f", "x"}}},
      {"SymlinkLoop", {Symlink("a", "b"), Symlink("b", "a"), File("a/f", "x")}, true},
      {"SymlinkMagic",
       {Symlink("l", "/proc/self/root"), File("l/canary_new", "x")},
       false,
       {{"proc/self/root/canary_new", "x"}}},
  };
}

std::vector<Breakout> HardlinkBreakouts() {
  const TarMember etc = Directory("etc");
  const TarMember passwd = File("etc/passwd", "inside");
  return {
      {"DirectoryOverrideSymlink",
       {etc, passwd, Symlink("localetc", "/etc"), Directory("localetc"), File("localetc/f", "x")},
       false,
       {{"localetc/f", "x"}, {"etc/passwd", "inside"}}},
      {"DirectoryOverrideSymlinkAndHardlink",
       {etc, passwd, Symlink("localetc", "etc"), HardLink("hard", "localetc"), Directory("localetc"),
        File("localetc/f", "x")},
       false,
       {{"localetc/f", "x"}}},
      {"HardlinkRelative",
       {etc, passwd, Directory("breakouts"), HardLink("breakouts/p", "../etc/passwd")},
       true},
      {"HardlinkDownAndOut", {etc, passwd, HardLink("p", "a/../../../../etc/passwd")}, true},
      {"HardlinkAbsolute",
       {etc, passwd, Symlink("localetc", "/etc"), HardLink("p", "/localetc/passwd")},
       false,
       {{"p", "inside"}}},
      {"HardlinkToCanary", {HardLink("p", "CANARY/secret")}, true},
      {"HardlinkThroughSymlink", {Symlink("l", "CANARY"), HardLink("p", "l/secret")}, true},
      {"HardlinkSymlinkBeforeCreateTarget",
       {etc, Symlink("localpasswd", "/etc/passwd"), HardLink("h", "localpasswd"), passwd},
       false,
       {{"etc/passwd", "inside"}}},
      {"HardlinkSymlinkRelative",
       {Symlink("s", "../../../../../canary/secret"), HardLink("h", "s"), File("h", "new")},
       false,
       {{"h", "new"}}},
      {"HardlinkSymlinkChmod",
       {Symlink("s", "CANARY/secret"), HardLink("h", "s"), File("h", "new", 0777)},
       false,
       {{"h", "new"}}},
      {"HardlinkToDirectory", {etc, HardLink("h", "etc")}, true},
  };
}

std::vector<Breakout> PathBreakouts() {
  const TarMember etc = Directory("etc");
  const TarMember passwd = File("etc/passwd", "inside");
  return {
      {"PathUpAndOut", {File("../canary/new", "x")}, true},
      {"PathUpAndOutDeep", {Directory("d"), File("d/../../canary/new", "x")}, true},
      {"PathAbsolute", {File("/canary/new", "x")}, false, {{"canary/new", "x"}}},
      {"WhiteoutRootParent", {File(".wh...", "")}, true},
      {"WhiteoutParent", {etc, File("etc/.wh...", "")}, true},
      {"WhiteoutRoot", {File(".wh..", "")}, true},
      {"WhiteoutCurrentDirectory", {etc, File("etc/.wh..", "")}, true},
      {"WhiteoutEmpty", {etc, File("etc/.wh.", "")}, true},
      {"WhiteoutSymlink", {Symlink("l", "../canary"), File(".wh.l", "")}, false, {}},
      {"WhiteoutSymlinkPath", {Symlink("l", "CANARY"), File("l/.wh.secret", "")}, false, {}},
      {"WhiteoutSymlinkPathRelative", {Symlink("l", "../canary"), File("l/.wh.secret", "")}, false, {}},
      {"OpaqueSymlinkPath", {Symlink("l", "../canary"), File("l/.wh..wh..opq", "")}, false, {}},
      {"WhiteoutDirectoryName", {etc, passwd, File(".wh.etc/x", "x")}, false, {{"etc/passwd", "inside"}}},
      {"WhiteoutDeadSymlinkParent", {Symlink("l", "/no/where"), File("l/.wh.f", "")}, false, {}},
      {"WhiteoutRelativePath", {etc, passwd, File("etc/../.wh.etc", "")}, false, {{"etc/passwd", "inside"}}},
      {"FileReplacesRoot", {File("./", "x")}, true},
  };
}

std::vector<Breakout> Breakouts() {
  std::vector<Breakout> all = SymlinkBreakouts();
  for (const auto& more : {HardlinkBreakouts(), PathBreakouts()})
    all.insert(all.end(), more.begin(), more.end());
  return all;
}

TEST(Extract, BreakoutsStayInside) {
  for (const bool split : {false, true}) {
    for (Breakout breakout : Breakouts()) {
      SCOPED_TRACE(breakout.name);
      TempDir dir;
      const std::string canary = dir.File("canary");
      ASSERT_EQ(base::MakeDirectories(canary), absl::OkStatus());
      WriteFile(canary + "/secret", "secret");
      ASSERT_EQ(chmod((canary + "/secret").c_str(), 0600), 0);
      SetTime(canary + "/secret", 1'000'000'000, 1);
      SetTime(canary, 1'000'000'000, 2);
      const ReadLayer before = ReadDirectory(canary);
      for (TarMember& member : breakout.members) {
        if (absl::StartsWith(member.link, "CANARY")) member.link.replace(0, 6, canary);
      }
      std::vector<Members> layers = {breakout.members};
      if (split) {  // as if by several layers: the last member in one of its own
        layers = {Members(breakout.members.begin(), breakout.members.end() - 1), {breakout.members.back()}};
      }
      const std::string out = dir.File("out");
      const absl::Status status = Extract(layers, out).status();
      EXPECT_EQ(DifferenceOf(before, ReadDirectory(canary)), "");
      EXPECT_EQ(StatOf(canary + "/secret").st_nlink, 1U);
      EXPECT_EQ(status.ok(), !breakout.refused) << status;
      EXPECT_EQ(status.ok(), Exists(out));
      if (split && absl::StartsWith(breakout.name, "Whiteout")) continue;
      for (const auto& [path, contents] : breakout.expected)
        EXPECT_EQ(Contents(out + "/" + path), contents) << path;
    }
  }
}

TEST(Extract, AttributesThatWouldSteerAnOverlayAreDropped) {
  TempDir dir;
  const std::string out = dir.File("out");
  TarMember directory = Directory("d");
  directory.xattrs = {{"trusted.overlay.redirect", "/etc"}, {"user.overlay.opaque", "y"}, {"user.kept", "1"}};
  ASSERT_EQ(Extract({{directory}}, out).status(), absl::OkStatus());
  TempDir plain;
  directory.xattrs = {{"user.kept", "1"}};
  ASSERT_EQ(Extract({{directory}}, plain.File("out")).status(), absl::OkStatus());
  EXPECT_EQ(DifferenceOf(ReadDirectory(plain.File("out/d")), ReadDirectory(out + "/d")), "");
}

TEST(Extract, DamagedLayersNameTheirEntry) {
  TempDir dir;
  std::string tar = support::MakeTar({File("good", "1"), File("cut/short", std::string(5000, 'x'))});
  tar.resize(3000);
  const support::Layer layer = support::MakeLayer(tar, oci::Compression::kZstd);
  const ExtractLayer bad = {std::make_shared<TestBlob>(layer.descriptor, layer.blob, true), layer.diff_id};
  const absl::Status status = ExtractLayers({bad}, dir.File("out"), {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "cut/short")) << status;
}

}  // namespace
}  // namespace lazyblob::exporter
