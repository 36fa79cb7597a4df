#include "layer/tree.h"

#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tests/layer/tree_text.h"

namespace lazyblob::layer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Entry Make(EntryType type, std::string path) {
  Entry entry;
  entry.type = type;
  entry.path = std::move(path);
  entry.mode = 0644;
  entry.mtime_seconds = 1'000;
  return entry;
}
Entry File(std::string path, uint64_t size = 0) {
  Entry entry = Make(EntryType::kRegular, std::move(path));
  entry.size = size;
  if (size > 0) entry.extents = {{0, 512, size}};
  return entry;
}
Entry Dir(std::string path, uint32_t mode = 0750) {
  Entry entry = Make(EntryType::kDirectory, std::move(path));
  entry.mode = mode;
  return entry;
}
Entry Symlink(std::string path, std::string target) {
  Entry entry = Make(EntryType::kSymlink, std::move(path));
  entry.link_target = std::move(target);
  return entry;
}
Entry HardLink(std::string path, std::string target) {
  Entry entry = Make(EntryType::kHardLink, std::move(path));
  entry.link_target = std::move(target);
  return entry;
}

absl::StatusOr<Tree> Build(std::vector<Entry> entries) {
  TreeBuilder builder;
  for (Entry& entry : entries) {
    if (absl::Status added = builder.Add(std::move(entry)); !added.ok()) return added;
  }
  return builder.Finish();
}

std::vector<std::string> Paths(const Tree& tree) {
  std::vector<std::string> paths;
  for (const auto& [path, line] : DescribeTree(tree)) paths.push_back(path);
  return paths;
}

const Inode* Find(const Tree& tree, absl::string_view path) {
  uint32_t at = 0;
  while (!path.empty()) {
    const size_t slash = path.find('/');
    const absl::string_view name = path.substr(0, slash);
    path = slash == absl::string_view::npos ? "" : path.substr(slash + 1);
    const uint32_t before = at;
    for (const auto& [child, number] : tree.inodes[before].children) {
      if (child == name) at = number;
    }
    if (at == before) return nullptr;
  }
  return &tree.inodes[at];
}

// The error of a layer that must be refused, which has to name `entry`.
std::string Refusal(std::vector<Entry> entries, absl::string_view entry) {
  auto tree = Build(std::move(entries));
  EXPECT_FALSE(tree.ok());
  if (tree.ok()) return "";
  EXPECT_EQ(tree.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(tree.status().message()), HasSubstr(absl::StrCat("\"", entry, "\"")));
  return std::string(tree.status().message());
}

TEST(TreeBuilder, EmptyLayerIsAnImpliedRoot) {
  auto tree = Build({});
  ASSERT_TRUE(tree.ok());
  ASSERT_EQ(tree->inodes.size(), 1u);
  EXPECT_EQ(tree->inodes[0].mode, S_IFDIR | 0755u);
  EXPECT_EQ(tree->inodes[0].nlink, 2u);
  EXPECT_TRUE(tree->inodes[0].implied);
  EXPECT_THAT(tree->implied_directories, ElementsAre(""));
}

TEST(TreeBuilder, PathsAreCleaned) {
  auto tree = Build(
      {Dir("./"), File("./a"), File("/b"), File("c//d/"), File("e/./f"), File("g/../h"), File("i/j/../k")});
  ASSERT_TRUE(tree.ok()) << tree.status();
  EXPECT_THAT(Paths(*tree), ElementsAre("", "a", "b", "c", "c/d", "e", "e/f", "h", "i", "i/k"));
  EXPECT_FALSE(tree->inodes[0].implied);
  EXPECT_EQ(tree->inodes[0].mode, S_IFDIR | 0750u);
}

