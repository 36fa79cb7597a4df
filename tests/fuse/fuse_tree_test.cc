// The fallback tree as the kernel sees it, compared with the layer's own image.

#include <dirent.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>

#include <cerrno>
#include <map>

#include "absl/strings/str_cat.h"
#include "layer/erofs.h"
#include "layer/tree.h"
#include "tests/fuse/server_fixture.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::fuse {
namespace {

using layer::EntryType;
using layer::ErofsImage;
using support::As;
using support::BytesOf;

constexpr uint32_t kLayer = 42;
constexpr uint64_t kDataSize = 4 << 20;

layer::Entry Make(std::string path, EntryType type) {
  layer::Entry entry;
  entry.path = std::move(path);
  entry.type = type;
  entry.mode = type == EntryType::kDirectory ? 0755 : 0640;
  entry.uid = 3'000'000'000;
  entry.gid = 12;
  entry.mtime_seconds = -5;
  entry.mtime_nanoseconds = 123'456'789;
  return entry;
}

layer::Entry MakeFile(std::string path, uint64_t size, std::vector<layer::Extent> extents) {
  layer::Entry entry = Make(std::move(path), EntryType::kRegular);
  entry.size = size;
  entry.extents = std::move(extents);
  return entry;
}

class FuseTreeTest : public ServerFixture {
 protected:
  FuseTreeTest() {
    layer::TreeBuilder builder;
    std::vector<layer::Entry> entries;
    entries.push_back(Make("dir", EntryType::kDirectory));
    entries.push_back(MakeFile("dir/small", 700, {{0, 512, 700}}));
    entries.push_back(MakeFile("dir/big", (2 << 20) + 300, {{0, 1 << 20, (2 << 20) + 300}}));
    // A hole, data, a hole, data to an unaligned end.
    entries.push_back(MakeFile("sparse", 100'000, {{8192, 4096, 4096}, {65536, 65536, 100'000 - 65536}}));
    entries.push_back(MakeFile("empty", 0, {}));
    entries.back().xattrs = {{"security.capability", std::string("\1\0\2", 3)}, {"user.note", "hello"}};
    entries.push_back(Make("link", EntryType::kSymlink));
    entries.back().link_target = "../some/where";
    entries.push_back(Make("hard", EntryType::kHardLink));
    entries.back().link_target = "dir/small";
    entries.push_back(Make("null", EntryType::kCharDevice));
    entries.back().device_major = 259;
    entries.back().device_minor = 70'000;
    entries.push_back(Make("pipe", EntryType::kFifo));
    entries.push_back(MakeFile("dir/.wh.gone", 0, {}));
    entries.push_back(MakeFile(std::string(255, 'n'), 0, {}));
    entries.push_back(MakeFile("caf\xc3\xa9\nnew\xff", 0, {}));
    entries.push_back(Make("many", EntryType::kDirectory));
    for (int i = 0; i < 3000; ++i) entries.push_back(MakeFile(absl::StrCat("many/file-", i), 0, {}));
    for (layer::Entry& entry : entries) EXPECT_TRUE(builder.Add(std::move(entry)).ok());
    auto tree = builder.Finish();
    EXPECT_TRUE(tree.ok()) << tree.status();
    layer::ErofsOptions options;
    options.data_size = kDataSize;
    EXPECT_TRUE(layer::WriteErofs(*tree, options, directory_.File("meta.erofs")).ok());
    image_ = *ErofsImage::Open(directory_.File("meta.erofs"));
    data_ = Pattern(kDataSize, 9);
    layer_ = std::make_shared<FakeLayer>(kLayer, "tree", data_, directory_.path());
    store_.Add(layer_);
  }

  uint64_t Root() { return kernel_.LookupNode(3, LayerName(layer_->descriptor().digest)); }

  // The node of a path, found by lookups.
  uint64_t Node(const std::vector<std::string>& path) {
    uint64_t node = Root();
    for (const std::string& name : path) node = kernel_.LookupNode(node, name);
    return node;
  }

  void ExpectSame(const fuse_attr& attr, const ErofsImage::Stat& stat) {
    EXPECT_EQ(attr.ino, internal::TreeNode(kLayer, 0, stat.nid));
    EXPECT_EQ(attr.mode, stat.mode);
    EXPECT_EQ(attr.uid, stat.uid);
    EXPECT_EQ(attr.gid, stat.gid);
    EXPECT_EQ(attr.nlink, stat.nlink);
    EXPECT_EQ(attr.size, stat.size);
    EXPECT_EQ(static_cast<int64_t>(attr.mtime), stat.mtime_seconds);
    EXPECT_EQ(attr.mtimensec, stat.mtime_nanoseconds);
    EXPECT_EQ((attr.rdev & 0xfff00) >> 8, stat.device_major);
    EXPECT_EQ((attr.rdev & 0xff) | (attr.rdev >> 12 & 0xfff00), stat.device_minor);
    EXPECT_EQ(attr.blocks, (stat.size + 511) / 512);
  }

  // All of a directory, `size` bytes of answer at a time.
  std::vector<support::FakeKernel::Entry> List(uint64_t node, uint32_t size, bool plus) {
    std::vector<support::FakeKernel::Entry> all;
    uint64_t cookie = 0;
    while (true) {
      auto some = kernel_.ReadDir(node, cookie, size, plus);
      if (some.empty()) return all;
      cookie = some.back().cookie;
      all.insert(all.end(), some.begin(), some.end());
    }
  }

  support::TempDir directory_;
  std::shared_ptr<const ErofsImage> image_;
  std::string data_;
  std::shared_ptr<FakeLayer> layer_;
};

