// The kernel as judge of our images: what it shows of a mounted image is what the tree says.

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "layer/erofs.h"
#include "layer/layer_index.h"
#include "tests/layer/erofs_mount.h"
#include "tests/layer/tree_text.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::layer {
namespace {

using Xattrs = std::vector<std::pair<std::string, std::string>>;

Entry Make(EntryType type, std::string path, uint32_t mode) {
  Entry entry;
  entry.type = type;
  entry.path = std::move(path);
  entry.mode = mode;
  entry.mtime_seconds = 1'700'000'000;
  entry.mtime_nanoseconds = 123'456'789;
  return entry;
}
Entry Dir(std::string path, uint32_t mode = 0755) {
  return Make(EntryType::kDirectory, std::move(path), mode);
}
Entry Reg(std::string path, uint64_t size, std::vector<Extent> extents) {
  Entry entry = Make(EntryType::kRegular, std::move(path), 0644);
  entry.size = size;
  entry.extents = std::move(extents);
  return entry;
}
Entry Link(std::string path, std::string target) {
  Entry entry = Make(EntryType::kSymlink, std::move(path), 0777);
  entry.link_target = std::move(target);
  return entry;
}

class ErofsKernelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (!MayMountErofs(&why)) GTEST_SKIP() << "NOT TESTED: " << why;
    ASSERT_TRUE(temp_.on_disk()) << "EROFS images must lie on a disk file system: " << temp_.path();
  }

  // A data area of `size` bytes in which every 8 bytes say where they are.
  std::string MakeData(const std::string& name, uint64_t size) {
    std::string bytes(size, '\0');
    for (uint64_t at = 0; at + 8 <= size; at += 8) std::memcpy(bytes.data() + at, &at, 8);
    std::string path = temp_.File(name);
    EXPECT_TRUE(base::WriteFileAtomically(path, bytes).ok());
    data_size_ = size;
    return path;
  }

  std::string WriteImage(const std::string& name, const Tree& tree) {
    ErofsOptions options;
    options.layer = base::Digest::Of(name);
    options.data_size = data_size_;
    std::string path = temp_.File(name);
    const absl::Status written = WriteErofs(tree, options, path);
    EXPECT_TRUE(written.ok()) << written;
    return path;
  }

  Tree Build(std::vector<Entry> entries) {
    TreeBuilder builder;
    for (Entry& entry : entries) {
      const absl::Status added = builder.Add(std::move(entry));
      EXPECT_TRUE(added.ok()) << added;
    }
    auto tree = builder.Finish();
    EXPECT_TRUE(tree.ok()) << tree.status();
    return tree.ok() ? *std::move(tree) : Tree{};
  }

  // Mounts and compares everything but contents.
  void ExpectSameMounted(const Tree& tree, const std::string& image, const std::string& data) {
    TestMount mount(temp_.File("mnt"));
    const absl::Status mounted = mount.MountErofs(image, data);
    ASSERT_TRUE(mounted.ok()) << mounted;
    TreeTextOptions options;
    options.extents = false;
    EXPECT_EQ(Difference(DescribeTree(tree, options), DescribeDirectory(mount.path())), "");
  }

  support::TempDir temp_;
  uint64_t data_size_ = 0;
};

uint64_t WordAt(absl::string_view bytes, uint64_t at) {
  uint64_t word;
  std::memcpy(&word, bytes.data() + at, 8);
  return word;
}

