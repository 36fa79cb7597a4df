// What every case of containerd's snapshotter suite (core/snapshots/testsuite) asserts, under its name, over
// gRPC on a real socket and with real mounts. Rename follows the variant that containerd runs for overlayfs,
// which cannot rename directories of lower layers.

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/stat.h>

#include <set>

#include "absl/time/clock.h"
#include "tests/snapshotter/suite/suite_fixture.h"

namespace lazyblob::snapshotter::suite {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAreArray;

const Labels kRoot = {{"containerd.io/gc.root", "2023-01-02T03:04:05Z"}};

using SnapshotterSuite = SuiteTest;

TEST_F(SnapshotterSuite, Basic) {
  const Change first = All(
      {File("foo", "foo\n", 0777), Directory("a", 0755), Directory("a/b", 0755), Directory("a/b/c", 0755)});
  const Change second = All({File("bar", "bar\n", 0777), File("foo", "bar\n", 0777), RemoveAll("a/b")});
  const std::string flat = Work("flat");
  ASSERT_TRUE(base::MakeDirectories(flat).ok());
  ASSERT_EQ(chmod(flat.c_str(), 0755), 0);

  ASSERT_NO_FATAL_FAILURE(MakeLayer("committed", "", first, kRoot));
  auto info = client_->Stat("committed");
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->parent, "");
  EXPECT_EQ(info->kind, Kind::kCommitted);
  EXPECT_FALSE(client_->Stat("committed-prepare").ok());

  auto mounts = client_->Prepare("next", "committed", kRoot);
  ASSERT_TRUE(mounts.ok());
  {
    auto mounted = Mounted::At(Work("next"), *mounts);
    ASSERT_TRUE(mounted.ok()) << mounted.status();
    first(flat);
    EXPECT_EQ(TreeOf(flat), TreeOf(mounted->path()));
    second(mounted->path());
    second(flat);
  }
  auto active = client_->Stat("next");
  ASSERT_TRUE(active.ok());
  EXPECT_EQ(active->parent, "committed");
  EXPECT_EQ(active->kind, Kind::kActive);
  ASSERT_TRUE(client_->Commit("committed-next", "next", kRoot).ok());
  auto info2 = client_->Stat("committed-next");
  ASSERT_TRUE(info2.ok());
  EXPECT_EQ(info2->parent, "committed");
  EXPECT_EQ(info2->kind, Kind::kCommitted);
  EXPECT_FALSE(client_->Stat("next").ok());

  auto infos = client_->List();
  ASSERT_TRUE(infos.ok());
  ASSERT_EQ(infos->size(), 2u);
  for (const Info& one : *infos) ExpectSame(one, one.name == info->name ? *info : *info2);

  EXPECT_EQ(TreeOf(flat), TreeOfView("committed-next"));
  absl::Status status = client_->Remove("committed");
  EXPECT_THAT(std::string(status.message()), HasSubstr("remove"));
  EXPECT_TRUE(client_->Remove("committed-next").ok());
  EXPECT_TRUE(client_->Remove("committed").ok());
}

TEST_F(SnapshotterSuite, StatActive) {
  auto mounts = client_->Prepare("preparing", "", kRoot);
  ASSERT_TRUE(mounts.ok() && !mounts->empty());
  auto info = client_->Stat("preparing");
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->name, "preparing");
  EXPECT_EQ(info->kind, Kind::kActive);
  EXPECT_EQ(info->parent, "");
}

TEST_F(SnapshotterSuite, StatComitted) {
  ASSERT_NO_FATAL_FAILURE(MakeLayer("committed", "", File("foo", "foo\n", 0777)));
  auto info = client_->Stat("committed");
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->name, "committed");
  EXPECT_EQ(info->kind, Kind::kCommitted);
  EXPECT_EQ(info->parent, "");
}

TEST_F(SnapshotterSuite, TransitivityTest) {
  ASSERT_NO_FATAL_FAILURE(MakeLayer("a", "", File("foo", "foo\n", 0777)));
  ASSERT_NO_FATAL_FAILURE(MakeLayer("b", "a", File("foo", "foo bar\n", 0777)));
  ASSERT_NO_FATAL_FAILURE(MakeLayer("c", "b", File("foo", "c\n", 0777)));
  EXPECT_EQ(client_->Stat("a")->parent, "");
  EXPECT_EQ(client_->Stat("b")->parent, "a");
  EXPECT_EQ(client_->Stat(client_->Stat("c")->parent)->parent, "a");
  EXPECT_EQ(client_->Stat(client_->Stat("b")->parent)->parent, "");
}

