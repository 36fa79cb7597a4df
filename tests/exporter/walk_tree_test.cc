#include "exporter/tree.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/exporter/layer_reading.h"
#include "tests/exporter/tree_making.h"
#include "tests/support/layer_maker.h"
#include "tests/support/tar_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::exporter {
namespace {

using layer::Entry;
using layer::EntryType;
using support::TempDir;
using testing::ElementsAre;

// Keeps what it gets, and may do something at each entry or piece of data.
class Recorder : public TreeSink {
 public:
  absl::Status Begin(const Entry& entry) override {
    entries.push_back(entry);
    data.emplace_back();
    return on_begin ? on_begin(entry) : absl::OkStatus();
  }
  absl::Status Data(absl::Span<const uint8_t> bytes) override {
    EXPECT_FALSE(bytes.empty());
    EXPECT_LE(bytes.size(), 1U << 20);
    data.back().append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return on_data ? on_data() : absl::OkStatus();
  }

  std::vector<std::string> Paths() const {
    std::vector<std::string> paths;
    for (const Entry& entry : entries) paths.push_back(entry.path);
    return paths;
  }
  const Entry* Find(absl::string_view path) const {
    for (const Entry& entry : entries) {
      if (entry.path == path) return &entry;
    }
    return nullptr;
  }

  std::vector<Entry> entries;
  std::vector<std::string> data;
  std::function<absl::Status(const Entry&)> on_begin;
  std::function<absl::Status()> on_data;
};

class TreeTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(::geteuid(), 0U) << "these tests make devices and trusted attributes: run them as root";
    ASSERT_TRUE(base::MakeDirectories(root_).ok());
  }
  std::string At(absl::string_view path) const { return absl::StrCat(root_, "/", path); }
  absl::Status Walk(const TreeOptions& options = {}, SourceKind kind = SourceKind::kDirectory,
                    const std::string& target = "") {
    recorder_.entries.clear();
    recorder_.data.clear();
    const Source source{kind, root_, target};
    auto summary = WalkTree(source, options, &recorder_);
    if (summary.ok()) summary_ = *summary;
    return summary.status();
  }

  const TempDir directory_;
  const std::string root_ = directory_.File("tree");
  Recorder recorder_;
  TreeSummary summary_;
};

TEST_F(TreeTest, EntriesComeSortedByBytesEachDirectoryBeforeItsContents) {
  for (const char* name : {"b", "a", "a/z", "a/A", "a-b", "\xc3\xa4"})
    ASSERT_TRUE(base::MakeDirectories(At(name)).ok());
  WriteFile(At("a/file"), "x");
  ASSERT_TRUE(Walk().ok());
  EXPECT_THAT(recorder_.Paths(), ElementsAre("a/", "a/A/", "a/file", "a/z/", "a-b/", "b/", "\xc3\xa4/"));
  EXPECT_EQ(summary_.entries, 7U);
  EXPECT_EQ(summary_.data_bytes, 1U);
}

TEST_F(TreeTest, TheRootHasAnEntryWhenAskedOrWhenThereIsATarget) {
  WriteFile(At("f"), "");
  TreeOptions options;
  options.root_entry = true;
  ASSERT_TRUE(Walk(options).ok());
  EXPECT_THAT(recorder_.Paths(), ElementsAre("./", "f"));
  ASSERT_TRUE(Walk({}, SourceKind::kDirectory, "/opt//app/").ok());
  EXPECT_THAT(recorder_.Paths(), ElementsAre("opt/app/", "opt/app/f"));
  options.root_entry = false;
  ASSERT_TRUE(Walk(options, SourceKind::kDirectory, "opt/app").ok());
  EXPECT_THAT(recorder_.Paths(), ElementsAre("opt/app/f"));
  EXPECT_TRUE(absl::IsInvalidArgument(Walk({}, SourceKind::kDirectory, "a/../b")));
}

