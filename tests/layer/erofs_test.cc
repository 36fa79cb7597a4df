#include "layer/erofs.h"

#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "tests/layer/tree_text.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::layer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Layers made of random entries, names from a small alphabet so that they collide.
class RandomLayer {
 public:
  explicit RandomLayer(uint64_t seed) : random_(seed) {}

  Tree Make() {
    TreeBuilder builder;
    const uint64_t entries = 1 + random_() % 400;
    for (uint64_t i = 0; i < entries; ++i)
      (void)builder.Add(RandomEntry());  // some are refused, which is fine
    auto tree = builder.Finish();
    if (tree.ok()) return *std::move(tree);
    return Make();  // dangling hard links
  }

 private:
  std::string Name() {
    const uint64_t kind = random_() % 20;
    if (kind == 0) return std::string(1 + random_() % 255, static_cast<char>('a' + random_() % 3));
    if (kind == 1) return std::string(1, static_cast<char>(128 + random_() % 100));
    return absl::StrCat(std::string(1, static_cast<char>('!' + random_() % 14)), random_() % 30);
  }

  Entry RandomEntry() {
    static constexpr EntryType kTypes[] = {
        EntryType::kRegular,     EntryType::kRegular, EntryType::kRegular,  EntryType::kDirectory,
        EntryType::kDirectory,   EntryType::kSymlink, EntryType::kHardLink, EntryType::kCharDevice,
        EntryType::kBlockDevice, EntryType::kFifo,    EntryType::kRegular};
    Entry entry;
    for (uint64_t depth = random_() % 5; depth > 0; --depth) entry.path += Name() + "/";
    if (random_() % 15 == 0) {
      entry.path += random_() % 2 == 0 ? ".wh..wh..opq" : ".wh." + Name();
    } else {
      entry.path += Name();
    }
    entry.type = kTypes[random_() % std::size(kTypes)];
    if (entry.type == EntryType::kHardLink && !files_.empty())
      entry.link_target = files_[random_() % files_.size()];
    if (entry.type == EntryType::kSymlink) entry.link_target = std::string(1 + random_() % 1100, 'l');
    entry.mode = static_cast<uint32_t>(random_() % 010000);
    entry.uid = static_cast<uint32_t>(random_());
    entry.gid = static_cast<uint32_t>(random_());
    entry.mtime_seconds = static_cast<int64_t>(random_() % 4'000'000'000);
    entry.mtime_nanoseconds = static_cast<uint32_t>(random_() % 1'000'000'000);
    entry.device_major = static_cast<uint32_t>(random_() % 4096);
    entry.device_minor = static_cast<uint32_t>(random_() % 1048576);
    for (uint64_t i = random_() % 8; i > 5; --i) {
      entry.xattrs.emplace_back(absl::StrCat("user.", std::string(random_() % 50, 'x'), i),
                                std::string(random_() % 700, static_cast<char>(random_())));
    }
    if (entry.type == EntryType::kRegular) AddContents(&entry);
    return entry;
  }

  void AddContents(Entry* entry) {
    files_.push_back(entry->path);
    entry->size = random_() % 3 == 0 ? 0 : random_() % 200'000;
    if (entry->size == 0) return;
    if (random_() % 3 != 0) {
      entry->extents = {{0, random_() % 1'000'000 * 512, entry->size}};
      return;
    }
    for (uint64_t at = random_() % 3 * 4096; at < entry->size; at += 4096 * (1 + random_() % 4)) {
      const uint64_t length = std::min<uint64_t>(4096, entry->size - at);
      if (random_() % 2 == 0) entry->extents.push_back({at, random_() % 1'000'000 * 512, length});
    }
  }

  std::mt19937_64 random_;
  std::vector<std::string> files_;
};

class ErofsTest : public ::testing::Test {
 protected:
  std::string Write(const Tree& tree, const std::string& name = "image") {
    ErofsOptions options;
    options.layer = base::Digest::Of("layer");
    options.data_size = 1 << 30;
    const std::string path = temp_.File(name);
    const absl::Status written = WriteErofs(tree, options, path);
    EXPECT_TRUE(written.ok()) << written;
    return path;
  }
  std::shared_ptr<const ErofsImage> Open(const std::string& path) {
    auto image = ErofsImage::Open(path);
    EXPECT_TRUE(image.ok()) << image.status();
    return image.ok() ? *image : nullptr;
  }
  std::string Bytes(const std::string& path) { return base::ReadFile(path, 1 << 30).value(); }

  support::TempDir temp_;
};

TEST_F(ErofsTest, RandomTreesComeBackAsTheyWere) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const Tree tree = RandomLayer(seed).Make();
    const std::string path = Write(tree);
    auto image = Open(path);
    ASSERT_NE(image, nullptr);
    EXPECT_EQ(image->inode_count(), tree.inodes.size());
    auto back = image->ToTree();
    ASSERT_TRUE(back.ok()) << back.status() << " seed " << seed;
    ASSERT_EQ(Difference(DescribeTree(tree), DescribeTree(*back)), "") << "seed " << seed;
    EXPECT_EQ(back->has_whiteouts, tree.has_whiteouts);
    // The same tree gives the same bytes.
    EXPECT_EQ(Bytes(Write(*back, "again")), Bytes(path)) << "seed " << seed;
  }
}

