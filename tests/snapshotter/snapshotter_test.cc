// Snapshots on the local disk. Lazy ones: lazy_snapshots_test.cc.

#include "snapshotter/snapshotter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault.h"
#include "tests/snapshotter/snapshotter_harness.h"

namespace lazyblob::snapshotter {
namespace {

using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::Pair;
using testing::UnorderedElementsAre;

TEST_F(SnapshotterTest, BasicLifeCycle) {
  auto mounts = Prepare("key", "", {{"containerd.io/snapshot/a", "1"}});
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_EQ(mounts->at(0).type, "bind");
  EXPECT_THAT(mounts->at(0).options, ElementsAre("rw", "rbind"));
  ASSERT_TRUE(base::WriteFileAtomically(mounts->at(0).source + "/file", "x").ok());
  ASSERT_TRUE(Commit("name", "key", {{"b", "2"}}).ok());

  EXPECT_TRUE(absl::IsNotFound(snapshotter_->Stat("key").status()));
  Info info = snapshotter_->Stat("name").value();
  EXPECT_EQ(info.kind, Kind::kCommitted);
  EXPECT_EQ(info.parent, "");
  EXPECT_THAT(info.labels, ElementsAre(Pair("b", "2")));  // replaced, not inherited

  auto child = Prepare("child", "name");
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ(child->at(0).type, "overlay");
  EXPECT_EQ(Option(child->at(0), "lowerdir"), mounts->at(0).source);
  EXPECT_EQ(access((Option(child->at(0), "lowerdir") + "/file").c_str(), F_OK), 0);
  EXPECT_EQ(Has(child->at(0), "index=off"), access("/sys/module/overlay/parameters/index", F_OK) == 0);
  ASSERT_TRUE(Commit("second", "child").ok());
  EXPECT_EQ(snapshotter_->Stat("second")->parent, "name");

  auto view = snapshotter_->View("view", "second", {});
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view->at(0).type, "overlay");
  EXPECT_EQ(Option(view->at(0), "upperdir"), "");
  auto single = snapshotter_->View("single", "name", {});
  EXPECT_EQ(single->at(0).type, "bind");
  EXPECT_EQ(single->at(0).source, mounts->at(0).source);
  EXPECT_THAT(single->at(0).options, ElementsAre("ro", "rbind"));
  EXPECT_THAT(Names(), ElementsAre("name", "second", "single", "view"));
}

TEST_F(SnapshotterTest, WhichErrorForWhichMisuse) {
  MakeCommitted("base");
  ASSERT_TRUE(Prepare("active", "base").ok());
  ASSERT_TRUE(snapshotter_->View("view", "base", {}).ok());

  EXPECT_TRUE(absl::IsAlreadyExists(Prepare("active").status()));
  EXPECT_TRUE(absl::IsAlreadyExists(Prepare("base").status()));
  EXPECT_TRUE(absl::IsAlreadyExists(snapshotter_->View("active", "", {}).status()));
  EXPECT_TRUE(absl::IsNotFound(Prepare("new", "none").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Prepare("new", "active").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(snapshotter_->View("new", "view", {}).status()));

  EXPECT_TRUE(absl::IsNotFound(snapshotter_->Mounts("none").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(snapshotter_->Mounts("base").status()));

  EXPECT_TRUE(absl::IsAlreadyExists(Commit("base", "none")));
  EXPECT_TRUE(absl::IsAlreadyExists(Commit("base", "active")));
  EXPECT_TRUE(absl::IsAlreadyExists(Commit("active", "active")));
  EXPECT_TRUE(absl::IsNotFound(Commit("new", "none")));
  EXPECT_TRUE(absl::IsFailedPrecondition(Commit("new", "base")));
  EXPECT_TRUE(absl::IsFailedPrecondition(Commit("new", "view")));

  EXPECT_TRUE(absl::IsNotFound(snapshotter_->Remove("none")));
  const absl::Status status = snapshotter_->Remove("base");
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("remove"));
  EXPECT_THAT(std::string(status.message()), Not(EndsWith(": conflict")));
  EXPECT_THAT(std::string(status.message()), Not(EndsWith(": not modified")));

  EXPECT_TRUE(absl::IsNotFound(snapshotter_->Stat("none").status()));
  EXPECT_TRUE(absl::IsNotFound(snapshotter_->GetUsage("none").status()));
  Info info;
  info.name = "none";
  EXPECT_TRUE(absl::IsNotFound(snapshotter_->Update(info, {}).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(snapshotter_->List({"kind==="}, [](const Info&) { return absl::OkStatus(); })));
}

TEST_F(SnapshotterTest, KeysAreBytesOfUtf8WithoutNul) {
  for (const std::string& key :
       {std::string("extract-123-AbC= sha256:00/ns/\"quoted\""), std::string("\xc3\xbc"), std::string("a\nb"),
        std::string(4096, 'x'), std::string("../../etc")}) {
    EXPECT_TRUE(Prepare(key).ok()) << key;
    EXPECT_TRUE(snapshotter_->Remove(key).ok()) << key;
  }
  for (const std::string& key : {std::string(), std::string("a\0b", 3), std::string("\xff"),
                                 std::string("\xed\xa0\x80"), std::string(4097, 'x')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Prepare(key).status())) << key;
    EXPECT_TRUE(absl::IsInvalidArgument(Commit(key, "k"))) << key;
    EXPECT_TRUE(absl::IsInvalidArgument(snapshotter_->Remove(key))) << key;
    EXPECT_TRUE(absl::IsInvalidArgument(snapshotter_->Stat(key).status())) << key;
    if (!key.empty()) {
      EXPECT_TRUE(absl::IsInvalidArgument(Prepare("k", key).status())) << key;
    }
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Prepare("k", "", {{"key", std::string(4096, 'v')}}).status()));
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_THAT(Directories(), IsEmpty());
}

TEST_F(SnapshotterTest, TimesAreExactAndEqualAtCreation) {
  clock_.SetWallTime(absl::FromUnixNanos(1'700'000'000'123'456'789));
  ASSERT_TRUE(Prepare("a").ok());
  Info info = snapshotter_->Stat("a").value();
  EXPECT_EQ(absl::ToUnixNanos(info.created), 1'700'000'000'123'456'789);
  EXPECT_EQ(info.created, info.updated);
  clock_.Advance(absl::Nanoseconds(1));
  ASSERT_TRUE(Commit("c", "a").ok());
  info = snapshotter_->Stat("c").value();
  EXPECT_EQ(absl::ToUnixNanos(info.created), 1'700'000'000'123'456'790);
  EXPECT_EQ(info.created, info.updated);
  clock_.Advance(absl::Seconds(1));
  Info updated = snapshotter_->Update(info, {}).value();
  EXPECT_EQ(updated.created, info.created);
  EXPECT_EQ(updated.updated, info.updated + absl::Seconds(1));
}

TEST_F(SnapshotterTest, UpdateByMask) {
  ASSERT_TRUE(Prepare("a", "", {{"l1", "1"}, {"l2", "2"}, {"l3", "3"}}).ok());
  Info change;
  change.name = "a";
  change.parent = "ignored";
  change.labels = {{"l1", "new"}, {"l2", ""}, {"l9", "not named"}};
  Info info = snapshotter_->Update(change, {"labels.l1", "labels.l2", "labels.absent"}).value();
  EXPECT_THAT(info.labels, ElementsAre(Pair("l1", "new"), Pair("l3", "3")));
  EXPECT_EQ(snapshotter_->Stat("a")->labels, info.labels);
  EXPECT_EQ(info.parent, "");

  change.labels = {{"containerd.io/x.y", "dots"}};
  info = snapshotter_->Update(change, {"labels.containerd.io/x.y"}).value();
  EXPECT_THAT(info.labels,
              ElementsAre(Pair("containerd.io/x.y", "dots"), Pair("l1", "new"), Pair("l3", "3")));

  change.labels = {{"only", "1"}, {"empty", ""}};
  EXPECT_THAT(snapshotter_->Update(change, {"labels"})->labels, ElementsAre(Pair("only", "1")));
  EXPECT_THAT(snapshotter_->Update(change, {})->labels, ElementsAre(Pair("only", "1")));
  for (const char* path : {"parent", "kind", "name", "labels.", "label", "", "created"}) {
    const absl::Status status = snapshotter_->Update(change, {"labels", path}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << path;
  }
}

TEST_F(SnapshotterTest, TheRemoteLabelCannotBeClaimed) {
  const Labels claimed = {{kLabelRemote, "remote snapshot"}, {"a", "b"}};
  ASSERT_TRUE(Prepare("a", "", claimed).ok());
  EXPECT_THAT(snapshotter_->Stat("a")->labels, ElementsAre(Pair("a", "b")));
  Info change;
  change.name = "a";
  change.labels = claimed;
  EXPECT_THAT(snapshotter_->Update(change, {std::string("labels.") + kLabelRemote})->labels,
              ElementsAre(Pair("a", "b")));
  EXPECT_THAT(snapshotter_->Update(change, {})->labels, ElementsAre(Pair("a", "b")));
  ASSERT_TRUE(Commit("c", "a", claimed).ok());
  EXPECT_THAT(snapshotter_->Stat("c")->labels, ElementsAre(Pair("a", "b")));
  EXPECT_THAT(snapshotter_->LazyMounts(), IsEmpty());
}

TEST_F(SnapshotterTest, NamesAndKeysMayBeUsedAgainAfterRemove) {
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(Prepare("key").ok());
    ASSERT_TRUE(Commit("name", "key").ok());
    ASSERT_TRUE(snapshotter_->Remove("name").ok());
    EXPECT_THAT(Directories(), IsEmpty());
  }
}

TEST_F(SnapshotterTest, ASnapshotWithoutItsDirectoryCanBeRemovedNotUsed) {
  MakeCommitted("base");
  ASSERT_TRUE(Prepare("active").ok());
  const std::string root = options_.root;
  ASSERT_TRUE(base::RemoveTree(root + "/s").ok());
  Restart();
  EXPECT_EQ(LoggedTimes("is missing"), 2u);
  const absl::Status status = Prepare("child", "base").status();
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"base\""));
  EXPECT_TRUE(absl::IsFailedPrecondition(Commit("committed", "active")));
  EXPECT_EQ(snapshotter_->GetUsage("active")->bytes, 0u);
  EXPECT_TRUE(snapshotter_->Remove("base").ok());
  EXPECT_TRUE(snapshotter_->Remove("active").ok());
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(SnapshotterTest, CommitGivesAParentToASnapshotThatHasNone) {
  MakeCommitted("a");
  MakeCommitted("b");
  ASSERT_TRUE(Prepare("active").ok());
  ASSERT_TRUE(Prepare("on-a", "a").ok());
  ASSERT_TRUE(Prepare("other").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Commit("x", "on-a", {}, "b")));
  EXPECT_TRUE(absl::IsFailedPrecondition(Commit("x", "active", {}, "other")));
  EXPECT_TRUE(absl::IsNotFound(Commit("x", "active", {}, "none")));
  ASSERT_TRUE(Commit("x", "active", {}, "b").ok());
  EXPECT_EQ(snapshotter_->Stat("x")->parent, "b");
  ASSERT_TRUE(Commit("y", "on-a", {}, "a").ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(snapshotter_->Remove("b")));
}