TEST_F(TreeTest, TheFirstNameOfAFileHasItTheOthersAreLinks) {
  WriteFile(At("m"), "contents");
  SetXattr(At("m"), "user.x", "1");
  ASSERT_EQ(::link(At("m").c_str(), At("z").c_str()), 0);
  ASSERT_EQ(::link(At("m").c_str(), At("b").c_str()), 0);
  ASSERT_EQ(::link(At("m").c_str(), directory_.File("outside").c_str()), 0);
  WriteFile(At("n"), "one name here, one outside");
  ASSERT_EQ(::link(At("n").c_str(), directory_.File("other").c_str()), 0);
  ASSERT_TRUE(Walk({}, SourceKind::kDirectory, "t").ok());
  ASSERT_THAT(recorder_.Paths(), ElementsAre("t/", "t/b", "t/m", "t/n", "t/z"));
  EXPECT_EQ(recorder_.entries[1].type, EntryType::kRegular);
  EXPECT_EQ(recorder_.data[1], "contents");
  EXPECT_EQ(recorder_.entries[1].xattrs.size(), 1U);
  for (const int i : {2, 4}) {
    EXPECT_EQ(recorder_.entries[i].type, EntryType::kHardLink);
    EXPECT_EQ(recorder_.entries[i].link_target, "t/b");
    EXPECT_EQ(recorder_.entries[i].size, 0U);
    EXPECT_TRUE(recorder_.entries[i].xattrs.empty());
  }
  EXPECT_EQ(recorder_.entries[3].type, EntryType::kRegular);
}

TEST_F(TreeTest, AttributesOfTheHostAreLeftOut) {
  WriteFile(At("f"), "x");
  SetXattr(At("f"), "user.keep", "1");
  SetXattr(At("f"), "trusted.drop", "2");
  SetXattr(At("f"), "user.overlay.origin", "3");
  SetXattr(At("f"), "security.selinux", "system_u:object_r:etc_t:s0");
  SetXattr(At("f"), "security.capability",
           absl::string_view("\1\0\0\2\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20));
  ASSERT_TRUE(Walk().ok());
  std::vector<std::string> names;
  for (const auto& [name, value] : recorder_.entries[0].xattrs) names.push_back(name);
  EXPECT_THAT(names, ElementsAre("security.capability", "user.keep"));
}

TEST_F(TreeTest, SocketsAreSkippedAndCounted) {
  const base::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // A name relative to here: the directory's own may be too long.
  const std::string path = "./socket-of-tree-test";
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  ASSERT_EQ(::chdir(root_.c_str()), 0);
  ASSERT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(::chdir("/"), 0);
  WriteFile(At("f"), "");
  ASSERT_TRUE(Walk().ok());
  EXPECT_THAT(recorder_.Paths(), ElementsAre("f"));
  EXPECT_EQ(summary_.sockets_skipped, 1U);
}

TEST_F(TreeTest, SourceDateEpochOnlyLowersTimes) {
  WriteFile(At("early"), "");
  WriteFile(At("late"), "");
  WriteFile(At("same"), "");
  SetTime(At("early"), 999, 5);
  SetTime(At("late"), 5000, 5);
  SetTime(At("same"), 1000, 5);
  TreeOptions options;
  options.latest_mtime = 1000;
  ASSERT_TRUE(Walk(options).ok());
  EXPECT_EQ(recorder_.entries[0].mtime_seconds, 999);
  EXPECT_EQ(recorder_.entries[0].mtime_nanoseconds, 5U);
  for (const int i : {1, 2}) {
    EXPECT_EQ(recorder_.entries[i].mtime_seconds, 1000);
    EXPECT_EQ(recorder_.entries[i].mtime_nanoseconds, 0U);
  }
}

TEST_F(TreeTest, HolesComeAsZeros) {
  WriteFile(At("sparse"), "");
  const auto fd = base::OpenFile(At("sparse"), O_WRONLY);
  ASSERT_TRUE(fd.ok());
  ASSERT_TRUE(base::PwriteFull(fd->get(), 3 << 20, AsBytes("middle")).ok());
  ASSERT_EQ(::ftruncate(fd->get(), 7'000'001), 0);
  ASSERT_TRUE(Walk().ok());
  std::string expected(7'000'001, '\0');
  expected.replace(3 << 20, 6, "middle");
  EXPECT_TRUE(recorder_.data[0] == expected);
}

// 1 TiB of holes would take minutes to read, and no time to skip.
TEST_F(TreeTest, HolesAreNotReadFromDisk) {
  WriteFile(At("huge"), "");
  ASSERT_EQ(::truncate(At("huge").c_str(), off_t{1} << 40), 0);
  uint64_t pieces = 0;
  recorder_.on_data = [&] {
    recorder_.data.back().clear();
    return ++pieces == 1000 ? absl::DataLossError("enough") : absl::OkStatus();
  };
  EXPECT_EQ(Walk(), absl::DataLossError("enough"));
  EXPECT_EQ(pieces, 1000U);
}

TEST_F(TreeTest, NoLinkIsFollowed) {
  WriteFile(directory_.File("secret"), "secret");
  ASSERT_EQ(::symlink("../secret", At("link").c_str()), 0);
  ASSERT_EQ(::symlink("..", At("up").c_str()), 0);
  ASSERT_TRUE(Walk().ok());
  EXPECT_THAT(recorder_.Paths(), ElementsAre("link", "up"));
  EXPECT_EQ(recorder_.entries[0].link_target, "../secret");
  EXPECT_EQ(recorder_.data[0], "");
  TreeOptions options;
  options.first = {"up/secret"};
  EXPECT_TRUE(absl::IsNotFound(Walk(options)));
}

TEST_F(TreeTest, WhatWouldDeleteFromLowerLayersIsRefused) {
  WriteFile(At(".wh.victim"), "");
  absl::Status status = Walk();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), ".wh.victim")) << status;
  ASSERT_EQ(::unlink(At(".wh.victim").c_str()), 0);
  ASSERT_EQ(::mknod(At("gone").c_str(), S_IFCHR, 0), 0);
  status = Walk();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "gone")) << status;
}