// Walks the whole tree by READDIRPLUS and READDIR and compares every node with the image.
TEST_F(FuseTreeTest, EveryNodeIsWhatTheImageSays) {
  StartServer();
  ASSERT_NE(Root(), 0u);
  EXPECT_EQ(Root(), internal::TreeNode(kLayer, 0, image_->root()));
  std::vector<std::pair<uint64_t, uint64_t>> directories = {{Root(), image_->root()}};
  size_t seen = 0;
  while (!directories.empty()) {
    const auto [node, nid] = directories.back();
    directories.pop_back();
    const auto plus = List(node, 4096, true);
    const auto plain = List(node, 4096, false);
    ASSERT_EQ(plus.size(), plain.size());
    std::vector<std::pair<std::string, uint64_t>> expected;
    ASSERT_TRUE(image_
                    ->ReadDirectory(nid, 0,
                                    [&](absl::string_view name, uint64_t child, uint8_t, uint64_t) {
                                      expected.emplace_back(name, child);
                                      return true;
                                    })
                    .ok());
    ASSERT_EQ(plus.size(), expected.size());
    for (size_t i = 0; i < plus.size(); ++i) {
      EXPECT_EQ(plain[i].name, expected[i].first);
      EXPECT_EQ(plus[i].name, expected[i].first);
      EXPECT_EQ(plain[i].cookie, plus[i].cookie);
      const auto stat = *image_->GetInode(expected[i].second);
      EXPECT_EQ(plain[i].node, internal::TreeNode(kLayer, 0, stat.nid));
      EXPECT_EQ(plain[i].type, IFTODT(stat.mode));
      if (plus[i].name == "." || plus[i].name == "..") {
        EXPECT_EQ(plus[i].plus.nodeid, 0u);
        continue;
      }
      ++seen;
      ExpectSame(plus[i].plus.attr, stat);
      const auto found = As<fuse_entry_out>(kernel_.Lookup(node, plus[i].name).body);
      EXPECT_EQ(found.nodeid, plus[i].plus.nodeid);
      EXPECT_GT(found.attr_valid, 86400u * 365);
      ExpectSame(found.attr, stat);
      ExpectSame(As<fuse_attr_out>(kernel_.GetAttr(found.nodeid).body).attr, stat);
      if (S_ISDIR(stat.mode)) directories.emplace_back(found.nodeid, stat.nid);
    }
  }
  EXPECT_EQ(seen, 3013u);
  EXPECT_EQ(Node({"hard"}), Node({"dir", "small"}));
}

TEST_F(FuseTreeTest, ReaddirGoesOnAtEveryCookieOfAPredecessor) {
  StartServer();
  const uint64_t many = Node({"many"});
  const auto all = List(many, 65536, false);
  ASSERT_EQ(all.size(), 3002u);
  ASSERT_TRUE(TakeOver().ok());
  for (size_t i = 0; i < all.size(); ++i) {
    const auto rest = kernel_.ReadDir(many, all[i].cookie, 256, i % 2 == 1);
    if (i + 1 == all.size()) {
      EXPECT_TRUE(rest.empty());
    } else {
      ASSERT_FALSE(rest.empty()) << i;
      EXPECT_EQ(rest[0].name, all[i + 1].name) << i;
    }
  }
  EXPECT_TRUE(kernel_.ReadDir(many, ~uint64_t{0} >> 1, 4096).empty());
}

TEST_F(FuseTreeTest, LinksAndXattrs) {
  StartServer();
  EXPECT_EQ(kernel_.Call(FUSE_READLINK, Node({"link"}), "").body, "../some/where");
  EXPECT_NE(kernel_.Call(FUSE_READLINK, Node({"empty"}), "").error, 0);

  const uint64_t node = Node({"empty"});
  const auto get = [&](const std::string& name, uint32_t size) {
    fuse_getxattr_in in{};
    in.size = size;
    return kernel_.Call(FUSE_GETXATTR, node, absl::StrCat(BytesOf(in), name, std::string(1, '\0')));
  };
  EXPECT_EQ(As<fuse_getxattr_out>(get("user.note", 0).body).size, 5u);
  EXPECT_EQ(get("user.note", 5).body, "hello");
  EXPECT_EQ(get("user.note", 4).error, ERANGE);
  EXPECT_EQ(get("security.capability", 64).body, std::string("\1\0\2", 3));
  EXPECT_EQ(get("user.other", 64).error, ENODATA);
  fuse_getxattr_in list{};
  list.size = 100;
  EXPECT_EQ(kernel_.Call(FUSE_LISTXATTR, node, BytesOf(list)).body,
            absl::StrCat("security.capability", std::string(1, '\0'), "user.note", std::string(1, '\0')));
  list.size = 0;
  EXPECT_EQ(As<fuse_getxattr_out>(kernel_.Call(FUSE_LISTXATTR, node, BytesOf(list)).body).size, 30u);
  list.size = 29;
  EXPECT_EQ(kernel_.Call(FUSE_LISTXATTR, node, BytesOf(list)).error, ERANGE);
}