TEST_F(SnapshotterTest, UsageIsOwnBytesAndFrozenByCommit) {
  auto mounts = Prepare("a").value();
  const Usage empty = snapshotter_->GetUsage("a").value();
  EXPECT_EQ(empty.inodes, 1u);
  ASSERT_TRUE(base::WriteFileAtomically(mounts[0].source + "/file", std::string(100000, 'x')).ok());
  const Usage full = snapshotter_->GetUsage("a").value();
  EXPECT_EQ(full.inodes, 2u);
  EXPECT_GE(full.bytes, empty.bytes + 100000);
  ASSERT_TRUE(Commit("c", "a").ok());
  EXPECT_EQ(snapshotter_->GetUsage("c")->bytes, full.bytes);
  ASSERT_EQ(unlink((mounts[0].source + "/file").c_str()), 0);  // whoever does this
  EXPECT_EQ(snapshotter_->GetUsage("c")->bytes, full.bytes);
  ASSERT_TRUE(Prepare("child", "c").ok());
  EXPECT_EQ(snapshotter_->GetUsage("child")->inodes, 1u);
}

TEST_F(SnapshotterTest, ANewSnapshotLooksLikeItsParentsRoot) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  auto mounts = Prepare("a").value();
  ASSERT_EQ(chown(mounts[0].source.c_str(), 1000, 2000), 0);
  ASSERT_TRUE(Commit("c", "a").ok());
  const mode_t before = umask(0777);
  auto child = Prepare("child", "c").value();
  umask(before);
  struct stat st;
  ASSERT_EQ(stat(Upper(child).c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 1000u);
  EXPECT_EQ(st.st_gid, 2000u);
  EXPECT_EQ(st.st_mode & 07777, 0755u);
}

