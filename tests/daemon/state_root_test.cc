#include "daemon/state_root.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/status.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

TEST(StateRootTest, IsMadePrivateAndLocked) {
  support::TempDir directory;
  std::string root = directory.path() + "/state";
  auto lock = LockStateRoot(root, absl::ZeroDuration());
  ASSERT_TRUE(lock.ok()) << lock.status();
  struct stat st;
  ASSERT_EQ(stat(root.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0700u);
  auto second = LockStateRoot(root, absl::ZeroDuration());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition) << second.status();
}

TEST(StateRootTest, TheLockEndsWithItsDescriptor) {
  support::TempDir directory;
  std::string root = directory.path() + "/state";
  {
    ASSERT_TRUE(LockStateRoot(root, absl::ZeroDuration()).ok());
  }
  EXPECT_TRUE(LockStateRoot(root, absl::ZeroDuration()).ok());
}

TEST(StateRootTest, RefusesOneThatOthersCanEnter) {
  support::TempDir directory;
  std::string root = directory.path() + "/state";
  ASSERT_EQ(mkdir(root.c_str(), 0700), 0);
  ASSERT_EQ(chmod(root.c_str(), 0755), 0);
  EXPECT_FALSE(LockStateRoot(root, absl::ZeroDuration()).ok());
}

TEST(StateRootTest, RefusesASymbolicLink) {
  support::TempDir directory;
  std::string root = directory.path() + "/state";
  ASSERT_EQ(mkdir((directory.path() + "/real").c_str(), 0700), 0);
  ASSERT_EQ(symlink("real", root.c_str()), 0);
  EXPECT_FALSE(LockStateRoot(root, absl::ZeroDuration()).ok());
}

TEST(StateRootTest, RefusesAFileSystemThatCannotHoldImages) {
  auto lock = LockStateRoot("/dev/shm/lazyblob-state-root-test", absl::ZeroDuration());
  rmdir("/dev/shm/lazyblob-state-root-test");
  ASSERT_FALSE(lock.ok());
  EXPECT_NE(lock.status().message().find("ext4"), absl::string_view::npos) << lock.status();
}

}  // namespace
}  // namespace lazyblob::daemon
