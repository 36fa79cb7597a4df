// What a loss of power leaves: the file system below the snapshotter is stopped without writing what it still
// holds in memory, and mounted again. Every call that was answered must have happened. Root only.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/types.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>

#include "tests/snapshotter/snapshotter_harness.h"

namespace lazyblob::snapshotter {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

// XFS_IOC_GOINGDOWN, which ext4 knows too, and its flag for "write nothing more, the journal neither".
constexpr unsigned long kGoingDown = _IOR('X', 125, __u32);
constexpr __u32 kNoLogFlush = 2;

class PowerTest : public SnapshotterTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    // Of our own, so that nothing stays mounted whatever happens.
    ASSERT_EQ(unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    ASSERT_EQ(mkdir(disk_.c_str(), 0700), 0);
    const std::string image = dir_.File("image");
    ASSERT_EQ(SetSize(image, 400 << 20), 0);
    ASSERT_EQ(Run(absl::StrCat("mkfs.", GetParam(), " -q ", image)), 0);
    ASSERT_TRUE(Plug());
    options_.root = disk_ + "/root";
    Open();
  }
  void TearDown() override {
    snapshotter_.reset();
    umount2(disk_.c_str(), MNT_DETACH);
  }
  static int Run(const std::string& command) { return std::system((command + " >/dev/null").c_str()); }
  static int SetSize(const std::string& path, off_t size) {
    base::UniqueFd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    return ftruncate(file.get(), size);
  }
  bool Plug() { return Run(absl::StrCat("mount -o loop ", dir_.File("image"), " ", disk_)) == 0; }
  void LosePower() {
    {
      base::UniqueFd top = base::OpenFile(disk_, O_RDONLY | O_DIRECTORY).value();
      __u32 flag = kNoLogFlush;
      ASSERT_EQ(ioctl(top.get(), kGoingDown, &flag), 0);
    }
    snapshotter_.reset();  // can write nothing any more
    layers_->Forget();
    ASSERT_EQ(umount(disk_.c_str()), 0);
    ASSERT_TRUE(Plug());
    Open();
  }
  const std::string disk_ = dir_.File("disk");
};

TEST_P(PowerTest, WhatWasAnsweredHasHappened) {
  LosePower();  // an empty database is one
  MakeCommitted("base");
  LosePower();
  EXPECT_THAT(Names(), ElementsAre("base"));
  MakeLazy("ref", "base");
  LosePower();
  EXPECT_THAT(snapshotter_->LazyMounts(), SizeIs(1));
  ASSERT_TRUE(Prepare("active", "ref", {{"l", "old"}}).ok());
  LosePower();
  auto mounts = snapshotter_->Mounts("active");
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_EQ(access(Upper(*mounts).c_str(), F_OK), 0);
  EXPECT_EQ(access(Option(mounts->at(0), "workdir").c_str(), F_OK), 0);
  Info change;
  change.name = "active";
  change.labels = {{"l", "new"}};
  ASSERT_TRUE(snapshotter_->Update(change, {}).ok());
  LosePower();
  EXPECT_EQ(snapshotter_->Stat("active")->labels.at("l"), "new");
  ASSERT_TRUE(Commit("committed", "active").ok());
  LosePower();
  EXPECT_THAT(Names(), ElementsAre("base", "committed", "ref"));
  ASSERT_TRUE(snapshotter_->Remove("committed").ok());
  LosePower();
  EXPECT_THAT(Names(), ElementsAre("base", "ref"));
  EXPECT_THAT(Directories(), SizeIs(1));
}

TEST_P(PowerTest, ManySnapshotsStayConsistent) {
  for (int round = 0; round < 5; ++round) {
    for (int i = 0; i < 20; ++i) {
      const std::string key = absl::StrCat("key ", round, " ", i);
      ASSERT_TRUE(Prepare(key).ok());
      const std::string name = absl::StrCat("name ", round, " ", i);
      const bool committed = i % 2 == 0;
      if (committed) {
        ASSERT_TRUE(Commit(name, key).ok());
      }
      if (i % 5 == 4) {
        ASSERT_TRUE(snapshotter_->Remove(committed ? name : key).ok());
      }
    }
    LosePower();
    EXPECT_THAT(Names(), SizeIs(16 * (round + 1)));
    EXPECT_THAT(Directories(), SizeIs(16 * (round + 1)));
    EXPECT_EQ(LoggedTimes("is missing"), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(FileSystems, PowerTest, testing::Values("ext4", "xfs"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace lazyblob::snapshotter