TEST_F(SnapshotterTest, EverythingIsThereAfterARestart) {
  MakeCommitted("base");
  auto before = Prepare("active", "base", {{"l", "v"}}).value();
  Info info = snapshotter_->Stat("active").value();
  Restart();
  auto after = snapshotter_->Mounts("active").value();
  EXPECT_EQ(after[0].source, before[0].source);
  EXPECT_EQ(after[0].options, before[0].options);
  Info now = snapshotter_->Stat("active").value();
  EXPECT_EQ(now.created, info.created);
  EXPECT_EQ(now.labels, info.labels);
  EXPECT_THAT(Names(), ElementsAre("active", "base"));
}

TEST_F(SnapshotterTest, CleanupRemovesWhatNobodyOwns) {
  MakeCommitted("base");
  const std::vector<std::string> before = Directories();
  ASSERT_TRUE(base::MakeDirectories(options_.root + "/s/new-left/fs").ok());
  ASSERT_TRUE(base::MakeDirectories(options_.root + "/s/999/fs/deep").ok());
  ASSERT_TRUE(snapshotter_->Cleanup().ok());
  EXPECT_EQ(Directories(), before);
  EXPECT_EQ(layers_->trim_calls(), 1);
  ASSERT_TRUE(snapshotter_->Cleanup().ok());
  ASSERT_TRUE(base::MakeDirectories(options_.root + "/s/1000/fs").ok());
  Restart();
  EXPECT_EQ(Directories(), before);
}