TEST_F(TreeTest, OverlayMarksBecomeWhiteoutsAndOpaqueMarkers) {
  ASSERT_TRUE(base::MakeDirectories(At("dir/sub")).ok());
  ASSERT_TRUE(base::MakeDirectories(At("user")).ok());
  ASSERT_EQ(::mknod(At("gone").c_str(), S_IFCHR, 0), 0);
  ASSERT_EQ(::mknod(At("dir/gone").c_str(), S_IFCHR, 0), 0);
  ASSERT_EQ(::link(At("gone").c_str(), At("dir/linked").c_str()), 0);  // the kernel shares whiteouts
  ASSERT_EQ(::mknod(At("null").c_str(), S_IFCHR | 0666, makedev(1, 3)), 0);
  SetXattr(At("dir"), "trusted.overlay.opaque", "y");
  SetXattr(At("user"), "user.overlay.opaque", "y");
  SetXattr(At("dir/sub"), "trusted.overlay.opaque", "x");
  SetXattr(At("dir"), "trusted.overlay.origin", "abc");
  SetXattr(At("dir"), "trusted.overlay.impure", "y");
  ASSERT_TRUE(Walk({}, SourceKind::kOverlayUpper).ok());
  EXPECT_THAT(recorder_.Paths(), ElementsAre("dir/", "dir/.wh..wh..opq", "dir/.wh.gone", "dir/.wh.linked",
                                             "dir/sub/", ".wh.gone", "null", "user/", "user/.wh..wh..opq"));
  for (const Entry& entry : recorder_.entries) EXPECT_TRUE(entry.xattrs.empty()) << entry.path;
  const Entry* whiteout = recorder_.Find(".wh.gone");
  EXPECT_EQ(whiteout->type, EntryType::kRegular);
  EXPECT_EQ(whiteout->size, 0U);
  EXPECT_EQ(whiteout->mtime_seconds, 0);
  ASSERT_TRUE(Walk({}, SourceKind::kOverlayUpper, "t").ok());
  EXPECT_NE(recorder_.Find("t/.wh.gone"), nullptr);
  EXPECT_NE(recorder_.Find("t/dir/.wh.gone"), nullptr);
}

TEST_F(TreeTest, RedirectsAndMetacopiesAreRefusedByName) {
  for (const char* mark : {"trusted.overlay.redirect", "user.overlay.metacopy"}) {
    ASSERT_TRUE(base::MakeDirectories(At("moved")).ok());
    SetXattr(At("moved"), mark, "/old");
    const absl::Status status = Walk({}, SourceKind::kOverlayUpper);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "moved")) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), mark)) << status;
    std::filesystem::remove_all(At("moved"));
  }
}

// The kernel itself makes the upper directory.
TEST_F(TreeTest, ARealOverlayGivesTheChangesThatWereMade) {
  for (const char* name : {"lower/kept", "lower/replaced", "upper", "work", "merged"}) {
    ASSERT_TRUE(base::MakeDirectories(directory_.File(name)).ok());
  }
  WriteFile(directory_.File("lower/removed"), "1");
  WriteFile(directory_.File("lower/replaced/old"), "2");
  WriteFile(directory_.File("lower/kept/changed"), "3");
  const std::string merged = directory_.File("merged");
  const std::string options =
      absl::StrCat("lowerdir=", directory_.File("lower"), ",upperdir=", directory_.File("upper"),
                   ",workdir=", directory_.File("work"), ",redirect_dir=off,metacopy=off,index=off");
  ASSERT_EQ(::mount("overlay", merged.c_str(), "overlay", 0, options.c_str()), 0) << strerror(errno);
  ASSERT_EQ(::unlink((merged + "/removed").c_str()), 0);
  std::filesystem::remove_all(merged + "/replaced");
  ASSERT_EQ(::mkdir((merged + "/replaced").c_str(), 0755), 0);
  WriteFile(merged + "/replaced/new", "4");
  WriteFile(merged + "/kept/changed", "5");
  ASSERT_EQ(::umount(merged.c_str()), 0);
  const Source source{SourceKind::kOverlayUpper, directory_.File("upper"), ""};
  ASSERT_TRUE(WalkTree(source, {}, &recorder_).ok());
  EXPECT_THAT(recorder_.Paths(), ElementsAre("kept/", "kept/changed", ".wh.removed", "replaced/",
                                             "replaced/.wh..wh..opq", "replaced/new"));
}