TEST(TreeBuilder, BadPathsAreRefusedByName) {
  EXPECT_THAT(Refusal({File("../x")}, "../x"), HasSubstr("leaves the root"));
  EXPECT_THAT(Refusal({File("/../x")}, "/../x"), HasSubstr("leaves the root"));
  EXPECT_THAT(Refusal({File("a/../../x")}, "a/../../x"), HasSubstr("leaves the root"));
  EXPECT_THAT(Refusal({File(std::string("a\0b", 3))}, "a\\x00b"), HasSubstr("NUL"));
  EXPECT_THAT(Refusal({File(std::string(256, 'n'))}, std::string(256, 'n')), HasSubstr("255"));
  EXPECT_TRUE(Build({File(std::string(255, 'n'))}).ok());
  std::string deep;
  for (int i = 0; i < 1025; ++i) deep += "d/";
  EXPECT_THAT(Refusal({File(deep)}, deep.substr(0, 512)), HasSubstr("1024"));
  EXPECT_TRUE(Build({File(deep.substr(2))}).ok());
  EXPECT_THAT(Refusal({File(std::string(4097, '/'))}, std::string(512, '/')), HasSubstr("4096"));
  EXPECT_THAT(Refusal({File("./")}, "./"), HasSubstr("root is not a directory"));
}

TEST(TreeBuilder, ImpliedParents) {
  auto tree = Build({File("a/b/c"), Dir("x"), File("x/y/z")});
  ASSERT_TRUE(tree.ok());
  EXPECT_THAT(tree->implied_directories, ElementsAre("", "a", "a/b", "x/y"));
  const Inode* a = Find(*tree, "a");
  EXPECT_EQ(a->mode, S_IFDIR | 0755u);
  EXPECT_EQ(a->mtime_seconds, 0);
  EXPECT_EQ(a->nlink, 3u);
  // An entry of its own, later, ends that.
  tree = Build({File("a/b"), Dir("a")});
  EXPECT_THAT(tree->implied_directories, ElementsAre(""));
  EXPECT_EQ(Find(*tree, "a")->mode, S_IFDIR | 0750u);
}

TEST(TreeBuilder, LastDuplicateWins) {
  auto tree = Build({File("a", 1), File("a", 2), Dir("d"), File("d/x"), File("d", 3), Dir("e"), File("e/x"),
                     Dir("e", 0700), File("f"), Dir("f"), File("f/y"), Symlink("s", "t"), File("s")});
  ASSERT_TRUE(tree.ok()) << tree.status();
  EXPECT_THAT(Paths(*tree), ElementsAre("", "a", "d", "e", "e/x", "f", "f/y", "s"));
  EXPECT_EQ(Find(*tree, "a")->size, 2u);
  EXPECT_TRUE(S_ISREG(Find(*tree, "d")->mode));
  EXPECT_EQ(Find(*tree, "e")->mode, S_IFDIR | 0700u);
  EXPECT_TRUE(S_ISREG(Find(*tree, "s")->mode));
  EXPECT_EQ(tree->inodes.size(), 8u);
  // What a replaced directory held is gone for good.
  tree = Build({File("d/x"), File("d"), Dir("d"), File("d/y")});
  EXPECT_THAT(Paths(*tree), ElementsAre("", "d", "d/y"));
}

TEST(TreeBuilder, HardLinks) {
  auto tree = Build({HardLink("early", "b/file"), File("b/file", 7), HardLink("late", "./b/file"),
                     HardLink("chain", "early"), Symlink("sym", "nowhere"), HardLink("symlink2", "sym")});
  ASSERT_TRUE(tree.ok()) << tree.status();
  EXPECT_EQ(Find(*tree, "early"), Find(*tree, "b/file"));
  EXPECT_EQ(Find(*tree, "late"), Find(*tree, "b/file"));
  EXPECT_EQ(Find(*tree, "chain"), Find(*tree, "b/file"));
  EXPECT_EQ(Find(*tree, "early")->nlink, 4u);
  EXPECT_EQ(Find(*tree, "symlink2"), Find(*tree, "sym"));
  // A link keeps the file it was made to when its target's name is taken by another.
  tree = Build({File("a", 1), HardLink("b", "a"), File("a", 2)});
  ASSERT_TRUE(tree.ok());
  EXPECT_EQ(Find(*tree, "a")->size, 2u);
  EXPECT_EQ(Find(*tree, "b")->size, 1u);
  EXPECT_EQ(Find(*tree, "b")->nlink, 1u);
}

