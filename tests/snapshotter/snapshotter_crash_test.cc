// What a snapshotter that was killed leaves behind. The one that dies runs in a process of its own: this test
// program again, with the test of Victim alone and one fault point armed to kill. Afterwards each operation
// is wholly done or wholly absent, doing it again works, and Cleanup leaves no garbage.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>

#include "base/fault.h"
#include "tests/snapshotter/snapshotter_harness.h"
#include "tests/support/victim.h"

namespace lazyblob::snapshotter {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// One operation, on what SetUpFor makes before.
struct Operation {
  const char* name;
  std::vector<const char*> points;
};

const Operation kOperations[] = {
    {"prepare",
     {"snapshotter/prepare/begin", "snapshotter/directory/made", "snapshotter/prepare/directory-made",
      "snapshotter/prepare/row-inserted", "snapshotter/prepare/directory-renamed",
      "snapshotter/prepare/done"}},
    {"lazy",
     {"snapshotter/lazy/begin", "snapshotter/lazy/mounted", "snapshotter/lazy/row-written",
      "snapshotter/lazy/done"}},
    {"commit",
     {"snapshotter/commit/begin", "snapshotter/commit/measured", "snapshotter/commit/row-written",
      "snapshotter/commit/done"}},
    {"remove",
     {"snapshotter/remove/begin", "snapshotter/remove/row-deleted", "snapshotter/remove/committed",
      "snapshotter/remove/released", "snapshotter/remove/done"}},
    {"update", {"snapshotter/update/begin", "snapshotter/update/row-written", "snapshotter/update/done"}},
    {"cleanup", {"snapshotter/cleanup/begin", "snapshotter/cleanup/marked", "snapshotter/cleanup/removed"}},
};

class CrashTest : public SnapshotterTest {
 protected:
  void SetUpFor(const std::string& operation) {
    if (operation == "commit" || operation == "remove" || operation == "update") {
      auto mounts = Prepare("key", "", {{"l", "old"}});
      ASSERT_TRUE(mounts.ok());
      ASSERT_TRUE(base::WriteFileAtomically(Upper(*mounts) + "/file", "x").ok());
    }
    if (operation == "cleanup") {
      ASSERT_TRUE(base::MakeDirectories(options_.root + "/s/77/fs/a").ok());
    }
  }
  absl::Status Do(const std::string& operation) {
    if (operation == "prepare") return Prepare("key", "base", {{"l", "v"}}).status();
    if (operation == "lazy") return Prepare("key", "base", LazyLabels("ref", LayerDigest("ref"))).status();
    if (operation == "commit") return Commit("name", "key", {{"l", "new"}});
    if (operation == "remove") return snapshotter_->Remove("key");
    if (operation == "cleanup") return snapshotter_->Cleanup();
    Info change;
    change.name = "key";
    change.labels = {{"l", "new"}};
    return snapshotter_->Update(change, {}).status();
  }
  // Whether the operation took effect; fails where it did by half.
  bool Done(const std::string& operation) {
    const absl::StatusOr<Info> key = snapshotter_->Stat("key");
    if (operation == "prepare") {
      if (!key.ok()) return false;
      EXPECT_EQ(key->labels.at("l"), "v");
      auto mounts = snapshotter_->Mounts("key");
      EXPECT_TRUE(mounts.ok()) << mounts.status();
      EXPECT_EQ(access(Upper(*mounts).c_str(), F_OK), 0);
      return true;
    }
    if (operation == "lazy") {
      EXPECT_FALSE(key.ok());
      const absl::StatusOr<Info> lazy = snapshotter_->Stat("ref");
      EXPECT_EQ(snapshotter_->LazyMounts().size(), lazy.ok() ? 1u : 0u);
      return lazy.ok();
    }
    if (operation == "commit") {
      const absl::StatusOr<Info> name = snapshotter_->Stat("name");
      EXPECT_NE(key.ok(), name.ok());
      if (name.ok()) {
        EXPECT_EQ(snapshotter_->GetUsage("name")->inodes, 2u);
      }
      EXPECT_EQ((name.ok() ? *name : *key).labels.at("l"), name.ok() ? "new" : "old");
      return name.ok();
    }
    if (operation == "remove") return !key.ok();
    if (operation == "update") return key->labels.at("l") == "new";
    return true;  // Cleanup: seen by the directories
  }
  int RunVictim(const std::string& operation, const std::string& point) {
    return support::RunVictim(dir_.path(), operation, point);
  }
  // Makes everything afresh for an operation, closed.
  void StartAgain(const std::string& operation) {
    snapshotter_.reset();
    layers_->Forget();
    ASSERT_TRUE(base::RemoveTree(options_.root).ok());
    Open();
    MakeCommitted("base");
    SetUpFor(operation);
    snapshotter_.reset();
  }
  void ExpectWhole(const std::string& operation) {
    const bool done = Done(operation);
    const absl::Status again = Do(operation);
    if (operation == "lazy") {
      EXPECT_TRUE(absl::IsAlreadyExists(again)) << again;
    } else if (done && operation == "prepare") {
      EXPECT_TRUE(absl::IsAlreadyExists(again)) << again;
    } else if (done && operation == "commit") {
      EXPECT_TRUE(absl::IsAlreadyExists(again)) << again;
    } else if (done && operation == "remove") {
      EXPECT_TRUE(absl::IsNotFound(again)) << again;
    } else {
      EXPECT_TRUE(again.ok()) << again;
    }
    EXPECT_TRUE(Done(operation));
    EXPECT_TRUE(snapshotter_->Cleanup().ok());
    size_t local = 0;
    for (const std::string& name : Names()) {
      local += snapshotter_->Stat(name)->labels.contains(kLabelRemote) ? 0 : 1;
    }
    EXPECT_THAT(Directories(), SizeIs(local));
    EXPECT_EQ(layers_->mounted(), snapshotter_->LazyMounts().size());
  }
};

class Victim : public CrashTest {
  void SetUp() override {}
};

TEST_F(Victim, DISABLED_Runs) {
  const std::string root = support::VictimRoot();
  ASSERT_NE(root, "") << "runs only for the crash tests";
  options_.root = root + "/root";
  layers_ = std::make_unique<support::FakeLazyLayers>(root + "/m");
  options_.layers = layers_.get();
  Open();
  base::ArmFaultsFromEnvironment();
  Do(support::VictimTask()).IgnoreError();
}

TEST_F(CrashTest, EveryOperationIsWhollyDoneOrWhollyAbsent) {
  for (const Operation& operation : kOperations) {
    for (const char* point : operation.points) {
      SCOPED_TRACE(point);
      StartAgain(operation.name);
      ASSERT_EQ(RunVictim(operation.name, point), SIGKILL);
      Open();
      ExpectWhole(operation.name);
    }
  }
}

TEST_F(CrashTest, KilledAtAnyMutatingSystemCallItIsWholeToo) {
  int kills = 0;
  for (const Operation& operation : kOperations) {
    const int killed = support::KillAtEachCall(
        dir_.path(), operation.name, support::kMutatingCalls, [&] { StartAgain(operation.name); },
        [&](const std::string& at) {
          SCOPED_TRACE(at);
          Open();
          ExpectWhole(operation.name);
        });
    ASSERT_GT(killed, 0) << "needs strace";
    kills += killed;
  }
  RecordProperty("kills", kills);
  EXPECT_GT(kills, 60);
}

TEST_F(CrashTest, WhatAnAnsweredCallDidStays) {
  MakeCommitted("base");
  snapshotter_.reset();
  ASSERT_EQ(RunVictim("prepare", "snapshotter/prepare/done"), SIGKILL);
  Open();
  EXPECT_TRUE(Done("prepare"));
  snapshotter_.reset();
  ASSERT_EQ(RunVictim("commit", "snapshotter/commit/done"), SIGKILL);
  Open();
  EXPECT_TRUE(snapshotter_->Stat("name").ok());
  snapshotter_.reset();
  ASSERT_EQ(RunVictim("lazy", "snapshotter/lazy/done"), SIGKILL);
  Open();
  EXPECT_TRUE(snapshotter_->Stat("ref").ok());
}

}  // namespace
}  // namespace lazyblob::snapshotter