TEST_F(TreeTest, FilesToComeFirstComeAfterTheirDirectoriesThenTheLandmark) {
  ASSERT_TRUE(base::MakeDirectories(At("a/b")).ok());
  ASSERT_TRUE(base::MakeDirectories(At("c")).ok());
  for (const char* name : {"a/1", "a/b/2", "c/3", ".no.prefetch.landmark"}) WriteFile(At(name), name);
  ASSERT_EQ(::link(At("a/1").c_str(), At("c/hard").c_str()), 0);
  TreeOptions options;
  options.first = {"/c/hard", "a/b/2"};
  options.landmark = Landmark::kPrefetch;
  ASSERT_TRUE(Walk(options).ok());
  EXPECT_THAT(recorder_.Paths(),
              ElementsAre("c/", "c/hard", "a/", "a/b/", "a/b/2", ".prefetch.landmark", "a/1", "c/3"));
  EXPECT_EQ(recorder_.Find("c/hard")->type, EntryType::kRegular);
  EXPECT_EQ(recorder_.Find("a/1")->link_target, "c/hard");
  options.first = {"a/none"};
  const absl::Status status = Walk(options);
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "a/none")) << status;
  options.first.clear();
  options.landmark = Landmark::kNoPrefetch;
  ASSERT_TRUE(Walk(options).ok());
  EXPECT_EQ(recorder_.Paths()[0], ".no.prefetch.landmark");
  EXPECT_EQ(recorder_.data[0], "\xf");
}

// Something changes when the walk has come to the entry `at`.
struct Change {
  const char* name;
  const char* at;
  const char* named;  // in the error
  std::function<void(const std::string& root)> act;
  friend void PrintTo(const Change& value, std::ostream* out) { *out << value.name; }
};

void Truncate(const std::string& path, off_t size) { ASSERT_EQ(::truncate(path.c_str(), size), 0); }

class ChangingTree : public TreeTest, public testing::WithParamInterface<Change> {};

TEST_P(ChangingTree, IsAnErrorThatNamesWhatChanged) {
  ASSERT_TRUE(base::MakeDirectories(At("dir")).ok());
  WriteFile(At("dir/a"), support::RandomBytes(3'000'000, 1));
  WriteFile(At("dir/b"), "b");
  WriteFile(At("e"), "e");
  SetTime(At("dir/a"), 1'000'000, 0);
  bool changed = false;
  recorder_.on_begin = [&](const Entry& entry) {
    if (entry.path == GetParam().at) {
      GetParam().act(root_);
      changed = true;
    }
    return absl::OkStatus();
  };
  const absl::Status status = Walk();
  EXPECT_TRUE(changed);
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), absl::StrCat(GetParam().named, " changed"))) << status;
}

INSTANTIATE_TEST_SUITE_P(
    , ChangingTree,
    testing::Values(Change{"Shrinks", "dir/a", "dir/a",
                           [](const std::string& root) { Truncate(root + "/dir/a", 9); }},
                    Change{"Grows", "dir/a", "dir/a",
                           [](const std::string& root) { Truncate(root + "/dir/a", 3'000'001); }},
                    Change{"Rewritten", "dir/a", "dir/a",
                           [](const std::string& root) {
                             WriteFile(root + "/dir/a", support::RandomBytes(3'000'000, 2));
                           }},
                    Change{"Chmod", "dir/a", "dir/a",
                           [](const std::string& root) { ::chmod((root + "/dir/a").c_str(), 0); }},
                    Change{"Replaced", "dir/a", "dir/a",
                           [](const std::string& root) {
                             WriteFile(root + "/new", support::RandomBytes(3'000'000, 1));
                             ::rename((root + "/new").c_str(), (root + "/dir/a").c_str());
                           }},
                    Change{"RemovedBeforeItsTurn", "dir/a", "dir/b",
                           [](const std::string& root) { ::unlink((root + "/dir/b").c_str()); }},
                    Change{"BecomesALink", "dir/a", "dir/a",
                           [](const std::string& root) {
                             ::rename((root + "/dir").c_str(), (root + "/moved").c_str());
                             ASSERT_EQ(::symlink("/etc", (root + "/dir").c_str()), 0);
                           }},
                    Change{"AddedToADirectory", "dir/b", "dir",
                           [](const std::string& root) { WriteFile(root + "/dir/c", ""); }}),
    [](const auto& info) { return info.param.name; });

