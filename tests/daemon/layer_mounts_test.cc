#include "daemon/layer_mounts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <mutex>
#include <thread>

#include "absl/synchronization/notification.h"
#include "base/file.h"
#include "tests/support/fake_mounter.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

using support::FakeMounter;

class LayerMountsTest : public ::testing::Test {
 protected:
  LayerMounts::ReadGate Gate() {
    return {[this](const base::Digest&) { Log("fail reads"); },
            [this](const base::Digest&) { Log("allow reads"); }};
  }
  void Log(const std::string& line) {
    std::lock_guard<std::mutex> lock(mounter_.mutex);
    mounter_.log.push_back(line);
  }
  static MountedLayer Layer(const std::string& name) {
    return {base::Digest::Of(name), "/meta/" + name, "", false};
  }

  support::TempDir directory_;
  FakeMounter mounter_;
  LayerMounts mounts_{directory_.path(), &mounter_, Gate()};
};

using ::testing::ElementsAre;

TEST_F(LayerMountsTest, SharedByItsUsersAndUnmountedWithTheLast) {
  auto first = mounts_.Acquire(Layer("a"), "", fuse::Mode::kErofs);
  auto second = mounts_.Acquire(Layer("a"), "", fuse::Mode::kErofs);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->target, second->target);
  mounts_.Release(*first, fuse::Mode::kErofs);
  EXPECT_THAT(mounter_.log, ElementsAre("mount " + first->target));
  mounts_.Release(*second, fuse::Mode::kErofs);
  EXPECT_THAT(mounter_.log,
              ElementsAre("mount " + first->target, "fail reads", "umount " + first->target, "allow reads"));
  struct stat st;
  EXPECT_NE(lstat(first->target.c_str(), &st), 0) << "the mount point is removed too";
}

TEST_F(LayerMountsTest, OtherMetadataOrModeIsAnotherMount) {
  auto plain = mounts_.Acquire(Layer("a"), "", fuse::Mode::kErofs);
  MountedLayer chained = Layer("a");
  chained.meta_path = "/meta/chain";
  auto other = mounts_.Acquire(chained, "", fuse::Mode::kErofs);
  auto tree = mounts_.Acquire(Layer("a"), "", fuse::Mode::kFuse);
  ASSERT_TRUE(plain.ok() && other.ok() && tree.ok());
  EXPECT_NE(plain->target, other->target);
  EXPECT_NE(plain->target, tree->target);
}

TEST_F(LayerMountsTest, TwoAtOnceMakeOneMount) {
  absl::Notification gate;
  mounter_.gate = &gate;
  std::vector<std::thread> threads;
  std::vector<std::string> targets(8);
  for (size_t i = 0; i < targets.size(); ++i) {
    threads.emplace_back([&, i] {
      auto layer = mounts_.Acquire(Layer("a"), "", fuse::Mode::kErofs);
      if (layer.ok()) targets[i] = layer->target;
    });
  }
  gate.Notify();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(mounter_.log.size(), 1u);
  for (const std::string& target : targets) EXPECT_EQ(target, targets[0]);
}

TEST_F(LayerMountsTest, AFailureLeavesNothingAndIsNotRemembered) {
  mounter_.fail = absl::InternalError("no");
  EXPECT_FALSE(mounts_.Acquire(Layer("a"), "", fuse::Mode::kErofs).ok());
  auto names = base::ListDirectory(directory_.path());
  ASSERT_TRUE(names.ok());
  EXPECT_TRUE(names->empty());
  mounter_.fail = absl::OkStatus();
  EXPECT_TRUE(mounts_.Acquire(Layer("a"), "", fuse::Mode::kErofs).ok());
}

TEST_F(LayerMountsTest, ABusyLayerIsDetached) {
  auto layer = mounts_.Acquire(Layer("a"), "", fuse::Mode::kErofs);
  ASSERT_TRUE(layer.ok());
  mounter_.busy = true;
  mounts_.Release(*layer, fuse::Mode::kErofs);
  EXPECT_THAT(mounter_.log, ElementsAre("mount " + layer->target, "fail reads", "umount " + layer->target,
                                        "lazy umount " + layer->target, "allow reads"));
}

TEST_F(LayerMountsTest, AdoptedMountsAreNotMountedAgain) {
  MountedLayer layer = Layer("a");
  layer.target = directory_.path() + "/7";
  mounts_.Adopt(layer, fuse::Mode::kErofs);
  auto again = mounts_.Acquire(Layer("a"), "", fuse::Mode::kErofs);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->target, layer.target);
  EXPECT_TRUE(mounter_.log.empty());
}

}  // namespace
}  // namespace lazyblob::daemon
