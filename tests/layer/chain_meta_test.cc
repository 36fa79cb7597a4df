#include "layer/chain_meta.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/layer/index_harness.h"
#include "tests/layer/tree_text.h"

namespace lazyblob::layer {
namespace {

using support::Directory;
using support::File;
using support::TarMember;
using ::testing::HasSubstr;

TarMember Dir(std::string path, uint32_t mode, int64_t mtime = 1'000, uint32_t uid = 0) {
  TarMember member = Directory(std::move(path), mode);
  member.mtime = mtime;
  member.uid = uid;
  return member;
}

class ChainMetaTest : public ::testing::Test {
 protected:
  // Layers topmost first; the first is the one asked for.
  void Layers(const std::vector<std::vector<TarMember>>& layers) {
    runs_.clear();
    for (const auto& members : layers) {
      runs_.push_back(RunIndexer(support::MakeLayer(support::MakeTar(members), oci::Compression::kNone)));
      ASSERT_TRUE(runs_.back().status.ok()) << runs_.back().status;
    }
  }

  // The line of `path` in the chain's image; "same" when the layer's own image will do.
  std::string Look(const std::string& path, absl::string_view opaque = "trusted.overlay.opaque") {
    std::vector<LowerLayer> lowers;
    for (size_t i = 1; i < runs_.size(); ++i) {
      auto image = ErofsImage::Open(runs_[i].index->directory() + "/meta.erofs");
      EXPECT_TRUE(image.ok());
      lowers.push_back({runs_[i].index, *image});
    }
    if (!local_.empty()) lowers.insert(lowers.begin(), {nullptr, nullptr, local_});
    const std::string file = temp_.File("chain.erofs");
    auto written = WriteChainImage(*runs_[0].index, lowers, file, opaque);
    if (!written.ok()) return written.status().ToString();
    auto image = ErofsImage::Open(file);
    EXPECT_EQ(image.ok(), *written);
    if (!*written) return "same";
    TreeTextOptions options;
    options.opaque_xattr = std::string(opaque);
    text_ = DescribeTree(image.value()->ToTree().value(), options);
    (void)base::RemoveTree(file);
    return text_[path];
  }

  std::vector<IndexRun> runs_;
  // From now on a directory on the disk is the topmost of the layers below.
  std::string Local(const std::string& path) {
    if (local_.empty()) local_ = temp_.File("local");
    const std::string full = path.empty() ? local_ : absl::StrCat(local_, "/", path);
    EXPECT_TRUE(base::MakeDirectories(full).ok());
    return full;
  }