TEST_F(SnapshotterSuite, PreareViewFailingtest) {
  ASSERT_NO_FATAL_FAILURE(MakeLayer("a", "", All({})));
  ASSERT_TRUE(client_->Prepare("1", "a").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(client_->View("1", "a").status()));
  ASSERT_TRUE(client_->Prepare("2", "a").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(client_->Prepare("2", "a").status()));
  ASSERT_TRUE(client_->View("3", "a").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(client_->View("3", "a").status()));
}

// Two committed snapshots, two active ones, two views; of each kind one without a parent.
void MakeBase(WireClient& client, const Labels& labels) {
  ASSERT_TRUE(client.Prepare("c1-a", "", labels).ok());
  ASSERT_TRUE(client.Commit("c1", "c1-a", labels).ok());
  ASSERT_TRUE(client.Prepare("c2-a", "c1", labels).ok());
  ASSERT_TRUE(client.Commit("c2", "c2-a", labels).ok());
  ASSERT_TRUE(client.Prepare("a1", "c2", labels).ok());
  ASSERT_TRUE(client.Prepare("a2", "", labels).ok());
  ASSERT_TRUE(client.View("v1", "c2", labels).ok());
  ASSERT_TRUE(client.View("v2", "", labels).ok());
}

TEST_F(SnapshotterSuite, Update) {
  const absl::Time before = absl::Now();
  ASSERT_NO_FATAL_FAILURE(MakeBase(*client_, kRoot));
  const absl::Time after = absl::Now();
  struct Row {
    std::string name;
    Kind kind;
    std::string parent;
  };
  for (const Row& row :
       {Row{"c1", Kind::kCommitted, ""}, Row{"c2", Kind::kCommitted, "c1"}, Row{"a1", Kind::kActive, "c2"},
        Row{"a2", Kind::kActive, ""}, Row{"v1", Kind::kView, "c2"}, Row{"v2", Kind::kView, ""}}) {
    SCOPED_TRACE(row.name);
    auto info = client_->Stat(row.name);
    ASSERT_TRUE(info.ok());
    EXPECT_GE(info->created, before);
    EXPECT_LE(info->created, after);
    EXPECT_EQ(info->created, info->updated) << "to the nanosecond";
    EXPECT_EQ(info->kind, row.kind);
    EXPECT_EQ(info->parent, row.parent);
    EXPECT_EQ(info->name, row.name);
    const absl::Time created = info->created;

    Info wanted = *info;
    wanted.parent = "doesnotexist";
    wanted.labels = {{"l1", "v1"}, {"l2", "v2"}, {"l3", "v3"}, {"containerd.io/gc.root", "now"}};
    const absl::Time update_before = absl::Now();
    auto updated = client_->Update(wanted);
    ASSERT_TRUE(updated.ok()) << updated.status();
    EXPECT_EQ(updated->created, created);
    EXPECT_GE(updated->updated, update_before);
    EXPECT_LE(updated->updated, absl::Now());
    EXPECT_EQ(updated->kind, row.kind);
    EXPECT_EQ(updated->parent, row.parent);
    EXPECT_EQ(updated->labels, wanted.labels);

    wanted.labels = {{"l1", "updated"}, {"l4", "v4"}};
    updated = client_->Update(wanted, {"labels.l1", "labels.l2"});
    ASSERT_TRUE(updated.ok()) << updated.status();
    EXPECT_EQ(updated->labels, (Labels{{"l1", "updated"}, {"l3", "v3"}, {"containerd.io/gc.root", "now"}}));

    wanted.labels = {{"l4", "v4"}, {"containerd.io/gc.root", "now"}};
    updated = client_->Update(wanted, {"labels"});
    ASSERT_TRUE(updated.ok()) << updated.status();
    EXPECT_EQ(updated->labels, wanted.labels);
    ExpectSame(*updated, *client_->Stat(row.name));

    EXPECT_TRUE(absl::IsInvalidArgument(client_->Update(wanted, {"parent"}).status()));
    ExpectSame(*updated, *client_->Stat(row.name));
  }
}