TEST_F(FuseTreeTest, FilesAreTheirExtentsAndZeros) {
  StartServer();
  layer_->MakePresent();
  std::string sparse(100'000 + 8192, '\0');
  sparse.replace(8192, 4096, data_, 4096, 4096);
  sparse.replace(65536, 100'000 - 65536, data_, 65536, 100'000 - 65536);
  const uint64_t node = Node({"sparse"});
  const auto open = kernel_.Open(node);
  const auto opened = As<fuse_open_out>(open.body);
  EXPECT_EQ(opened.open_flags, uint32_t{FOPEN_KEEP_CACHE});
  for (auto [offset, size] : std::vector<std::pair<uint64_t, uint32_t>>{
           {0, 4096}, {0, 65536}, {8192, 4096}, {8000, 5000}, {65536, 4096}, {0, 100'352}, {98'304, 4096}}) {
    const auto answer = kernel_.Read(node, opened.fh, offset, size);
    ASSERT_EQ(answer.error, 0);
    EXPECT_TRUE(answer.body == sparse.substr(offset, size)) << offset;
  }
  // Past the end it is zeros, never a short answer.
  EXPECT_EQ(kernel_.Read(node, opened.fh, 1 << 20, 4096).body, std::string(4096, '\0'));
  EXPECT_EQ(kernel_.Read(Node({"empty"}), opened.fh, 0, 4096).body, std::string(4096, '\0'));
  EXPECT_EQ(kernel_.Read(Node({"dir", "small"}), 0, 0, 4096).body,
            data_.substr(512, 700) + std::string(3396, '\0'));
  EXPECT_TRUE(kernel_.Read(Node({"dir", "big"}), 0, 1 << 20, 1 << 20).body == data_.substr(2 << 20, 1 << 20));
  EXPECT_EQ(server_->open_handles(layer_->descriptor().digest),
            2u);  // the one opened, and the 0 that was read with
}

TEST_F(FuseTreeTest, AReadOfManyExtentsWaitsForAllOfThem) {
  StartServer();
  layer_->MakePresent(4096, 8192);
  const uint64_t node = Node({"sparse"});
  const uint64_t read = kernel_.SendRead(node, 1, 0, 100'352);
  ASSERT_TRUE(layer_->AwaitWaiting(1));
  EXPECT_FALSE(kernel_.Answered(read));
  layer_->Release();
  const auto answer = kernel_.Await(read);
  ASSERT_EQ(answer.body.size(), 100'352u);
  EXPECT_TRUE(answer.body.substr(65536, 1000) == data_.substr(65536, 1000));
}

TEST_F(FuseTreeTest, DirectoriesMayBeCachedAndNothingIsWritten) {
  StartServer();
  const auto open = As<fuse_open_out>(kernel_.Open(Node({"many"}), 0, true).body);
  EXPECT_EQ(open.open_flags, uint32_t{FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR});
  EXPECT_EQ(server_->open_handles(layer_->descriptor().digest), 1u);
  EXPECT_EQ(kernel_.Open(Node({"empty"}), O_RDWR).error, EROFS);
  EXPECT_EQ(kernel_.Lookup(Node({"dir"}), "absent").error, ENOENT);
  EXPECT_NE(kernel_.Read(Node({"dir"}), 1, 0, 4096).error, 0);
  const auto whiteout = As<fuse_entry_out>(kernel_.Lookup(Node({"dir"}), "gone").body);
  EXPECT_EQ(whiteout.attr.mode & S_IFMT, uint32_t{S_IFCHR});
  EXPECT_EQ(whiteout.attr.rdev, 0u);
}

TEST_F(FuseTreeTest, StatisticsAreTheLayers) {
  StartServer();
  const auto out = As<fuse_statfs_out>(kernel_.Call(FUSE_STATFS, Node({"dir"}), "").body);
  EXPECT_EQ(out.st.blocks * out.st.bsize, kDataSize);
  EXPECT_EQ(out.st.files, image_->inode_count());
  EXPECT_EQ(out.st.bfree, 0u);
  EXPECT_EQ(out.st.namelen, 255u);
}

TEST_F(FuseTreeTest, NodesOfAForgottenLayerAreStale) {
  StartServer();
  const uint64_t dir = Node({"dir"});
  store_.Forget(kLayer);
  EXPECT_EQ(kernel_.GetAttr(dir).error, ESTALE);
  EXPECT_EQ(kernel_.Lookup(dir, "small").error, ESTALE);
  EXPECT_EQ(Root(), 0u);
}

}  // namespace
}  // namespace lazyblob::fuse