  support::TempDir temp_;
  std::string local_;
  TreeText text_;
};

TEST_F(ChainMetaTest, TakesAfterTheNearestLayerWithAnEntry) {
  Layers({{Directory("."), File("tmp/a", "1"), File("var/lib/x", "2")},
          {Dir(".", 0755), File("tmp/b", "1")},  // implies it as well
          {Dir(".", 0755), Dir("tmp", 01777, 5, 42), Dir("var", 0750, 6)},
          {Dir(".", 0755), Dir("tmp", 0700, 7), Dir("var", 0700), Dir("var/lib", 0711, 8)}});
  EXPECT_EQ(Look("tmp"), "mode=43ff uid=42 gid=0 nlink=2 mtime=5.0");
  EXPECT_EQ(text_["var"], "mode=41e8 uid=0 gid=0 nlink=3 mtime=6.0");
  EXPECT_EQ(text_["var/lib"], "mode=41c9 uid=0 gid=0 nlink=2 mtime=8.0");
  // Nothing else changes.
  const TreeText own =
      DescribeTree(ErofsImage::Open(runs_[0].index->directory() + "/meta.erofs").value()->ToTree().value());
  for (const auto& [path, line] : own) {
    if (path != "tmp" && path != "var" && path != "var/lib") {
      EXPECT_EQ(text_[path], line) << path;
    }
  }
  EXPECT_EQ(own.size(), text_.size());
}

TEST_F(ChainMetaTest, NothingToDo) {
  Layers({{Directory("."), Dir("tmp", 01777)}, {Dir("tmp", 0700)}});
  EXPECT_EQ(Look("tmp"), "same");
  Layers({{Directory("."), File("a/b", "1")}});
  EXPECT_EQ(Look("a"), "same");
  Layers({{Directory("."), File("a/b", "1")}, {Dir("other", 0700)}});
  EXPECT_EQ(Look("a"), "same");
  Layers({{Directory("."), File("a/b", "1")}, {Dir("a", 0755, 0)}});  // looks like the default
  EXPECT_EQ(Look("a"), "same");
}

TEST_F(ChainMetaTest, TheRootToo) {
  Layers({{File("a", "1")}, {Dir(".", 0700, 9, 3)}});
  EXPECT_EQ(Look(""), "mode=41c0 uid=3 gid=0 nlink=2 mtime=9.0");
}

TEST_F(ChainMetaTest, ExtendedAttributesComeAlong) {
  TarMember tmp = Dir("tmp", 01777);
  tmp.xattrs = {{"user.a", "1"}, {"security.b", std::string(300, 'x')}};
  Layers({{Directory("."), File("tmp/a", "1"), File("gone/x", "2"), support::OpaqueMarker("gone")},
          {Directory("."), tmp}});
  EXPECT_THAT(Look("tmp"), HasSubstr("mode=43ff"));
  EXPECT_THAT(text_["tmp"], HasSubstr("user.a=1"));
  EXPECT_THAT(text_["tmp"], HasSubstr("security.b=xxx"));
  EXPECT_THAT(text_["gone"], HasSubstr("trusted.overlay.opaque=y"));
  EXPECT_EQ(text_.count("tmp/a"), 1u);
}

TEST_F(ChainMetaTest, WhatHidesTheLowerDirectoryEndsTheSearch) {
  const std::vector<TarMember> top = {Directory("."), File("a/b/c", "1")};
  const std::vector<TarMember> bottom = {Directory("."), Dir("a", 0700), Dir("a/b", 0711)};
  Layers({top, bottom});
  EXPECT_THAT(Look("a"), HasSubstr("mode=41c0"));
  EXPECT_THAT(text_["a/b"], HasSubstr("mode=41c9"));
  Layers({top, {Directory("."), support::Whiteout("a")}, bottom});
  EXPECT_EQ(Look("a"), "same");
  Layers({top, {Directory("."), File("a", "file")}, bottom});
  EXPECT_EQ(Look("a"), "same");
  Layers({top, {Directory("."), support::Symlink("a", "elsewhere")}, bottom});
  EXPECT_EQ(Look("a"), "same");
  // An opaque directory keeps its own look, but what it held is hidden.
  Layers({top, {Directory("."), support::OpaqueMarker("a")}, bottom});
  EXPECT_THAT(Look("a"), HasSubstr("mode=41c0"));
  EXPECT_THAT(text_["a/b"], HasSubstr("mode=41ed"));
  Layers({top, {Directory("."), support::Whiteout("a/b")}, bottom});
  EXPECT_THAT(Look("a"), HasSubstr("mode=41c0"));
  EXPECT_THAT(text_["a/b"], HasSubstr("mode=41ed"));
  // The layer's own marks count as well.
  Layers({{Directory("."), File("a/b/c", "1"), support::OpaqueMarker("a")}, bottom});
  EXPECT_THAT(Look("a"), HasSubstr("mode=41c0"));
  EXPECT_THAT(text_["a/b"], HasSubstr("mode=41ed"));
  Layers({{Directory("."), File("a/b/c", "1"), support::Whiteout("a")}, bottom});
  EXPECT_EQ(Look("a"), "same");
}

TEST_F(ChainMetaTest, ADirectoryOnTheDiskIsALayerToo) {
  Layers({{Directory("."), File("tmp/a", "1"), File("var/x", "2")},
          {Dir(".", 0755), Dir("tmp", 0700, 7), Dir("var", 0711, 8)}});
  const std::string tmp = Local("tmp");
  ASSERT_EQ(chmod(tmp.c_str(), 01777), 0);
  ASSERT_EQ(setxattr(tmp.c_str(), "user.a", "1", 1, 0), 0);
  const timespec times[2] = {{5, 6}, {5, 6}};
  ASSERT_EQ(utimensat(AT_FDCWD, tmp.c_str(), times, 0), 0);
  EXPECT_THAT(Look("tmp"), HasSubstr("mode=43ff"));
  EXPECT_THAT(text_["tmp"], HasSubstr("mtime=5.6"));
  EXPECT_THAT(text_["tmp"], HasSubstr("user.a=1"));
  EXPECT_THAT(text_["var"], HasSubstr("mode=41c9"));  // the disk does not know it: the next layer does
}

TEST_F(ChainMetaTest, WhatHidesOnTheDiskEndsTheSearch) {
  Layers({{Directory("."), File("a/b/c", "1")}, {Directory("."), Dir("a", 0700), Dir("a/b", 0711)}});
  const std::string root = Local("");
  const std::string a = root + "/a";
  if (mknod(a.c_str(), S_IFCHR, 0) != 0) GTEST_SKIP() << "needs root";
  EXPECT_EQ(Look("a"), "same");  // a whiteout
  ASSERT_EQ(unlink(a.c_str()), 0);
  ASSERT_EQ(symlink("/etc", a.c_str()), 0);
  EXPECT_EQ(Look("a"), "same");  // never followed
  ASSERT_EQ(unlink(a.c_str()), 0);
  ASSERT_EQ(mkfifo(a.c_str(), 0600), 0);
  EXPECT_EQ(Look("a"), "same");  // not waited for
  ASSERT_EQ(unlink(a.c_str()), 0);
  Local("a");
  ASSERT_EQ(chmod(a.c_str(), 0750), 0);
  ASSERT_EQ(setxattr(a.c_str(), "trusted.overlay.opaque", "y", 1, 0), 0);
  EXPECT_THAT(Look("a"), HasSubstr("mode=41e8"));
  EXPECT_THAT(text_["a"], ::testing::Not(HasSubstr("trusted.overlay")));
  EXPECT_THAT(text_["a/b"], HasSubstr("mode=41ed"));  // hidden: the default
}

TEST_F(ChainMetaTest, ADirectoryThatIsGoneIsAnError) {
  Layers({{Directory("."), File("a/b", "1")}});
  local_ = temp_.File("nowhere");
  EXPECT_THAT(Look("a"), HasSubstr("NOT_FOUND"));
}

TEST_F(ChainMetaTest, AnotherOpaqueMarkMakesAnotherImage) {
  Layers({{Directory("."), support::OpaqueMarker("a")}});
  EXPECT_EQ(Look("a"), "same");
  EXPECT_THAT(Look("a", "user.overlay.opaque"), HasSubstr("user.overlay.opaque=y"));
  auto image = ErofsImage::Open(runs_[0].index->directory() + "/meta.erofs");
  EXPECT_TRUE(image.ok());
}

TEST_F(ChainMetaTest, SameChainSameBytes) {
  Layers({{Directory("."), File("tmp/a", "1")}, {Dir("tmp", 01777)}});
  auto image = ErofsImage::Open(runs_[1].index->directory() + "/meta.erofs");
  const std::vector<LowerLayer> lowers = {{runs_[1].index, *image}};
  ASSERT_TRUE(WriteChainImage(*runs_[0].index, lowers, temp_.File("one")).value());
  ASSERT_TRUE(WriteChainImage(*runs_[0].index, lowers, temp_.File("two")).value());
  ASSERT_TRUE(WriteChainImage(*runs_[0].index, lowers, temp_.File("two")).value());  // replaces
  EXPECT_EQ(base::ReadFile(temp_.File("one"), 1 << 20).value(),
            base::ReadFile(temp_.File("two"), 1 << 20).value());
}

}  // namespace
}  // namespace lazyblob::layer