TEST_F(SnapshotterSuite, Remove) {
  ASSERT_TRUE(client_->Prepare("committed-a", "").ok());
  ASSERT_TRUE(client_->Commit("committed-1", "committed-a").ok());
  ASSERT_TRUE(client_->Prepare("reuse-1", "committed-1").ok());
  ASSERT_TRUE(client_->Remove("reuse-1").ok());
  ASSERT_TRUE(client_->View("reuse-1", "committed-1").ok());
  ASSERT_TRUE(client_->Remove("reuse-1").ok());
  ASSERT_TRUE(client_->Prepare("reuse-1", "").ok());
  ASSERT_TRUE(client_->Remove("committed-1").ok());
  EXPECT_TRUE(client_->Commit("committed-1", "reuse-1").ok());
}

TEST_F(SnapshotterSuite, Walk) {
  const std::string root = "labels.\"containerd.io/gc.root\"==check-walk";
  const Labels labels = {{"containerd.io/gc.root", "check-walk"}};
  auto with = [&](const std::string& value) {
    Labels more = labels;
    more["l"] = value;
    return more;
  };
  ASSERT_TRUE(client_->Prepare("a-np", "", labels).ok());
  ASSERT_TRUE(client_->Prepare("p-tmp", "", labels).ok());
  ASSERT_TRUE(client_->Commit("p", "p-tmp", labels).ok());
  ASSERT_TRUE(client_->Prepare("a", "p", labels).ok());
  ASSERT_TRUE(client_->View("v", "p", labels).ok());
  ASSERT_TRUE(client_->Prepare("p-wl-tmp", "", labels).ok());
  ASSERT_TRUE(client_->Commit("p-wl", "p-wl-tmp", with("1")).ok());
  ASSERT_TRUE(client_->Prepare("a-wl", "p-wl", with("2")).ok());
  ASSERT_TRUE(client_->View("v-wl", "p-wl", with("3")).ok());
  ASSERT_TRUE(client_->Prepare("a-np-wl", "", with("2")).ok());
  struct Row {
    std::vector<std::string> filters;
    std::vector<std::string> matches;
  };
  for (const Row& row :
       {Row{{root}, {"a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"}},
        Row{{"kind==active," + root}, {"a-np", "a", "a-wl", "a-np-wl"}},
        Row{{"kind==view," + root}, {"v", "v-wl"}}, Row{{"kind==committed," + root}, {"p", "p-wl"}},
        Row{{"name==p", "name==a-np-wl"}, {"p", "a-np-wl"}}, Row{{"name==a-wl,labels.l"}, {"a-wl"}},
        Row{{"parent==p"}, {"a", "v"}}, Row{{"parent!=\"\"," + root}, {"a", "v", "a-wl", "v-wl"}},
        Row{{"labels.l"}, {"p-wl", "a-wl", "v-wl", "a-np-wl"}}, Row{{"labels.l==2"}, {"a-wl", "a-np-wl"}}}) {
    EXPECT_THAT(Names(row.filters), UnorderedElementsAreArray(row.matches)) << row.filters[0];
  }
}