TEST(TreeBuilder, HardLinksThatCannotBe) {
  EXPECT_THAT(Refusal({HardLink("a", "a")}, "a"), HasSubstr("itself"));
  EXPECT_THAT(Refusal({File("a"), HardLink("a", "a")}, "a"), HasSubstr("itself"));
  EXPECT_THAT(Refusal({HardLink("a", "b"), HardLink("b", "c"), HardLink("c", "a")}, "a"), HasSubstr("cycle"));
  EXPECT_THAT(Refusal({HardLink("a", "gone")}, "a"), HasSubstr("does not have"));
  EXPECT_THAT(Refusal({HardLink("a", "gone/x")}, "a"), HasSubstr("does not have"));
  EXPECT_THAT(Refusal({Dir("d"), HardLink("a", "d")}, "a"), HasSubstr("directory"));
  EXPECT_THAT(Refusal({HardLink("a", "d"), Dir("d")}, "a"), HasSubstr("directory"));
  EXPECT_THAT(Refusal({HardLink("a", "/")}, "a"), HasSubstr("directory"));
  EXPECT_THAT(Refusal({HardLink("a", "../x")}, "a"), HasSubstr("leaves the root"));
  EXPECT_THAT(Refusal({HardLink("a", "x"), File(".wh.x")}, "a"), HasSubstr("does not have"));
  // A chain of a hundred thousand links costs neither stack nor time.
  TreeBuilder builder;
  for (int i = 0; i < 100'000; ++i)
    ASSERT_TRUE(builder.Add(HardLink(absl::StrCat(i), absl::StrCat(i + 1))).ok());
  ASSERT_TRUE(builder.Add(File("100000", 5)).ok());
  auto tree = builder.Finish();
  ASSERT_TRUE(tree.ok()) << tree.status();
  EXPECT_EQ(tree->inodes.size(), 2u);
  EXPECT_EQ(tree->inodes[1].nlink, 100'001u);
}

TEST(TreeBuilder, Whiteouts) {
  for (const std::vector<Entry>& entries :
       {std::vector<Entry>{File(".wh.f"), File("f", 1), File(".wh.d"), Dir("d"), File("d/.wh.x"),
                           File("o/.wh..wh..opq"), File("o/y")},
        std::vector<Entry>{File("o/y"), File("o/.wh..wh..opq"), File("d/.wh.x"), Dir("d"), File(".wh.d"),
                           File("f", 1), File(".wh.f")}}) {
    auto tree = Build(entries);
    ASSERT_TRUE(tree.ok()) << tree.status();
    EXPECT_TRUE(tree->has_whiteouts);
    EXPECT_THAT(Paths(*tree), ElementsAre("", "d", "d/x", "f", "o", "o/y"));
    EXPECT_EQ(Find(*tree, "f")->size, 1u);
    EXPECT_TRUE(Find(*tree, "d")->opaque);
    EXPECT_TRUE(Find(*tree, "o")->opaque);
    EXPECT_EQ(Find(*tree, "d/x")->mode, static_cast<uint32_t>(S_IFCHR));
    EXPECT_EQ(Find(*tree, "d/x")->device_major, 0u);
    EXPECT_THAT(tree->implied_directories, ElementsAre("", "o"));
  }
  // An implied directory under a whiteout has nothing below it to take after.
  auto tree = Build({File(".wh.d"), File("d/f")});
  ASSERT_TRUE(tree.ok());
  EXPECT_TRUE(Find(*tree, "d")->opaque);
  EXPECT_THAT(tree->implied_directories, ElementsAre(""));
  // A whiteout in a directory that is replaced goes with it.
  tree = Build({File("d/.wh.x"), File("d"), Dir("d")});
  EXPECT_THAT(Paths(*tree), ElementsAre("", "d"));
}

TEST(TreeBuilder, AufsBookkeepingIsDropped) {
  auto tree =
      Build({Dir(".wh..wh.plnk"), File(".wh..wh.plnk/1.2"), File(".wh..wh.aufs"), File("d/.wh..wh.orph/x")});
  ASSERT_TRUE(tree.ok());
  EXPECT_THAT(Paths(*tree), ElementsAre(""));
  EXPECT_FALSE(tree->has_whiteouts);
  EXPECT_THAT(Refusal({File(".wh.")}, ".wh."), HasSubstr("names nothing"));
  EXPECT_THAT(Refusal({File("a/.wh..")}, "a/.wh.."), HasSubstr("names nothing"));
  EXPECT_THAT(Refusal({File(".wh...")}, ".wh..."), HasSubstr("names nothing"));
}

TEST(TreeBuilder, CharDeviceZeroIsAWhiteoutAsWhenUnpacked) {
  auto tree = Build({Make(EntryType::kCharDevice, "gone")});
  ASSERT_TRUE(tree.ok());
  EXPECT_TRUE(tree->has_whiteouts);
}

TEST(TreeBuilder, SymlinksOfTheLayerAreFollowedOnTheWay) {
  auto tree =
      Build({Symlink("lib", "usr/lib"), File("lib/a"), Symlink("usr/abs", "/opt/../opt/x"), File("usr/abs/b"),
             Symlink("up", "../../../etc"), File("up/c"), HardLink("link", "lib/a")});
  ASSERT_TRUE(tree.ok()) << tree.status();
  EXPECT_THAT(Paths(*tree), ElementsAre("", "etc", "etc/c", "lib", "link", "opt", "opt/x", "opt/x/b", "up",
                                        "usr", "usr/abs", "usr/lib", "usr/lib/a"));
  EXPECT_EQ(Find(*tree, "link"), Find(*tree, "usr/lib/a"));
  EXPECT_THAT(Refusal({Symlink("a", "b"), Symlink("b", "a"), File("a/x")}, "a/x"),
              HasSubstr("too many symbolic links"));
  EXPECT_THAT(Refusal({File("f"), File("f/x")}, "f/x"), HasSubstr("not a directory"));
  EXPECT_THAT(Refusal({HardLink("h", "f"), File("h/x"), File("f")}, "h/x"), HasSubstr("hard link"));
}

TEST(TreeBuilder, Times) {
  auto at = [](int64_t seconds, uint32_t nanoseconds) {
    Entry entry = File("f");
    entry.mtime_seconds = seconds;
    entry.mtime_nanoseconds = nanoseconds;
    auto tree = Build({entry});
    return tree.ok() ? std::make_pair(tree->inodes[1].mtime_seconds, tree->inodes[1].mtime_nanoseconds)
                     : std::make_pair(int64_t{-1}, uint32_t{0});
  };
  EXPECT_EQ(at(5, 6), std::make_pair(int64_t{5}, 6u));
  EXPECT_EQ(at(-1, 999'999'999), std::make_pair(int64_t{0}, 0u));
  EXPECT_EQ(at(9'223'372'036, 854'775'807), std::make_pair(int64_t{9'223'372'036}, 854'775'807u));
  EXPECT_EQ(at(9'223'372'036, 854'775'808), std::make_pair(int64_t{0}, 0u));
  EXPECT_EQ(at(5, 1'000'000'000).first, -1);
}

TEST(TreeBuilder, OwnersAndDevices) {
  Entry entry = File("f");
  entry.uid = 0xffffffff;
  entry.gid = 0xfffffffe;
  auto tree = Build({entry});
  ASSERT_TRUE(tree.ok());
  EXPECT_EQ(tree->inodes[1].uid, 0u);
  EXPECT_EQ(tree->inodes[1].gid, 0xfffffffeu);
  Entry device = Make(EntryType::kBlockDevice, "b");
  device.device_major = 4096;
  EXPECT_THAT(Refusal({device}, "b"), HasSubstr("4096:0"));
  device.device_major = 1;
  device.device_minor = 1 << 20;
  EXPECT_THAT(Refusal({device}, "b"), HasSubstr("1:1048576"));
}

TEST(TreeBuilder, XattrsThatUnpackingWouldNotSetAreDropped) {
  Entry file = File("f");
  file.xattrs = {{"user.b", "2"},
                 {"user.a", "1"},
                 {"user.a", "3"},
                 {"trusted.overlay.redirect", "/"},
                 {"user.overlay.opaque", "y"},
                 {"odd.name", "x"},
                 {"user.", "x"}};
  Entry link = Symlink("s", "t");
  link.xattrs = {{"user.a", "1"}, {"security.x", "2"}};
  auto tree = Build({file, link});
  ASSERT_TRUE(tree.ok()) << tree.status();
  using X = std::pair<std::string, std::string>;
  EXPECT_THAT(Find(*tree, "f")->xattrs, ElementsAre(X("user.a", "3"), X("user.b", "2")));
  EXPECT_THAT(Find(*tree, "s")->xattrs, ElementsAre(X("security.x", "2")));
  file.xattrs = {{"user." + std::string(251, 'n'), ""}};
  EXPECT_THAT(Refusal({file}, "f"), HasSubstr("255"));
  file.xattrs = {{"user.a", std::string(40'000, 'v')}, {"user.b", std::string(30'000, 'v')}};
  EXPECT_THAT(Refusal({file}, "f"), HasSubstr("64 KiB"));
}

TEST(TreeBuilder, SymlinkTextAndSizesAreChecked) {
  EXPECT_THAT(Refusal({Symlink("s", "")}, "s"), HasSubstr("empty"));
  EXPECT_THAT(Refusal({Symlink("s", std::string(4096, 'x'))}, "s"), HasSubstr("4095"));
  EXPECT_THAT(Refusal({Symlink("s", std::string("a\0b", 3))}, "s"), HasSubstr("NUL"));
  Entry file = File("f");
  file.size = uint64_t{1} << 63;
  EXPECT_THAT(Refusal({file}, "f"), HasSubstr("2^63"));
  const std::vector<std::vector<Extent>> bad = {{{0, 0, 101}},
                                                {{50, 0, 10}, {0, 512, 10}},
                                                {{0, 0, 60}, {50, 512, 10}},
                                                {{0, uint64_t{2} << 40, 10}},
                                                {{~uint64_t{0}, 0, 10}},
                                                {{0, ~uint64_t{0}, 10}},
                                                {{0, 0, ~uint64_t{0}}}};
  for (const auto& extents : bad) {
    file.size = 100;
    file.extents = extents;
    EXPECT_THAT(Refusal({file}, "f"), HasSubstr("runs of data"));
  }
}

TEST(TreeBuilder, EntriesAreBounded) {
  TreeBuilder builder;
  builder.set_max_entries(2);
  EXPECT_TRUE(builder.Add(File("a")).ok());
  EXPECT_TRUE(builder.Add(File("a")).ok());
  EXPECT_EQ(builder.Add(File("a")).code(), absl::StatusCode::kResourceExhausted);
}

TEST(TreeBuilder, ControlBytesOfNamesNeverReachAMessage) {
  const std::string message = Refusal({File("../\x1b[31m\n")}, "../\\x1b[31m\\x0a");
  EXPECT_EQ(message.find('\n'), std::string::npos);
}

TEST(TreeBuilder, NumbersChildrenOfADirectoryTogether) {
  auto tree = Build({File("b/x"), File("a/y"), File("a/z/w"), File("c")});
  ASSERT_TRUE(tree.ok());
  std::vector<std::string> names(tree->inodes.size());
  for (const Inode& inode : tree->inodes) {
    for (const auto& [name, number] : inode.children) names[number] = name;
  }
  EXPECT_THAT(names, ElementsAre("", "a", "b", "c", "y", "z", "w", "x"));
}

}  // namespace
}  // namespace lazyblob::layer