TEST_F(ErofsTest, LookupAndReaddirAgree) {
  for (uint64_t seed = 1000; seed < 1020; ++seed) {
    auto image = Open(Write(RandomLayer(seed).Make()));
    std::vector<uint64_t> directories = {image->root()};
    for (size_t i = 0; i < directories.size(); ++i) {
      const uint64_t directory = directories[i];
      std::vector<std::string> all;
      uint64_t cookie = 0;
      // One entry a call: cookies alone carry the position.
      for (bool more = true; more;) {
        more = false;
        ASSERT_TRUE(image
                        ->ReadDirectory(
                            directory, cookie,
                            [&](absl::string_view name, uint64_t nid, uint8_t type, uint64_t next) {
                              all.emplace_back(name);
                              EXPECT_EQ(image->Lookup(directory, name).value_or(0), nid);
                              const auto stat = image->GetInode(nid);
                              EXPECT_TRUE(stat.ok());
                              EXPECT_EQ(type == 2, S_ISDIR(stat->mode));
                              if (type == 2 && name != "." && name != "..") directories.push_back(nid);
                              EXPECT_EQ(image->Lookup(directory, absl::StrCat(name, "\x01")).status().code(),
                                        absl::StatusCode::kNotFound);
                              cookie = next;
                              more = true;
                              return false;
                            })
                        .ok());
      }
      EXPECT_TRUE(std::is_sorted(all.begin(), all.end()));
      EXPECT_EQ(std::adjacent_find(all.begin(), all.end()), all.end());
      EXPECT_EQ(image->Lookup(directory, ".").value_or(0), directory);
    }
    EXPECT_EQ(image->Lookup(image->root(), "..").value_or(0), image->root());
  }
}