TEST_F(SnapshotterTest, AFailedPrepareLeavesNothing) {
  for (const char* point :
       {"snapshotter/prepare/begin", "snapshotter/directory/made", "snapshotter/prepare/directory-made",
        "snapshotter/prepare/row-inserted", "snapshotter/prepare/directory-renamed"}) {
    SCOPED_TRACE(point);
    {
      base::ScopedFault fault(point, [] { return absl::ResourceExhaustedError("disk full"); });
      EXPECT_TRUE(absl::IsResourceExhausted(Prepare("key").status()));
    }
    EXPECT_THAT(Names(), IsEmpty());
    EXPECT_THAT(Directories(), IsEmpty());
    EXPECT_TRUE(Prepare("key").ok());
    EXPECT_TRUE(snapshotter_->Remove("key").ok());
  }
}

TEST_F(SnapshotterTest, VisitorsMayCallBackAndEndTheWalk) {
  MakeCommitted("a");
  MakeCommitted("b");
  int visited = 0;
  EXPECT_TRUE(snapshotter_
                  ->List({},
                         [&](const Info& info) -> absl::Status {
                           ++visited;
                           EXPECT_TRUE(snapshotter_->Stat(info.name).ok());
                           EXPECT_TRUE(Prepare("child of " + info.name, info.name).ok());
                           return absl::OkStatus();
                         })
                  .ok());
  EXPECT_EQ(visited, 2);
  EXPECT_TRUE(absl::IsCancelled(snapshotter_->List({}, [&](const Info&) {
    ++visited;
    return absl::CancelledError("enough");
  })));
  EXPECT_EQ(visited, 3);
}