TEST_F(ErofsKernelTest, EveryKindOfInode) {
  const std::string data = MakeData("data", 64 << 10);
  std::vector<Entry> entries = {Dir("bin", 01777), Dir("empty"), Reg("bin/zero", 0, {}),
                                Reg("bin/one", 1, {{0, 512, 1}}), Reg("bin/tail", 5000, {{0, 1024, 5000}})};
  for (int size : {1, 40, 383, 384, 385, 400, 447, 448, 449, 500, 511, 512, 513, 4095}) {
    entries.push_back(Link(absl::StrCat("links/", size), std::string(static_cast<size_t>(size), 'x')));
    Entry with_xattr = Link(absl::StrCat("links/x", size), std::string(static_cast<size_t>(size), 'y'));
    with_xattr.xattrs = {{"security.test", std::string(40, 's')}};
    entries.push_back(with_xattr);
  }
  Entry device = Make(EntryType::kCharDevice, "dev/big", 0600);
  device.device_major = 4095;
  device.device_minor = 1048575;
  entries.push_back(device);
  device.path = "dev/256";
  device.type = EntryType::kBlockDevice;
  device.device_major = 300;
  device.device_minor = 256;
  entries.push_back(device);
  entries.push_back(Make(EntryType::kFifo, "dev/fifo", 0666));
  Entry owner = Reg("owner", 0, {});
  owner.uid = 0xfffffffe;
  owner.gid = 0x80000001;
  owner.mode = 06755;
  entries.push_back(owner);
  Entry hard = Make(EntryType::kHardLink, "links/hard", 0);
  hard.link_target = "bin/tail";
  entries.push_back(hard);
  hard.path = "links/hard2";
  hard.link_target = "/links/400";
  entries.push_back(hard);
  Tree tree = Build(entries);
  for (Inode& inode : tree.inodes) {  // times that the builder would clamp
    if (inode.uid != 0) inode.mtime_seconds = -1'000'000'000'000;
    if (S_ISFIFO(inode.mode)) inode.mtime_seconds = 1'000'000'000'000;
  }
  ExpectSameMounted(tree, WriteImage("image", tree), data);
}