TEST_F(ErofsTest, MapFileLeavesHolesOut) {
  TreeBuilder builder;
  Entry file;
  file.path = "f";
  file.size = 20'000;
  file.extents = {{4096, 8192, 4096}, {8192, 512, 4096}, {16384, 65536, 3616}};
  ASSERT_TRUE(builder.Add(file).ok());
  auto image = Open(Write(builder.Finish().value()));
  const uint64_t nid = image->Lookup(image->root(), "f").value();
  auto map = [&](uint64_t offset, uint64_t length) {
    std::vector<std::string> text;
    const auto mapped = image->MapFile(nid, offset, length);
    if (!mapped.ok()) return std::vector<std::string>{std::string(mapped.status().message())};
    for (const Extent& e : *mapped) {
      text.push_back(absl::StrCat(e.file_offset, "+", e.length, "@", e.data_offset));
    }
    return text;
  };
  EXPECT_THAT(map(0, 20'000), ElementsAre("4096+4096@8192", "8192+4096@512", "16384+3616@65536"));
  EXPECT_THAT(map(0, ~uint64_t{0}), ElementsAre("4096+4096@8192", "8192+4096@512", "16384+3616@65536"));
  EXPECT_THAT(map(5000, 10), ElementsAre("5000+10@9096"));
  EXPECT_THAT(map(8000, 1000), ElementsAre("8000+192@12096", "8192+808@512"));
  EXPECT_THAT(map(12288, 4096), ElementsAre());
  EXPECT_THAT(map(19'999, 100), ElementsAre("19999+1@69151"));
  EXPECT_THAT(map(20'000, 1), ElementsAre());
  EXPECT_FALSE(image->MapFile(image->root(), 0, 1).ok());
}

TEST_F(ErofsTest, TheUserOpaqueMarkIsAChoice) {
  TreeBuilder builder;
  Entry marker;
  marker.path = "d/.wh..wh..opq";
  ASSERT_TRUE(builder.Add(marker).ok());
  const Tree tree = builder.Finish().value();
  ErofsOptions options;
  options.opaque_xattr = "user.overlay.opaque";
  ASSERT_TRUE(WriteErofs(tree, options, temp_.File("user")).ok());
  auto image = Open(temp_.File("user"));
  using X = std::pair<std::string, std::string>;
  EXPECT_THAT(image->Xattrs(image->Lookup(image->root(), "d").value()).value(),
              ElementsAre(X("user.overlay.opaque", "y")));
  EXPECT_TRUE(image->ToTree()->inodes[1].opaque);
}

TEST_F(ErofsTest, TreesThatBreakTheRulesAreRefused) {
  auto refuse = [&](auto change) {
    Tree tree;
    tree.inodes.resize(3);
    for (Inode& inode : tree.inodes) inode.mode = S_IFDIR | 0755;
    tree.inodes[0].children = {{"a", 1}, {"b", 2}};
    change(tree);
    const absl::Status status = WriteErofs(tree, {}, temp_.File("refused"));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_FALSE(ErofsImage::Open(temp_.File("refused")).ok());
  };
  refuse([](Tree& t) { t.inodes.clear(); });
  refuse([](Tree& t) { t.inodes[0].mode = S_IFREG; });
  refuse([](Tree& t) { t.inodes[0].children[0].first = "a/b"; });
  refuse([](Tree& t) { t.inodes[0].children[0].first = std::string(256, 'a'); });
  refuse([](Tree& t) { t.inodes[0].children[0].first = ".."; });
  refuse([](Tree& t) { t.inodes[0].children[0].first = "c"; });
  refuse([](Tree& t) { t.inodes[0].children[0].second = 3; });
  refuse([](Tree& t) { t.inodes[0].children[0].second = 0; });
  refuse([](Tree& t) { t.inodes[1].children = {{"x", 2}}; });
  refuse([](Tree& t) { t.inodes[1].mode = 0; });
  refuse([](Tree& t) { t.inodes[1].mode = S_IFLNK; });
  refuse([](Tree& t) { t.inodes[1].xattrs = {{"odd", "x"}}; });
  refuse([](Tree& t) { t.inodes[1].mtime_nanoseconds = 1'000'000'000; });
  refuse([](Tree& t) {
    t.inodes[1].mode = S_IFREG;
    t.inodes[1].size = 1000;
    t.inodes[1].extents = {{0, 100, 1000}};  // not at a block
  });
  ErofsOptions options;
  options.data_size = (uint64_t{2} << 40) + 1;
  EXPECT_FALSE(WriteErofs(RandomLayer(1).Make(), options, temp_.File("refused")).ok());
}

// Asks the image everything it can be asked; all that may happen is an error.
void AskEverything(const ErofsImage& image) {
  (void)image.ToTree();
  for (uint64_t nid = 0; nid < 400; ++nid) {
    (void)image.GetInode(nid);
    (void)image.ReadLink(nid);
    (void)image.Xattrs(nid);
    (void)image.MapFile(nid, 0, 1 << 20);
    (void)image.Lookup(nid, "a5");
    int budget = 10'000;
    (void)image.ReadDirectory(nid, 0, [&](absl::string_view name, uint64_t, uint8_t, uint64_t) {
      EXPECT_LE(name.size(), 255u);
      EXPECT_EQ(name.find('/'), absl::string_view::npos);
      return --budget > 0;
    });
    (void)image.ReadDirectory(nid, ~uint64_t{0} - 511,
                              [](absl::string_view, uint64_t, uint8_t, uint64_t) { return true; });
  }
}

TEST_F(ErofsTest, DamagedImagesGiveErrorsOnly) {
  std::mt19937_64 random(7);
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    const std::string good = Bytes(Write(RandomLayer(seed).Make()));
    for (int round = 0; round < 60; ++round) {
      std::string bad = good;
      for (uint64_t flips = 1 + random() % 20; flips > 0; --flips) {
        bad[1536 + random() % (bad.size() - 1536)] = static_cast<char>(random() % 3 == 0 ? 0xff : random());
      }
      const std::string path = temp_.File("bad");
      std::ofstream(path, std::ios::binary) << bad;
      auto image = ErofsImage::Open(path);
      if (image.ok()) AskEverything(**image);
    }
    for (uint64_t size : {uint64_t{0}, uint64_t{1024}, uint64_t{1600}, good.size() - 4096}) {
      std::ofstream(temp_.File("short"), std::ios::binary) << good.substr(0, size);
      EXPECT_EQ(ErofsImage::Open(temp_.File("short")).status().code(), absl::StatusCode::kDataLoss) << size;
    }
    for (uint64_t at = 1024; at < 1536; at += 5) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 0x10);
      std::ofstream(temp_.File("super"), std::ios::binary) << bad;
      EXPECT_EQ(ErofsImage::Open(temp_.File("super")).status().code(), absl::StatusCode::kDataLoss) << at;
    }
  }
  EXPECT_FALSE(ErofsImage::Open(temp_.File("none")).ok());
}

}  // namespace
}  // namespace lazyblob::layer
