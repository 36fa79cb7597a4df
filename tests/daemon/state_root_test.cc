#include "daemon/state_root.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "daemon/fresh_start.h"
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

constexpr char kLeft[] =
    "87 65 0:43 / /r/m/1e ro - erofs /proc/self/fd/3 ro\n"
    "90 65 0:45 / /r/m/2.1ed ro shared:7 - erofs /proc/self/fd/3 ro\n"
    "91 65 0:47 / /rest/m/2e ro - erofs /proc/self/fd/3 ro\n"
    "93 65 0:46 / /mnt\\040a ro - overlay lazyblob ro,lowerdir+=/r/m/2.1ed,lowerdir+=/r/m/1e\n"
    "94 65 0:48 / /other ro - overlay lazyblob ro,lowerdir+=/rest/m/2e,lowerdir+=/x\n"
    "95 65 0:49 / /container rw - overlay overlay rw,lowerdir=/r/m/1e:/r/m/2e,upperdir=/r/s/1/fs\n"
    "96 65 0:43 / /single ro - erofs /proc/self/fd/3 ro\n"
    "97 65 0:43 / /containers-view ro - erofs /proc/self/fd/3 ro\n"
    "98 65 0:50 / /reused rw - tmpfs tmpfs rw\n"
    "broken line\n";

TEST(FreshStartTest, FindsWhatAKilledKeeperLeftAndNothingElse) {
  EXPECT_THAT(LeftMounts(kLeft, "/r", {"/single", "/reused", "/gone"}),
              testing::ElementsAre("/single", "/mnt a", "/r/m/2.1ed", "/r/m/1e"));
  EXPECT_THAT(LeftMounts(kLeft, "/elsewhere", {"/single"}), testing::IsEmpty());
}

TEST(FreshStartTest, MountsThatNobodyElseSeesAreRefused) {
  const auto side = [](uint64_t id, const char* tags) {
    MountNamespace out;
    out.id = id;
    out.mountinfo = absl::StrCat("25 1 254:0 / / rw ", tags, " - ext4 /dev/vda rw\n");
    return absl::StatusOr<MountNamespace>(out);
  };
  const absl::StatusOr<MountNamespace> unknown = absl::NotFoundError("x");
  const auto check = [](const auto& own, const auto& containerd, const auto& machine) {
    return CheckMountsAreSeen(own, containerd, machine, "/r");
  };
  EXPECT_TRUE(check(side(1, ""), unknown, side(1, "")).ok()) << "the machine's";
  EXPECT_FALSE(check(side(2, "master:1"), unknown, side(1, "shared:1")).ok()) << "PrivateMounts=";
  EXPECT_FALSE(check(side(2, ""), side(1, ""), side(2, "")).ok()) << "containerd is elsewhere";
  EXPECT_TRUE(check(side(2, ""), side(2, ""), side(1, "")).ok()) << "both in one namespace";
  EXPECT_TRUE(check(side(2, "shared:1"), unknown, side(1, "shared:1")).ok()) << "passed on";
  EXPECT_TRUE(check(side(2, ""), unknown, unknown).ok()) << "nothing is known";
}

}  // namespace
}  // namespace lazyblob::daemon