TEST_F(SnapshotterTest, ListFilters) {
  MakeCommitted("a");
  ASSERT_TRUE(Prepare("b", "a", {{"l", "2"}}).ok());
  ASSERT_TRUE(snapshotter_->View("c", "a", {}).ok());
  EXPECT_THAT(Names({"kind==committed"}), ElementsAre("a"));
  EXPECT_THAT(Names({"kind==active", "kind==view"}), UnorderedElementsAre("b", "c"));
  EXPECT_THAT(Names({"parent==a,labels.l"}), ElementsAre("b"));
  EXPECT_THAT(Names({""}), ElementsAre("a", "b", "c"));
}

constexpr char kRange[] = "0:100000:65536";

TEST_F(SnapshotterTest, IdMappedContainersGetMappedLayers) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  MakeCommitted("base");
  const Labels labels = {{kLabelUidMapping, kRange}, {kLabelGidMapping, "0:200000:65536"}};
  auto mounts = Prepare("a", "base", labels);
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_THAT(Option(mounts->at(0), "lowerdir"), HasSubstr("/view"));
  struct stat st;
  ASSERT_EQ(stat(Upper(*mounts).c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 100000u);
  EXPECT_EQ(st.st_gid, 200000u);
  EXPECT_EQ(st.st_mode & 07777, 0755u);
  auto view = snapshotter_->View("v", "base", labels).value();
  EXPECT_EQ(view[0].type, "bind");
  EXPECT_EQ(view[0].source, Option(mounts->at(0), "lowerdir"));
  EXPECT_EQ(layers_->views(), 1u);

  Restart();
  EXPECT_EQ(layers_->views(), 1u);  // adopted
  EXPECT_EQ(snapshotter_->Mounts("a")->at(0).options, mounts->at(0).options);
  EXPECT_TRUE(snapshotter_->Remove("a").ok());
  EXPECT_EQ(layers_->views(), 1u);
  EXPECT_TRUE(snapshotter_->Remove("v").ok());
  EXPECT_EQ(layers_->views(), 0u);
  EXPECT_EQ(layers_->unbalanced(), 0);
}

TEST_F(SnapshotterTest, AMappedSnapshotWithoutParentIsOnlyOwned) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  auto mounts = Prepare("a", "", {{kLabelUidMapping, kRange}, {kLabelGidMapping, kRange}}).value();
  struct stat st;
  ASSERT_EQ(stat(mounts[0].source.c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 100000u);
  EXPECT_EQ(layers_->views(), 0u);
}

TEST_F(SnapshotterTest, BadIdMapsAreRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(Prepare("a", "", {{kLabelUidMapping, kRange}}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      Prepare("a", "", {{kLabelUidMapping, "1:1:1"}, {kLabelGidMapping, kRange}}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      Prepare("a", "", {{kLabelUidMapping, "0:4294967295:2"}, {kLabelGidMapping, kRange}}).status()));
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(SnapshotterTest, AFailedMappedPrepareUnmapsWhatItMapped) {
  MakeCommitted("base");
  const Labels labels = {{kLabelUidMapping, kRange}, {kLabelGidMapping, kRange}};
  {
    base::ScopedFault fault("snapshotter/prepare/directory-renamed",
                            [] { return absl::InternalError("no"); });
    EXPECT_FALSE(Prepare("a", "base", labels).ok());
  }
  EXPECT_EQ(layers_->views(), 0u);
  layers_->FailMapping(absl::UnimplementedError("this file system knows no id-mapped mounts"));
  EXPECT_TRUE(absl::IsUnimplemented(Prepare("a", "base", labels).status()));
  EXPECT_THAT(Names(), ElementsAre("base"));
}

TEST_F(SnapshotterTest, CommitEndsTheIdMap) {
  MakeCommitted("base");
  ASSERT_TRUE(Prepare("a", "base", {{kLabelUidMapping, kRange}, {kLabelGidMapping, kRange}}).ok());
  ASSERT_TRUE(Commit("c", "a").ok());
  EXPECT_EQ(layers_->views(), 0u);
  Restart();
  EXPECT_EQ(layers_->views(), 0u);
}

TEST_F(SnapshotterTest, ARootThatOptionsCannotHoldIsRefused) {
  options_.root = dir_.File("a:b");
  EXPECT_TRUE(absl::IsInvalidArgument(Snapshotter::Open(options_).status()));
}

}  // namespace
}  // namespace lazyblob::snapshotter
