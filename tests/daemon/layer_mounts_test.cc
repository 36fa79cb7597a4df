#include "daemon/layer_mounts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "base/file.h"
#include "tests/support/fake_mounter.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

using support::FakeMounter;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

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
  static WantedLayer Layer(uint32_t id, const std::string& meta = "meta.erofs") {
    WantedLayer layer;
    layer.digest = base::Digest::Of(absl::StrCat(id));
    layer.id = id;
    layer.meta_path = absl::StrCat("/layers/", id, "/", meta);
    return layer;
  }
  std::string Path(const std::string& name) { return directory_.path() + "/" + name; }
  bool Exists(const std::string& path) {
    struct stat st;
    return lstat(path.c_str(), &st) == 0;
  }

  support::TempDir directory_;
  FakeMounter mounter_;
  LayerMounts mounts_{directory_.path(), &mounter_, Gate()};
};

TEST_F(LayerMountsTest, SharedByItsUsersAndUnmountedWithTheLast) {
  auto first = mounts_.Acquire(Layer(1));
  auto second = mounts_.Acquire(Layer(1));
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(*first, *second);
  mounts_.Release(*first);
  EXPECT_THAT(mounter_.log, ElementsAre("mount " + *first));
  EXPECT_TRUE(mounts_.Mounted(*first));
  mounts_.Release(*second);
  EXPECT_THAT(mounter_.log, ElementsAre("mount " + *first, "fail reads", "umount " + *first, "allow reads"));
  EXPECT_FALSE(Exists(*first)) << "the mount point is removed too";
  EXPECT_FALSE(mounts_.Mounted(*first));
}

TEST_F(LayerMountsTest, NamesAreShortAndSayWhatIsMounted) {
  EXPECT_EQ(mounts_.Acquire(Layer(12)).value(), Path("12e"));
  EXPECT_EQ(mounts_.Acquire(Layer(12, "meta-3-0123456789abcdef.erofs")).value(), Path("12.3e"));
  WantedLayer other = Layer(12);
  other.mode = fuse::Mode::kLoop;
  other.data_path = "/layers/12/data";
  EXPECT_EQ(mounts_.Acquire(other).value(), Path("12ld"));
  EXPECT_THAT(mounts_.DirectFiles(), ElementsAre("/layers/12/data"));
  other.mode = fuse::Mode::kFuse;
  other.data_path = "";
  EXPECT_EQ(mounts_.Acquire(other).value(), Path("12f"));
}

TEST_F(LayerMountsTest, ReadsOfALayerThatIsMountedInAnotherWayTooGoOn) {
  const std::string own = mounts_.Acquire(Layer(1)).value();
  const std::string chained = mounts_.Acquire(Layer(1, "meta-1-0123456789abcdef.erofs")).value();
  mounter_.log.clear();
  mounts_.Release(chained);
  EXPECT_THAT(mounter_.log, ElementsAre("umount " + chained));
  mounts_.Release(own);
  EXPECT_THAT(mounter_.log, ElementsAre("umount " + chained, "fail reads", "umount " + own, "allow reads"));
}

TEST_F(LayerMountsTest, TwoAtOnceMakeOneMount) {
  absl::Notification gate;
  mounter_.gate = &gate;
  std::vector<std::thread> threads;
  std::vector<std::string> targets(8);
  for (size_t i = 0; i < targets.size(); ++i) {
    threads.emplace_back([&, i] {
      auto target = mounts_.Acquire(Layer(1));
      if (target.ok()) targets[i] = *target;
    });
  }
  gate.Notify();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(mounter_.log.size(), 1u);
  for (const std::string& target : targets) EXPECT_EQ(target, Path("1e"));
}

TEST_F(LayerMountsTest, AFailureLeavesNothingAndIsNotRemembered) {
  mounter_.fail = absl::InternalError("no");
  EXPECT_FALSE(mounts_.Acquire(Layer(1)).ok());
  EXPECT_THAT(base::ListDirectory(directory_.path()).value(), IsEmpty());
  mounter_.fail = absl::OkStatus();
  EXPECT_TRUE(mounts_.Acquire(Layer(1)).ok());
}

TEST_F(LayerMountsTest, ABusyLayerIsDetached) {
  const std::string target = mounts_.Acquire(Layer(1)).value();
  mounter_.busy = true;
  mounts_.Release(target);
  EXPECT_THAT(mounter_.log, ElementsAre("mount " + target, "fail reads", "umount " + target,
                                        "lazy umount " + target, "allow reads"));
}

