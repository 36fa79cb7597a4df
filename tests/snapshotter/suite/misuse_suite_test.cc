// Which error for which misuse: the cases of containerd's metadata-store suite (core/snapshots/storage,
// MetaStoreSuite) by name, seen from the wire; then input that no client of good will sends.

#include <algorithm>

#include "absl/strings/match.h"
#include "tests/snapshotter/suite/suite_fixture.h"

namespace lazyblob::snapshotter::suite {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class MetaStoreSuite : public SuiteTest {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(SuiteTest::SetUp());
    ASSERT_TRUE(client_->Prepare("committed-tmp-1", "").ok());
    ASSERT_TRUE(client_->Commit("committed-1", "committed-tmp-1").ok());
    ASSERT_TRUE(client_->Prepare("committed-tmp-2", "committed-1").ok());
    ASSERT_TRUE(client_->Commit("committed-2", "committed-tmp-2").ok());
    ASSERT_TRUE(client_->Prepare("active-1", "").ok());
    ASSERT_TRUE(client_->Prepare("active-2", "committed-1").ok());
    ASSERT_TRUE(client_->Prepare("active-3", "committed-2").ok());
    ASSERT_TRUE(client_->View("view-1", "").ok());
    ASSERT_TRUE(client_->View("view-2", "committed-2").ok());
  }
};

TEST_F(MetaStoreSuite, GetInfo) {
  EXPECT_EQ(client_->Stat("committed-2")->parent, "committed-1");
  EXPECT_EQ(client_->Stat("active-3")->kind, Kind::kActive);
  EXPECT_EQ(client_->Stat("view-2")->kind, Kind::kView);
}

TEST_F(MetaStoreSuite, GetInfoNotExist) {
  EXPECT_TRUE(absl::IsNotFound(client_->Stat("active-not-exist").status()));
  EXPECT_TRUE(absl::IsNotFound(client_->GetUsage("active-not-exist").status()));
  Info info;
  info.name = "active-not-exist";
  EXPECT_TRUE(absl::IsNotFound(client_->Update(info).status()));
}

TEST_F(MetaStoreSuite, Walk) {
  EXPECT_THAT(Names(), UnorderedElementsAre("committed-1", "committed-2", "active-1", "active-2", "active-3",
                                            "view-1", "view-2"));
}

TEST_F(MetaStoreSuite, GetSnapshot) {
  for (const char* key : {"active-1", "active-2", "active-3", "view-1", "view-2"}) {
    EXPECT_TRUE(client_->Mounts(key).ok()) << key;
  }
}

TEST_F(MetaStoreSuite, GetSnapshotNotExist) {
  EXPECT_TRUE(absl::IsNotFound(client_->Mounts("active-not-exist").status()));
}

TEST_F(MetaStoreSuite, GetSnapshotCommitted) {
  EXPECT_TRUE(absl::IsFailedPrecondition(client_->Mounts("committed-1").status()));
}

TEST_F(MetaStoreSuite, CreateActive) {
  EXPECT_TRUE(client_->Prepare("active-new", "").ok());
  EXPECT_TRUE(client_->View("view-new", "committed-1").ok());
  EXPECT_EQ(client_->Stat("view-new")->parent, "committed-1");
}

TEST_F(MetaStoreSuite, CreateActiveNotExist) {
  EXPECT_TRUE(absl::IsNotFound(client_->Prepare("active-new", "does-not-exist").status()));
  EXPECT_TRUE(absl::IsNotFound(client_->View("active-new", "does-not-exist").status()));
  EXPECT_TRUE(absl::IsNotFound(client_->Stat("active-new").status()));
}

TEST_F(MetaStoreSuite, CreateActiveExist) {
  EXPECT_TRUE(absl::IsAlreadyExists(client_->Prepare("active-1", "").status()));
  EXPECT_TRUE(absl::IsAlreadyExists(client_->Prepare("committed-1", "").status()));
  EXPECT_TRUE(absl::IsAlreadyExists(client_->View("view-1", "").status()));
}

