// What a loss of power leaves: the file system below the snapshotter is stopped without writing what it still
// holds in memory, and mounted again. Every call that was answered must have happened. Root only.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/snapshotter/snapshotter_harness.h"
#include "tests/support/power_disk.h"

namespace lazyblob::snapshotter {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

class PowerTest : public SnapshotterTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    const absl::Status made = disk_.Make(dir_.path(), GetParam());
    ASSERT_TRUE(made.ok()) << made;
    options_.root = disk_.path() + "/root";
    Open();
  }
  void TearDown() override { snapshotter_.reset(); }
  void LosePower() {
    ASSERT_TRUE(disk_.CutPower().ok());
    snapshotter_.reset();  // can write nothing any more
    layers_->Forget();
    const absl::Status status = disk_.Restart();
    ASSERT_TRUE(status.ok()) << status;
    Open();
  }
  support::PowerDisk disk_;
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