TEST_F(LayerMountsTest, ALayerStaysWhileItIsMounted) {
  auto pin = std::make_shared<int>(0);
  WantedLayer layer = Layer(1);
  layer.pin = pin;
  const std::string target = mounts_.Acquire(layer).value();
  layer.pin.reset();
  EXPECT_EQ(pin.use_count(), 2);
  mounts_.Release(target);
  EXPECT_EQ(pin.use_count(), 1);
}

TEST_F(LayerMountsTest, WhatAPredecessorMountedIsNotMountedAgain) {
  mounts_.Inherit({Path("1e"), Path("7"), "/somewhere/else"});
  EXPECT_FALSE(mounts_.Mounted(Path("1e"))) << "nobody has asked for it yet";
  EXPECT_EQ(mounts_.Acquire(Layer(1)).value(), Path("1e"));
  EXPECT_TRUE(mounts_.Adopt(Path("7"), Layer(7)));
  EXPECT_TRUE(mounts_.Adopt(Path("7"), Layer(7)));
  EXPECT_TRUE(mounter_.log.empty());
  mounts_.Release(Path("7"));
  EXPECT_TRUE(mounter_.log.empty());
  mounts_.Release(Path("7"));
  EXPECT_THAT(mounter_.log, ElementsAre("fail reads", "umount " + Path("7"), "allow reads"));
}

TEST_F(LayerMountsTest, OnlyWhatIsMountedCanBeAdopted) {
  EXPECT_FALSE(mounts_.Adopt(Path("1e"), Layer(1)));
  const std::string target = mounts_.Acquire(Layer(1)).value();
  EXPECT_FALSE(mounts_.Adopt(target, Layer(2))) << "that is another layer";
}

TEST_F(LayerMountsTest, WhatNobodyAskedForAgainIsTakenDown) {
  ASSERT_TRUE(base::MakeDirectories(Path("9e")).ok());
  ASSERT_TRUE(base::MakeDirectories(Path("left-behind")).ok());
  mounts_.Inherit({Path("1e"), Path("9e"), "/somewhere/else"});
  const std::string kept = mounts_.Acquire(Layer(1)).value();
  ASSERT_TRUE(base::MakeDirectories(kept).ok());
  mounts_.UnmountInherited();
  EXPECT_THAT(mounter_.log, ElementsAre("umount " + Path("9e")));
  EXPECT_THAT(base::ListDirectory(directory_.path()).value(), ElementsAre("1e"));
}

TEST_F(LayerMountsTest, ViewsAreSharedPerDirectoryAndMapping) {
  const fuse::IdMapping mapping{{{0, 100000, 65536}}, {{0, 100000, 65536}}};
  const fuse::IdMapping other{{{0, 200000, 65536}}, {{0, 100000, 65536}}};
  const std::string view = mounts_.AcquireView("/a", mapping).value();
  EXPECT_EQ(mounts_.AcquireView("/a", mapping).value(), view);
  EXPECT_NE(mounts_.AcquireView("/a", other).value(), view);
  EXPECT_NE(mounts_.AcquireView("/b", mapping).value(), view);
  EXPECT_THAT(mounter_.mapped, SizeIs(3));
  EXPECT_LE(view.size(), directory_.path().size() + 14);
  mounter_.log.clear();
  mounts_.ReleaseView("/a", mapping);
  EXPECT_TRUE(mounter_.log.empty());
  mounts_.ReleaseView("/a", mapping);
  EXPECT_THAT(mounter_.log, ElementsAre("umount " + view));
}

TEST_F(LayerMountsTest, AViewOfAPredecessorIsFoundAgain) {
  const fuse::IdMapping mapping{{{0, 100000, 65536}}, {{0, 100000, 65536}}};
  const std::string view = mounts_.AcquireView("/a", mapping).value();
  LayerMounts successor(directory_.path(), &mounter_, Gate());
  successor.Inherit({view});
  EXPECT_EQ(successor.AcquireView("/a", mapping).value(), view);
  EXPECT_THAT(mounter_.mapped, SizeIs(1));
}

TEST_F(LayerMountsTest, AViewThatCannotBeMadeIsAnError) {
  mounter_.fail_mapped = absl::UnimplementedError("not here");
  auto view = mounts_.AcquireView("/a", {{{0, 1, 1}}, {{0, 1, 1}}});
  EXPECT_TRUE(absl::IsUnimplemented(view.status())) << view.status();
  EXPECT_THAT(base::ListDirectory(directory_.path()).value(), IsEmpty());
}

}  // namespace
}  // namespace lazyblob::daemon