TEST_F(TreeTest, CancellingEndsTheWalk) {
  WriteFile(At("a"), support::RandomBytes(5'000'000, 1));
  base::CancelToken cancel;
  TreeOptions options;
  options.cancel = &cancel;
  recorder_.on_data = [&] {
    cancel.Cancel();
    return absl::OkStatus();
  };
  EXPECT_TRUE(absl::IsCancelled(Walk(options)));
  EXPECT_LE(recorder_.data[0].size(), 1U << 20);
}

TEST_F(TreeTest, ASourceThatIsNotThereIsNamed) {
  const Source source{SourceKind::kDirectory, "/nonexistent/tree", ""};
  const auto summary = WalkTree(source, {}, &recorder_);
  ASSERT_FALSE(summary.ok());
  EXPECT_TRUE(absl::IsNotFound(summary.status()));
  EXPECT_TRUE(absl::StrContains(summary.status().message(), "/nonexistent/tree")) << summary.status();
}

TEST(ParseSource, KnowsDirectoriesAndTars) {
  const auto plain = ParseSource("dir:/a/b");
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->kind, SourceKind::kDirectory);
  EXPECT_EQ(plain->path, "/a/b");
  EXPECT_EQ(plain->target, "");
  const auto target = ParseSource("dir:/a:b:/opt//app/");
  ASSERT_TRUE(target.ok());
  EXPECT_EQ(target->path, "/a:b");
  EXPECT_EQ(target->target, "opt/app");
  const auto tar = ParseSource("tar:/a:b.tar");
  ASSERT_TRUE(tar.ok());
  EXPECT_EQ(tar->kind, SourceKind::kTar);
  EXPECT_EQ(tar->path, "/a:b.tar");
  for (const char* bad : {"", "dir:", "tar:", "/a", "dir::/x", "dir:/a:../b", "file:/a"}) {
    const auto source = ParseSource(bad);
    EXPECT_TRUE(absl::IsInvalidArgument(source.status())) << bad;
    EXPECT_TRUE(absl::StrContains(source.status().message(), absl::StrCat("\"", bad, "\"")))
        << source.status();
  }
}

class TarFile : public testing::Test {
 protected:
  absl::StatusOr<std::string> Read(absl::string_view contents) {
    WriteFile(directory_.File("t"), contents);
    std::string bytes;
    const absl::Status status = ReadTar(
        {SourceKind::kTar, directory_.File("t"), ""}, nullptr, [&bytes](absl::Span<const uint8_t> piece) {
          bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
          return absl::OkStatus();
        });
    if (!status.ok()) return status;
    return bytes;
  }
  const TempDir directory_;
  const std::string tar_ = support::MakeTar({support::File("a", support::RandomBytes(2'000'000, 1))});
};

TEST_F(TarFile, IsGivenByteForByteHoweverItIsCompressed) {
  for (const std::string& form : {tar_, support::Gzip(tar_), support::GzipMembers(tar_, 100'000),
                                  support::Zstd(tar_), support::ZstdFrames(tar_, 100'000)}) {
    const auto read = Read(form);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(*read == tar_);
  }
}

TEST_F(TarFile, DamageAndOtherCompressionsAreNamed) {
  const std::string gzip = support::Gzip(tar_);
  EXPECT_TRUE(absl::IsInvalidArgument(Read(gzip.substr(0, gzip.size() - 1)).status()));
  const std::string zstd = support::Zstd(tar_);
  EXPECT_TRUE(absl::IsInvalidArgument(Read(zstd.substr(0, zstd.size() - 1)).status()));
  const absl::Status xz = Read(absl::string_view("\xfd"
                                                 "7zXZ\0rest",
                                                 10))
                              .status();
  EXPECT_TRUE(absl::StrContains(xz.message(), "xz")) << xz;
  EXPECT_TRUE(absl::StrContains(xz.message(), directory_.path())) << xz;
}

}  // namespace
}  // namespace lazyblob::exporter
