#include "daemon/page_sweeper.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>

#include "absl/synchronization/notification.h"
#include "base/file.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

size_t CachedPages(const std::string& path, size_t bytes) {
  auto file = base::OpenFile(path, O_RDONLY);
  void* map = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file->get(), 0);
  std::vector<unsigned char> resident(bytes / 4096);
  mincore(map, bytes, resident.data());
  munmap(map, bytes);
  size_t pages = 0;
  for (unsigned char page : resident) pages += page & 1;
  return pages;
}

TEST(PageSweeperTest, DropsTheCleanPagesOfTheFilesItIsTold) {
  support::TempDir directory;
  if (!directory.on_disk()) GTEST_SKIP() << "no disk file system here: nothing to drop pages of";
  const std::string path = directory.File("data");
  const size_t size = 1 << 20;
  ASSERT_TRUE(base::WriteFileAtomically(path, std::string(size, 'x')).ok());  // synced
  ASSERT_TRUE(base::ReadFile(path, size).ok());
  ASSERT_GT(CachedPages(path, size), 0u);
  std::atomic<int> asked{0};
  absl::Notification swept;  // the second question comes after the first answer was worked off
  PageSweeper sweeper(absl::Milliseconds(1), [&] {
    if (++asked == 2) swept.Notify();
    return std::vector<std::string>{path, directory.File("missing")};
  });
  swept.WaitForNotification();
  EXPECT_EQ(CachedPages(path, size), 0u);
}

}  // namespace
}  // namespace lazyblob::daemon