TEST_F(ErofsKernelTest, ContentsComeFromTheDataArea) {
  const std::string data = MakeData("data", 1 << 20);
  constexpr uint64_t kHuge = uint64_t{3} << 40;
  const Tree tree = Build({Reg("one", 513, {{0, 512, 513}}), Reg("big", 300'000, {{0, 1536, 300'000}}),
                           Reg("sparse", 40960, {{4096, 65536, 4096}, {12288, 131072, 8192}}),
                           Reg("sparse_tail", 20'001, {{16384, 8192, 3617}}), Reg("hole", 100'000, {}),
                           Reg("huge", kHuge, {{uint64_t{1} << 40, 4096, uint64_t{4096}}})});
  // One chunk index per TiB would not do for "huge": its run ends inside one.
  TestMount mount(temp_.File("mnt"));
  const std::string image = WriteImage(
      "image", Build({Reg("one", 513, {{0, 512, 513}}), Reg("big", 300'000, {{0, 1536, 300'000}}),
                      Reg("sparse", 40960, {{4096, 65536, 4096}, {12288, 131072, 8192}}),
                      Reg("sparse_tail", 20'001, {{16384, 8192, 3617}}), Reg("hole", 100'000, {})}));
  ASSERT_TRUE(mount.MountErofs(image, data).ok());
  auto read = [&](const std::string& name) {
    auto bytes = base::ReadFile(mount.path() + "/" + name, 1 << 20);
    EXPECT_TRUE(bytes.ok()) << bytes.status();
    return bytes.ok() ? *bytes : std::string();
  };
  const std::string one = read("one");
  ASSERT_EQ(one.size(), 513u);
  EXPECT_EQ(WordAt(one, 504), 512u + 504);
  const std::string big = read("big");
  ASSERT_EQ(big.size(), 300'000u);
  for (uint64_t at = 0; at < big.size(); at += 8) ASSERT_EQ(WordAt(big, at), 1536 + at);
  const std::string sparse = read("sparse");
  ASSERT_EQ(sparse.size(), 40960u);
  for (uint64_t at = 0; at < sparse.size(); at += 8) {
    uint64_t expected = 0;
    if (at >= 4096 && at < 8192) expected = 65536 + at - 4096;
    if (at >= 12288 && at < 20480) expected = 131072 + at - 12288;
    ASSERT_EQ(WordAt(sparse, at), expected) << at;
  }
  const std::string tail = read("sparse_tail");
  ASSERT_EQ(tail.size(), 20'001u);
  EXPECT_EQ(WordAt(tail, 8), 0u);
  EXPECT_EQ(WordAt(tail, 19'992), 8192u + 19'992 - 16384);
  EXPECT_EQ(read("hole"), std::string(100'000, '\0'));
  ErofsOptions options;
  EXPECT_EQ(WriteErofs(tree, options, temp_.File("huge")).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ErofsKernelTest, FilesAtTheEndOfTwoTebibytes) {
  const std::string data = temp_.File("data");
  constexpr uint64_t kLast = kMaxDataBytes - 1024;  // the last block that has a number
  {
    auto fd = base::OpenFile(data, O_RDWR | O_CREAT);
    ASSERT_TRUE(fd.ok());
    ASSERT_EQ(::ftruncate(fd->get(), static_cast<off_t>(kMaxDataBytes)), 0);
    const std::string word = "the last";
    ASSERT_TRUE(base::PwriteFull(fd->get(), kLast, {reinterpret_cast<const uint8_t*>(word.data()), 8}).ok());
  }
  data_size_ = kMaxDataBytes;
  const Tree tree = Build({Reg("last", 8, {{0, kLast, 8}}), Reg("all", kLast, {{0, 0, kLast}})});
  const std::string image = WriteImage("image", tree);
  TestMount mount(temp_.File("mnt"));
  ASSERT_TRUE(mount.MountErofs(image, data).ok());
  auto bytes = base::ReadFile(mount.path() + "/last", 100);
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  EXPECT_EQ(*bytes, "the last");
  struct stat st{};
  ASSERT_EQ(::stat((mount.path() + "/all").c_str(), &st), 0);
  EXPECT_EQ(st.st_size, static_cast<off_t>(kLast));
  const Tree beyond = Build({Reg("beyond", 8, {{0, kLast + 512, 8}})});
  EXPECT_EQ(WriteErofs(beyond, {}, temp_.File("no")).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ErofsKernelTest, Xattrs) {
  const std::string data = MakeData("data", 4096);
  // VFS_CAP_REVISION_2 with cap_net_raw effective.
  const std::string capability(
      "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", 20);
  // POSIX ACL, version 2: user::rwx user:1000:r-x group::r-x mask::r-x other::---
  const std::string acl(
      "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff"
      "\xff\xff\xff"
      "\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff",
      44);
  std::vector<Entry> entries;
  Entry ping = Reg("ping", 10, {{0, 0, 10}});
  ping.xattrs = {{"security.capability", capability}};
  entries.push_back(ping);
  Entry with_acl = Reg("acl", 0, {});
  with_acl.mode = 0750;
  with_acl.xattrs = {{"system.posix_acl_access", acl}};
  entries.push_back(with_acl);
  Entry dropped = Reg("dropped", 0, {});
  dropped.xattrs = {{"trusted.overlay.redirect", "/x"},
                    {"user.overlay.opaque", "y"},
                    {"com.apple.x", "1"},
                    {"user.kept", ""},
                    {"trusted.x", "1"}};
  entries.push_back(dropped);
  Entry large = Reg("large", 600, {{0, 512, 600}});
  for (int i = 0; i < 60; ++i) {
    large.xattrs.emplace_back(absl::StrFormat("user.%03d%s", i, std::string(static_cast<size_t>(i * 4), 'n')),
                              std::string(static_cast<size_t>(i * 16 + 1), static_cast<char>('a' + i % 26)));
  }
  entries.push_back(large);
  Entry huge = Dir("huge");
  huge.xattrs = {{"user.x", std::string(65400, 'v')}};
  entries.push_back(huge);
  for (int i = 0; i < 40; ++i) {  // inodes of every phase within a block, some with tails behind attributes
    Entry dir = Dir(absl::StrCat("huge/d", i));
    dir.xattrs = {{"user.a", std::string(static_cast<size_t>(i * 11), 'p')}};
    entries.push_back(dir);
    entries.push_back(Reg(absl::StrCat("huge/d", i, "/file"), 1, {{0, 0, 1}}));
  }
  const Tree tree = Build(entries);
  const TreeText text = DescribeTree(tree);
  EXPECT_EQ(text.at("dropped").find("overlay"), std::string::npos);
  EXPECT_NE(text.at("dropped").find("user.kept"), std::string::npos);
  ExpectSameMounted(tree, WriteImage("image", tree), data);
}

TEST_F(ErofsKernelTest, NamesOfEveryKindAndLargeDirectories) {
  const std::string data = MakeData("data", 4096);
  std::vector<Entry> entries;
  for (int byte = 1; byte < 256; ++byte) {
    if (byte == '/' || byte == '.') continue;
    entries.push_back(Reg(absl::StrCat("bytes/", std::string(1, static_cast<char>(byte))), 0, {}));
    entries.push_back(Reg(absl::StrCat("bytes/", std::string(255, static_cast<char>(byte))), 0, {}));
  }
  for (int count = 0; count < 45; ++count) {
    entries.push_back(Dir(absl::StrFormat("counts/%02d", count)));
    for (int i = 0; i < count; ++i)
      entries.push_back(Reg(absl::StrFormat("counts/%02d/n%d", count, i), 0, {}));
  }
  entries.push_back(Reg("new\nline \xc3\xa4\xff", 0, {}));
  Tree tree = Build(entries);
  ExpectSameMounted(tree, WriteImage("image", tree), data);

  constexpr int kMany = 100'000;
  TreeBuilder builder;
  for (int i = 0; i < kMany; ++i)
    ASSERT_TRUE(builder.Add(Reg(absl::StrFormat("many/file-%d", i), 0, {})).ok());
  auto many = builder.Finish();
  ASSERT_TRUE(many.ok());
  const std::string image = WriteImage("many.erofs", *many);
  TestMount mount(temp_.File("many"));
  ASSERT_TRUE(mount.MountErofs(image, data).ok());
  DIR* dir = ::opendir((mount.path() + "/many").c_str());
  ASSERT_NE(dir, nullptr);
  int seen = 0;
  while (::readdir(dir) != nullptr) ++seen;
  ::closedir(dir);
  EXPECT_EQ(seen, kMany + 2);
  for (int i = 0; i < kMany; i += 97) {
    struct stat st{};
    ASSERT_EQ(::lstat(absl::StrFormat("%s/many/file-%d", mount.path(), i).c_str(), &st), 0) << i;
    ASSERT_EQ(::lstat(absl::StrFormat("%s/many/file-%d.", mount.path(), i).c_str(), &st), -1) << i;
    ASSERT_EQ(errno, ENOENT);
  }
}

TEST_F(ErofsKernelTest, DeepDirectories) {
  const std::string data = MakeData("data", 4096);
  std::string path;
  for (int i = 0; i < 1000; ++i) absl::StrAppend(&path, i == 0 ? "" : "/", i % 10);
  const Tree tree = Build({Reg(path + "/leaf", 0, {})});
  ExpectSameMounted(tree, WriteImage("image", tree), data);
}

TEST_F(ErofsKernelTest, WhiteoutsAndOpaqueDirectoriesUnderOverlay) {
  const std::string data = MakeData("data", 4096);
  const Tree lower =
      Build({Reg("gone", 0, {}), Reg("dir/old", 0, {}), Reg("dir/keep", 0, {}), Reg("opq/old", 0, {}),
             Reg("swap/old", 0, {}), Reg("file", 0, {}), Reg("stays", 0, {})});
  const Tree upper =
      Build({Reg(".wh.gone", 0, {}), Reg("dir/.wh.old", 0, {}), Reg("opq/new", 0, {}),
             Reg("opq/.wh..wh..opq", 0, {}), Reg(".wh.swap", 0, {}), Reg("swap/new", 0, {}),
             Reg(".wh.file", 0, {}), Reg("file", 3, {{0, 0, 3}}), Reg(".wh..wh.plnk/1", 0, {})});
  EXPECT_TRUE(upper.has_whiteouts);
  EXPECT_FALSE(lower.has_whiteouts);
  const std::string lower_image = WriteImage("lower.erofs", lower);
  const std::string upper_image = WriteImage("upper.erofs", upper);
  TestMount lower_mount(temp_.File("lower"));
  TestMount upper_mount(temp_.File("upper"));
  TestMount merged(temp_.File("merged"));
  ASSERT_TRUE(lower_mount.MountErofs(lower_image, data).ok());
  ASSERT_TRUE(upper_mount.MountErofs(upper_image, data).ok());
  const absl::Status mounted = merged.MountOverlay({upper_mount.path(), lower_mount.path()});
  ASSERT_TRUE(mounted.ok()) << mounted;
  std::vector<std::string> paths;
  for (const auto& [path, line] : DescribeDirectory(merged.path())) paths.push_back(path);
  EXPECT_EQ(paths, (std::vector<std::string>{"", "dir", "dir/keep", "file", "opq", "opq/new", "stays", "swap",
                                             "swap/new"}));
  struct stat st{};
  ASSERT_EQ(::stat((merged.path() + "/file").c_str(), &st), 0);
  EXPECT_EQ(st.st_size, 3);
}

}  // namespace
}  // namespace lazyblob::layer