TEST_F(SnapshotterSuite, LayerFileupdate) {
  const Change first = All({Directory("etc", 0700), File("etc/hosts", "mydomain 10.0.0.1", 0644),
                            File("etc/profile", "PATH=/usr/bin", 0644), SameTime("etc/hosts")});
  const Change second = All({File("etc/hosts", "mydomain 10.0.0.2", 0644),
                             File("etc/profile", "PATH=/usr/bin", 0666), Directory("root", 0700),
                             File("root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0644), SameTime("etc/hosts")});
  for (int round = 0; round < 5; ++round) ASSERT_NO_FATAL_FAILURE(CheckLayers({first, second}));
}

TEST_F(SnapshotterSuite, RemoveDirectoryInLowerLayer) {
  CheckLayers({All({Directory("lib", 0700), File("lib/hidden", "", 0644)}),
               All({RemoveAll("lib"), Directory("lib", 0700), File("lib/not-hidden", "", 0644)}),
               File("lib/newfile", "", 0644)});
}

TEST_F(SnapshotterSuite, Chown) {
  CheckLayers({All({Directory("opt", 0700), Directory("opt/a", 0700), Directory("opt/a/b", 0700),
                    File("opt/a/b/file.txt", "hello", 0644)}),
               All({suite::Chown("opt", 1, 1), suite::Chown("opt/a", 1, 1), suite::Chown("opt/a/b", 1, 1),
                    suite::Chown("opt/a/b/file.txt", 1, 1)})});
}

TEST_F(SnapshotterSuite, DirectoryPermissionOnCommit) {
  CheckLayers({All({Directory("dir1", 0700), Directory("dir2", 0700), Directory("dir3", 0700),
                    Directory("dir4", 0700), File("dir4/f1", "...", 0644), Directory("dir5", 0700),
                    File("dir5/f1", "...", 0644), suite::Chown("dir1", 1, 1), suite::Chown("dir2", 1, 1),
                    suite::Chown("dir3", 1, 1), suite::Chown("dir5", 1, 1), suite::Chown("dir5/f1", 1, 1)}),
               All({suite::Chown("dir2", 0, 0), RemoveAll("dir3"), suite::Chown("dir4", 1, 1),
                    suite::Chown("dir4/f1", 1, 1)}),
               All({Directory("dir3", 0700), suite::Chown("dir3", 1, 1), RemoveAll("dir5"),
                    Directory("dir5", 0700), suite::Chown("dir5", 1, 1)})});
}

TEST_F(SnapshotterSuite, RemoveIntermediateSnapshot) {
  ASSERT_TRUE(client_->Prepare("base-a", "").ok());
  ASSERT_TRUE(client_->Commit("base", "base-a").ok());
  ASSERT_TRUE(client_->Prepare("inter-a", "base").ok());
  ASSERT_TRUE(client_->Commit("inter", "inter-a").ok());
  ASSERT_TRUE(client_->Prepare("top", "inter").ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(client_->Remove("inter")));
  EXPECT_TRUE(client_->Remove("top").ok());
  EXPECT_TRUE(client_->Remove("inter").ok());
  EXPECT_TRUE(client_->Remove("base").ok());
}

TEST_F(SnapshotterSuite, DeletedFilesInChildSnapshot) {
  CheckLayers(
      {All({File("foo", "foo\n", 0777), File("foobar", "foobar\n", 0777)}), RemoveAll("foobar"), All({})});
}

TEST_F(SnapshotterSuite, MoveFileFromLowerLayer) {
  CheckLayers({All({Directory("dir1", 0700), File("dir1/f1", "Hello", 0644), Directory("dir2", 0700),
                    File("dir2/f2", "...", 0644)}),
               All({Directory("dir3", 0700), File("dir3/f1", "Hello", 0644), RemoveAll("dir1"),
                    Link("dir2/f2", "dir3/f2"), RemoveAll("dir2/f2")})});
}

TEST_F(SnapshotterSuite, ViewReadonly) {
  ASSERT_NO_FATAL_FAILURE(MakeLayer("one", "", All({})));
  ASSERT_NO_FATAL_FAILURE(MakeLayer("two", "one", File("file", "x", 0644)));
  for (const char* parent : {"", "one", "two"}) {
    SCOPED_TRACE(parent);
    auto mounts = client_->View("view", parent);
    ASSERT_TRUE(mounts.ok());
    {
      auto mounted = Mounted::At(Work("view"), *mounts);
      ASSERT_TRUE(mounted.ok()) << mounted.status();
      EXPECT_LT(open((mounted->path() + "/testfile").c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600), 0);
      EXPECT_EQ(errno, EROFS);
    }
    EXPECT_TRUE(client_->Remove("view").ok());
  }
}

TEST_F(SnapshotterSuite, StatInWalk) {
  ASSERT_NO_FATAL_FAILURE(MakeBase(*client_, kRoot));
  for (int i = 0; i < 250; ++i) ASSERT_TRUE(client_->View(absl::StrCat("more", i), "c1", kRoot).ok());
  grpc::ClientContext context;
  auto reader = client_->stub().List(&context, {});
  ::containerd::services::snapshots::v1::ListSnapshotsResponse response;
  size_t seen = 0;
  while (reader->Read(&response)) {
    for (const auto& one : response.info()) {
      auto info = client_->Stat(one.name());
      ASSERT_TRUE(info.ok()) << info.status();
      ExpectSame(*info, FromProto(one));
      ++seen;
    }
    Info changed = FromProto(response.info(0));
    EXPECT_TRUE(client_->Update(changed).ok()) << "writing works too";
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(seen, 256u);
}

// Closing is the client's own; afterwards another client finds everything.
TEST_F(SnapshotterSuite, CloseTwice) {
  ASSERT_TRUE(client_->Prepare("close-prepare", "").ok());
  ASSERT_TRUE(client_->Commit("close", "close-prepare").ok());
  ASSERT_TRUE(client_->Remove("close").ok());
  client_.reset();
  client_ = std::make_unique<WireClient>(dir_.File("run") + "/s.sock");
  EXPECT_TRUE(client_->List().ok());
}

TEST_F(SnapshotterSuite, RootPermission) {
  for (mode_t mask : {0u, 022u, 077u, 0777u}) {
    const mode_t old = umask(mask);
    auto mounts = client_->Prepare(absl::StrCat("preparing", mask), "");
    umask(old);
    ASSERT_TRUE(mounts.ok()) << mounts.status();
    auto mounted = Mounted::At(Work(absl::StrCat("preparing", mask)), *mounts);
    ASSERT_TRUE(mounted.ok());
    struct stat status{};
    ASSERT_EQ(stat(mounted->path().c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777, 0755u) << mask;
  }
}

TEST_F(SnapshotterSuite, Rename) {
  CheckLayers({All({Directory("dir1", 0700), Directory("somefiles", 0700),
                    File("somefiles/f1", "was here first!", 0644),
                    File("somefiles/f2", "nothing interesting", 0644)}),
               All({File("somefiles/f1-overwrite", "new content 1", 0644),
                    suite::Rename("somefiles/f1-overwrite", "somefiles/f1"),
                    suite::Rename("somefiles/f2", "somefiles/f3")})});
}

TEST_F(SnapshotterSuite, Layers128Mount) {
  const std::string flat = Work("flat");
  ASSERT_TRUE(base::MakeDirectories(flat).ok());
  ASSERT_EQ(chmod(flat.c_str(), 0755), 0);
  std::string parent;
  for (int i = 0; i < 128; ++i) {
    Change change = All({File("overwriteme", absl::StrCat(i, " WAS HERE!\n"), 0777),
                         i == 0 ? All({Directory("addhere", 0755), Directory("onlyme", 0755)})
                                : All({RemoveAll("onlyme"), Directory("onlyme", 0755)}),
                         File(absl::StrCat("addhere/file-", i), "same\n", 0755),
                         File(absl::StrCat("onlyme/file-", i), "only me!\n", 0777)});
    const std::string key = absl::StrCat("prepare-layer-", i);
    auto mounts = client_->Prepare(key, parent);
    ASSERT_TRUE(mounts.ok()) << mounts.status();
    auto mounted = Mounted::At(Work(key), *mounts);
    ASSERT_TRUE(mounted.ok()) << i << ": " << mounted.status();
    ASSERT_EQ(TreeOf(flat), TreeOf(mounted->path())) << "before layer " << i;
    change(flat);
    change(mounted->path());
    ASSERT_EQ(TreeOf(flat), TreeOf(mounted->path())) << "after layer " << i;
    ASSERT_TRUE(mounted->Unmount().ok());
    parent = absl::StrCat("committed-", i);
    ASSERT_TRUE(client_->Commit(parent, key).ok());
  }
  EXPECT_EQ(TreeOf(flat), TreeOfView(parent));
}

// Beyond containerd's suite, which never restarts a snapshotter.
TEST_F(SnapshotterSuite, EverythingIsAsItWasAfterARestart) {
  ASSERT_NO_FATAL_FAILURE(MakeBase(*client_, kRoot));
  auto infos = client_->List();
  auto mounts = client_->Mounts("a1");
  ASSERT_TRUE(infos.ok() && mounts.ok());
  ASSERT_NO_FATAL_FAILURE(Restart());
  auto again = client_->List();
  auto mounts_again = client_->Mounts("a1");
  ASSERT_TRUE(again.ok() && mounts_again.ok());
  ASSERT_EQ(again->size(), infos->size());
  for (size_t i = 0; i < infos->size(); ++i) ExpectSame((*infos)[i], (*again)[i]);
  EXPECT_EQ((*mounts)[0].options, (*mounts_again)[0].options);
  EXPECT_EQ((*mounts)[0].source, (*mounts_again)[0].source);
}

}  // namespace
}  // namespace lazyblob::snapshotter::suite
