#include "fuse/internal/page_dropper.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/file.h"
#include "tests/fuse/fake_store.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr uint64_t kSize = 8 << 20;

class PageDropperTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!directory_.on_disk()) GTEST_SKIP() << "no disk file system here: nothing is ever dropped";
    file_ = *base::OpenFile(directory_.File("data"), O_RDWR | O_CREAT);
    const std::string data = Pattern(kSize, 3);
    ASSERT_TRUE(base::WriteFull(file_.get(), {reinterpret_cast<const uint8_t*>(data.data()), kSize}).ok());
    ASSERT_EQ(fsync(file_.get()), 0);
  }

  // Pages of [begin, end) that are in the page cache.
  size_t Cached(uint64_t begin, uint64_t end) {
    void* map = mmap(nullptr, kSize, PROT_READ, MAP_SHARED, file_.get(), 0);
    std::vector<unsigned char> pages(kSize / 4096);
    EXPECT_EQ(mincore(map, kSize, pages.data()), 0);
    munmap(map, kSize);
    return static_cast<size_t>(std::count_if(pages.begin() + begin / 4096, pages.begin() + end / 4096,
                                             [](unsigned char page) { return page & 1; }));
  }

  support::TempDir directory_;
  base::UniqueFd file_;
  PageDropper dropper_;
  absl::Duration now_ = absl::Hours(1);
};

TEST_F(PageDropperTest, ServedPagesLeaveThePageCache) {
  ASSERT_EQ(Cached(0, kSize), kSize / 4096);
  EXPECT_TRUE(dropper_.Served(1, file_.get(), 0, 1 << 20, now_));
  EXPECT_FALSE(dropper_.Served(1, file_.get(), 1 << 20, 1 << 20, now_));
  EXPECT_TRUE(dropper_.Flush(now_, false));  // too young
  EXPECT_EQ(Cached(0, kSize), kSize / 4096);
  EXPECT_TRUE(dropper_.Flush(now_ + absl::Seconds(1), false));
  EXPECT_EQ(Cached(0, 2 << 20), 0u);
  EXPECT_EQ(Cached(4 << 20, kSize), (kSize - (4 << 20)) / 4096);
}

TEST_F(PageDropperTest, ManyBytesDoNotWait) {
  for (int i = 0; i < 4; ++i) dropper_.Served(1, file_.get(), 0, kSize, now_);
  dropper_.Flush(now_, false);
  EXPECT_EQ(Cached(0, kSize), 0u);
}

TEST_F(PageDropperTest, NeighboursOfUnalignedRangesGoTogether) {
  for (uint64_t at = 512; at + 700 < 1 << 20; at += 700) dropper_.Served(1, file_.get(), at, 700, now_);
  dropper_.Flush(now_, true);
  EXPECT_EQ(Cached(0, 1 << 20), 0u);
}

// What was fetched just now is dirty: the first pass only starts its write-back.
TEST_F(PageDropperTest, DirtyPagesGoInTheSecondPass) {
  dropper_.Served(1, file_.get(), 0, kSize, now_);
  now_ += absl::Seconds(1);
  ASSERT_TRUE(dropper_.Flush(now_, false));
  std::vector<uint8_t> bytes(kSize, 'x');
  ASSERT_TRUE(base::PwriteFull(file_.get(), 0, bytes).ok());
  ASSERT_EQ(fsync(file_.get()), 0);
  ASSERT_EQ(Cached(0, kSize), kSize / 4096);
  now_ += absl::Seconds(10);
  EXPECT_FALSE(dropper_.Flush(now_, false));
  EXPECT_EQ(Cached(0, kSize), 0u);
}

TEST_F(PageDropperTest, OutlivesTheDescriptorItWasGiven) {
  base::UniqueFd other = *base::OpenFile(directory_.File("data"), O_RDONLY);
  dropper_.Served(1, other.get(), 0, kSize, now_);
  other.Reset();
  dropper_.Flush(now_, true);
  EXPECT_EQ(Cached(0, kSize), 0u);
}

}  // namespace
}  // namespace lazyblob::fuse::internal