TEST_F(MetaStoreSuite, CreateActiveFromActive) {
  EXPECT_TRUE(absl::IsInvalidArgument(client_->Prepare("active-new", "active-1").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(client_->View("active-new", "view-1").status()));
}

TEST_F(MetaStoreSuite, Commit) {
  EXPECT_TRUE(client_->Commit("committed-3", "active-1").ok());
  EXPECT_TRUE(absl::IsNotFound(client_->Mounts("active-1").status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(client_->Mounts("committed-3").status()));
}

TEST_F(MetaStoreSuite, CommitNotExist) {
  EXPECT_TRUE(absl::IsNotFound(client_->Commit("committed-3", "active-not-exist")));
}

TEST_F(MetaStoreSuite, CommitExist) {
  EXPECT_TRUE(absl::IsAlreadyExists(client_->Commit("committed-1", "active-1")));
  EXPECT_TRUE(absl::IsAlreadyExists(client_->Commit("view-1", "active-1")));
  EXPECT_TRUE(client_->Mounts("active-1").ok()) << "still there";
}

TEST_F(MetaStoreSuite, CommitCommitted) {
  EXPECT_TRUE(absl::IsFailedPrecondition(client_->Commit("committed-3", "committed-1")));
}

TEST_F(MetaStoreSuite, CommitViewFails) {
  EXPECT_TRUE(absl::IsFailedPrecondition(client_->Commit("committed-3", "view-1")));
}

TEST_F(MetaStoreSuite, CommitReplacesLabels) {
  ASSERT_TRUE(client_->Prepare("labelled", "", {{"a", "1"}, {"b", "2"}}).ok());
  ASSERT_TRUE(client_->Commit("labelled-committed", "labelled", {{"c", "3"}}).ok());
  EXPECT_EQ(client_->Stat("labelled-committed")->labels, (Labels{{"c", "3"}}));
  EXPECT_EQ(client_->Stat("labelled-committed")->created, client_->Stat("labelled-committed")->updated);
}

TEST_F(MetaStoreSuite, Remove) {
  EXPECT_TRUE(client_->Remove("view-2").ok());
  EXPECT_TRUE(client_->Remove("active-3").ok());
  EXPECT_TRUE(client_->Remove("committed-2").ok());
  EXPECT_TRUE(absl::IsNotFound(client_->Stat("committed-2").status()));
}

TEST_F(MetaStoreSuite, RemoveNotExist) { EXPECT_TRUE(absl::IsNotFound(client_->Remove("does-not-exist"))); }

// The only error that containerd's garbage collection passes over.
TEST_F(MetaStoreSuite, RemoveWithChildren) {
  for (int i = 0; i < 2; ++i) {
    absl::Status status = client_->Remove("committed-1");
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    std::string text(status.message());
    EXPECT_FALSE(absl::EndsWith(text, ": conflict") || absl::EndsWith(text, ": not modified")) << text;
  }
}

TEST_F(MetaStoreSuite, ParentIDs) {
  EXPECT_EQ(client_->Stat(client_->Stat("active-3")->parent)->parent, "committed-1");
  ASSERT_NO_FATAL_FAILURE(MakeLayer("top", "committed-2", File("f", "x", 0644)));
  auto mounts = client_->Prepare("on-top", "top");
  ASSERT_TRUE(mounts.ok());
  std::string lowers;
  for (const std::string& option : (*mounts)[0].options) {
    if (absl::StartsWith(option, "lowerdir=")) lowers = option;
  }
  EXPECT_EQ(std::count(lowers.begin(), lowers.end(), ':'), 2) << "three parents: " << lowers;
}

TEST_F(MetaStoreSuite, Rebase) {
  ASSERT_TRUE(client_->Prepare("r1", "").ok());
  EXPECT_TRUE(client_->Commit("rebased-1", "r1", {}, "committed-1").ok());
  EXPECT_EQ(client_->Stat("rebased-1")->parent, "committed-1");
  EXPECT_TRUE(absl::IsFailedPrecondition(client_->Remove("committed-1")));
  ASSERT_TRUE(client_->Prepare("r2", "committed-1").ok());
  EXPECT_TRUE(client_->Commit("rebased-2", "r2", {}, "committed-1").ok()) << "the same parent";
  ASSERT_TRUE(client_->Prepare("r3", "").ok());
  EXPECT_TRUE(absl::IsNotFound(client_->Commit("rebased-3", "r3", {}, "nonexist")));
  EXPECT_TRUE(absl::IsFailedPrecondition(client_->Commit("rebased-3", "r3", {}, "active-1")));
  ASSERT_TRUE(client_->Prepare("r4", "committed-1").ok());
  EXPECT_TRUE(client_->Commit("rebased-4", "r4").ok());
  EXPECT_EQ(client_->Stat("rebased-4")->parent, "committed-1");
  ASSERT_TRUE(client_->Prepare("r5", "committed-1").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(client_->Commit("rebased-5", "r5", {}, "committed-2")))
      << "another parent";
}

class BadInput : public SuiteTest {
 protected:
  static void ExpectRefused(const absl::Status& status, const std::string& says) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status << "; wanted: " << says;
    EXPECT_THAT(std::string(status.message()), HasSubstr(says));
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
  }
};

TEST_F(BadInput, Filters) {
  ExpectRefused(client_->List({"name=x"}).status(), "unsupported operator");
  ExpectRefused(client_->List({"name==ok", "name~=(["}).status(), "not an expression");
  ExpectRefused(client_->List({"labels.a/b==c"}).status(), "[labels.a >|/|< b==c]");
  ExpectRefused(client_->List({std::string(100'000, 'x')}).status(), "more than 65536");
}

TEST_F(BadInput, Keys) {
  const std::string nul("a\0b", 3);
  const std::string longest(4096, 'k');
  for (const std::string& key : {std::string(), nul, longest + "k"}) {
    ExpectRefused(client_->Prepare(key, "").status(), "key");
    ExpectRefused(client_->View(key, "").status(), "key");
    EXPECT_FALSE(client_->Stat(key).ok());
    EXPECT_FALSE(client_->Mounts(key).ok());
    EXPECT_FALSE(client_->Remove(key).ok());
    EXPECT_FALSE(client_->GetUsage(key).ok());
  }
  ASSERT_TRUE(client_->Prepare("fine", "").ok());
  ExpectRefused(client_->Commit("", "fine"), "name");
  ExpectRefused(client_->Commit(nul, "fine"), "name");
  for (const std::string& key :
       {longest, std::string("ns/1/extract-1 sha256:ab/../..//\xE7\x89\x9B\t'\"%s")}) {
    EXPECT_TRUE(client_->Prepare(key, "").ok());
    EXPECT_EQ(client_->Stat(key)->name, key);
    EXPECT_TRUE(client_->Remove(key).ok());
  }
}

TEST_F(BadInput, Labels) {
  const std::string long_value(4097, 'v');
  ExpectRefused(client_->Prepare("k", "", {{"some.key", long_value}}).status(), "some.key");
  ExpectRefused(client_->View("k", "", {{"some.key", long_value}}).status(), "some.key");
  ASSERT_TRUE(client_->Prepare("k", "").ok());
  ExpectRefused(client_->Commit("n", "k", {{"some.key", long_value}}), "some.key");
  Info info;
  info.name = "k";
  info.labels = {{"some.key", long_value}};
  ExpectRefused(client_->Update(info).status(), "some.key");
  ExpectRefused(client_->Update(info, {"labels.some.key"}).status(), "some.key");
  EXPECT_TRUE(client_->Stat("k")->labels.empty());
}

TEST_F(BadInput, FieldPaths) {
  ASSERT_TRUE(client_->Prepare("k", "").ok());
  Info info;
  info.name = "k";
  info.labels = {{"a", "b"}};
  for (const char* path : {"parent", "name", "kind", "created", "updated_at", "nonsense", "labelsx",
                           "Labels.a", "", "labels."}) {
    ExpectRefused(client_->Update(info, {"labels.a", path}).status(), path);
  }
  EXPECT_TRUE(client_->Stat("k")->labels.empty()) << "all or nothing";
}

TEST_F(BadInput, DigestsAndReferences) {
  const Labels good = {{kLabelSnapshotRef, "chain"},
                       {kLabelCriImageRef, "registry.example/app:1"},
                       {kLabelCriLayerDigest, base::Digest::Of("layer").ToString()}};
  for (const char* key : {kLabelCriLayerDigest, kLabelCriManifestDigest, kLabelStargzDigest, kLabelDiffId,
                          kLabelCriImageRef, kLabelStargzReference}) {
    Labels labels = good;
    labels[key] = "sha256:NOT a digest";
    ExpectRefused(client_->Prepare("k", "", labels).status(), key);
  }
  EXPECT_EQ(layers_.mount_calls(), 0);
  EXPECT_TRUE(Names().empty());
  EXPECT_TRUE(absl::IsAlreadyExists(client_->Prepare("k", "", good).status()));
}

TEST_F(BadInput, IdMaps) {
  for (const char* map : {"junk", "0:0", "1:0:1", "0:0:0", "0:4294967295:1", "0:0:5,3:9:1"}) {
    ExpectRefused(client_->Prepare("k", "", {{kLabelUidMapping, map}, {kLabelGidMapping, "0:0:1"}}).status(),
                  kLabelUidMapping);
  }
  ExpectRefused(client_->Prepare("k", "", {{kLabelGidMapping, "0:0:1"}}).status(), "without");
}

TEST_F(BadInput, TextOfAnImageDoesNotReachTheErrorRaw) {
  const Labels labels = {{kLabelSnapshotRef, "chain"}, {kLabelCriImageRef, "evil\x1b[31m\nhost/x"}};
  absl::Status status = client_->Prepare("k", "", labels).status();
  ExpectRefused(status, kLabelCriImageRef);
  EXPECT_EQ(status.message().find('\x1b'), absl::string_view::npos);
}

}  // namespace
}  // namespace lazyblob::snapshotter::suite
