// What gc calls garbage, and what fsck finds in a state root besides layers.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "contentservice/content.h"
#include "contentservice/lazy_records.h"
#include "contentstore/content_store.h"
#include "daemon/cli.h"
#include "daemon/fsck.h"
#include "daemon/garbage.h"
#include "daemon/state_root.h"
#include "snapshotter/labels.h"
#include "snapshotter/snapshotter.h"
#include "tests/support/fake_lazy_layers.h"
#include "tests/support/layer_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class MaintenanceTest : public ::testing::Test {
 protected:
  MaintenanceTest() { Start(); }

  void Start() {
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("layers");
    store.log = [](absl::string_view) {};
    store_ = contentstore::ContentStore::Open(std::move(store)).value();
    snapshotter::SnapshotterOptions options;
    options.root = directory_.path();
    options.layers = &lazy_;
    options.log = [](absl::string_view) {};
    snapshotter_ = snapshotter::Snapshotter::Open(std::move(options)).value();
  }
  void Stop() {
    snapshotter_.reset();
    store_.reset();
  }

  // A layer of the store; its digest.
  base::Digest Add(const std::string& name) {
    contentstore::DescriptorHandler handler;
    handler.descriptor.digest = base::Digest::Of(name);
    handler.descriptor.media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    handler.descriptor.size = 10;
    EXPECT_TRUE(store_->AddHandler(handler).ok());
    return handler.descriptor.digest;
  }
  // A committed lazy snapshot of the layer.
  void Snapshot(const std::string& name, const base::Digest& layer) {
    const snapshotter::Labels labels = {
        {snapshotter::kLabelSnapshotRef, name},
        {snapshotter::kLabelCriImageRef, "registry.test/app:1"},
        {snapshotter::kLabelCriManifestDigest, base::Digest::Of("manifest").ToString()},
        {snapshotter::kLabelCriLayerDigest, layer.ToString()}};
    EXPECT_TRUE(absl::IsAlreadyExists(snapshotter_->Prepare(name + "-key", "", labels, nullptr).status()));
  }
  // A writable snapshot; its directory <root>/s/<id>.
  std::string Active(const std::string& key) {
    const auto mounts = snapshotter_->Prepare(key, "", {}, nullptr);
    EXPECT_TRUE(mounts.ok()) << mounts.status();
    const std::string fs = mounts->at(0).source;
    return fs.substr(0, fs.rfind('/'));
  }
  std::vector<std::string> Collect(bool dry_run) {
    parts_.root = directory_.path();
    parts_.store = store_.get();
    parts_.in_use = [this] { return in_use_; };
    const absl::StatusOr<std::vector<Garbage>> garbage = CollectGarbage(parts_, dry_run);
    EXPECT_TRUE(garbage.ok()) << garbage.status();
    std::vector<std::string> what;
    for (const Garbage& one : garbage.value_or(std::vector<Garbage>())) {
      EXPECT_GT(one.bytes, 0u) << one.what;
      what.push_back(one.what);
    }
    return what;
  }
  static std::string Named(const base::Digest& layer) { return "layer " + layer.ToString(); }

  std::vector<std::string> Check(bool alone, bool repair) {
    std::vector<std::string> found;
    totals_ = FsckTotals();
    contentstore::CheckOptions options;
    options.alone = alone;
    options.repair = repair;
    const absl::Status status = Fsck(
        directory_.path(), options,
        [&](const contentstore::CheckFinding& finding) {
          found.push_back(absl::StrCat(finding.repaired ? "repaired " : "", finding.what));
        },
        &totals_);
    EXPECT_TRUE(status.ok()) << status;
    return found;
  }

  support::TempDir directory_;
  support::FakeLazyLayers lazy_{directory_.File("mounts")};
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<snapshotter::Snapshotter> snapshotter_;
  std::set<base::Digest> in_use_;
  GarbageParts parts_;
  FsckTotals totals_;
};

TEST_F(MaintenanceTest, OnlyLayersThatNothingNamesAreGarbage) {
  const base::Digest mounted = Add("mounted"), snapshot = Add("snapshot"), unused = Add("unused"),
                     read = Add("read");
  in_use_ = {mounted};
  Snapshot("lazy", snapshot);
  const auto reader = store_->Find(read);
  parts_.snapshotter = snapshotter_.get();
  EXPECT_THAT(Collect(true), UnorderedElementsAre(Named(unused), Named(read)));
  EXPECT_EQ(store_->Layers().size(), 4u) << "a dry run removes nothing";
  EXPECT_THAT(Collect(false), ElementsAre(Named(unused)));
  EXPECT_EQ(store_->Find(unused), nullptr);
  EXPECT_NE(store_->Find(mounted), nullptr);
  EXPECT_NE(store_->Find(snapshot), nullptr);
  EXPECT_NE(store_->Find(read), nullptr);
  EXPECT_THAT(Collect(false), IsEmpty());
}

TEST_F(MaintenanceTest, SnapshotsKeepTheirLayersThoughTheyCouldNotBeMounted) {
  const base::Digest layer = Add("layer");
  Snapshot("lazy", layer);
  Stop();
  lazy_.Lose(layer);
  Start();
  ASSERT_THAT(snapshotter_->LazyMounts(), IsEmpty());
  parts_.snapshotter = snapshotter_.get();
  EXPECT_THAT(Collect(false), IsEmpty());
  EXPECT_NE(store_->Find(layer), nullptr);
}

TEST_F(MaintenanceTest, ADaemonWithoutSnapshotsAndContentReadsWhatTheirDatabasesKeep) {
  const base::Digest snapshot = Add("snapshot"), held = Add("held"), let_go = Add("let go");
  Snapshot("lazy", snapshot);
  snapshotter_.reset();
  ASSERT_TRUE(base::MakeDirectories(directory_.File("content")).ok());
  {
    const auto records = contentservice::LazyRecords::Open(directory_.File("content/lazy.db")).value();
    for (const base::Digest& digest : {held, let_go}) {
      contentservice::LazyRecord record;
      record.blob.digest = digest;
      record.held = digest == held;
      ASSERT_TRUE(records->Put(record).ok());
    }
  }
  EXPECT_THAT(Collect(false), ElementsAre(Named(let_go)));
}

TEST_F(MaintenanceTest, DirectoriesOfNoSnapshotAreGarbage) {
  const std::string living = Active("living");
  const std::string stray = directory_.File("s/77"), half_made = directory_.File("s/new-abc");
  ASSERT_TRUE(base::MakeDirectories(stray + "/fs").ok());
  ASSERT_TRUE(base::MakeDirectories(half_made + "/fs").ok());
  parts_.snapshotter = snapshotter_.get();
  EXPECT_THAT(Collect(true), ElementsAre(stray, half_made));
  EXPECT_EQ(access(stray.c_str(), F_OK), 0);
  EXPECT_THAT(Collect(false), ElementsAre(stray, half_made));
  EXPECT_NE(access(stray.c_str(), F_OK), 0);
  EXPECT_EQ(access(living.c_str(), F_OK), 0);
}

TEST_F(MaintenanceTest, SnapshotsThatLostTheirDirectoryAreToldAndCannotBeRepaired) {
  const std::string lost = Active("lost");
  Active("living");
  EXPECT_THAT(Check(false, false), IsEmpty()) << "beside the snapshotter";
  Stop();
  ASSERT_TRUE(base::RemoveTree(lost).ok());
  ASSERT_TRUE(base::MakeDirectories(directory_.File("s/77/fs")).ok());
  const std::string missing = absl::StrCat("snapshot lost: ", lost, "/fs is missing");
  EXPECT_THAT(Check(true, false),
              UnorderedElementsAre(HasSubstr(missing), HasSubstr("s/77 belongs to no snapshot")));
  EXPECT_EQ(totals_.snapshots, 2u);
  EXPECT_THAT(Check(true, true),
              UnorderedElementsAre(testing::StartsWith(missing),
                                   testing::AllOf(testing::StartsWith("repaired "), HasSubstr("s/77"))));
  EXPECT_THAT(Check(true, false), ElementsAre(HasSubstr(missing)));
}

TEST_F(MaintenanceTest, LazySnapshotsNeedTheFilesOfTheirLayer) {
  const base::Digest layer = Add("layer");
  Snapshot("lazy", layer);
  Stop();
  EXPECT_THAT(Check(true, false), ElementsAre(HasSubstr("snapshot lazy: "), HasSubstr("/index is missing")));
}

TEST_F(MaintenanceTest, WhatTheDaemonCrashedOverIsToldAndForgotten) {
  Stop();
  const std::string path = directory_.File("crashes");
  ASSERT_TRUE(base::WriteFileAtomically(path, "sha256:a\nregistry.test/app:1\nsha256:a\n").ok());
  const auto told = ElementsAre(HasSubstr("crashed 1 time over registry.test/app:1"),
                                HasSubstr("crashed 2 times over sha256:a"));
  EXPECT_THAT(Check(false, false), told);
  EXPECT_THAT(Check(true, true), told);
  EXPECT_NE(access(path.c_str(), F_OK), 0);
  EXPECT_THAT(Check(true, false), IsEmpty());
}

TEST_F(MaintenanceTest, ADamagedDatabaseIsToldAndLeftAlone) {
  Active("key");
  Stop();
  const std::string path = directory_.File("snapshots.db");
  ASSERT_EQ(truncate(path.c_str(), 4096), 0);
  const std::string before = base::ReadFile(path, 1 << 20).value();
  EXPECT_THAT(Check(true, true), testing::Contains(testing::StartsWith(path)));
  EXPECT_EQ(base::ReadFile(path, 1 << 20).value(), before);
}

TEST_F(MaintenanceTest, BlobsThatLostTheirDigestOrTheirFileAreForgotten) {
  const std::string root = directory_.File("content");
  contentservice::ContentOptions options;
  options.root = root;
  options.log = [](absl::string_view) {};
  auto content = contentservice::Content::Open(options).value();
  std::vector<base::Digest> digests;
  for (const char* text : {"right", "rotten", "gone"}) {
    auto writer = content->OpenWriter(absl::StrCat("ref-", text), 0, {}).value();
    ASSERT_TRUE(writer->Append({reinterpret_cast<const uint8_t*>(text), strlen(text)}).ok());
    digests.push_back(writer->digest());
    ASSERT_TRUE(writer->Commit(0, {}, {}).ok());
  }
  EXPECT_THAT(Check(false, false), IsEmpty()) << "beside the content store";
  EXPECT_EQ(totals_.blobs, 3u);
  content.reset();
  Stop();
  const std::string rotten = absl::StrCat(root, "/blobs/sha256/", digests[1].hex());
  ASSERT_TRUE(base::WriteFileAtomically(rotten, "ROTTEN").ok());
  ASSERT_TRUE(base::RemoveTree(absl::StrCat(root, "/blobs/sha256/", digests[2].hex())).ok());
  EXPECT_THAT(Check(true, false), UnorderedElementsAre(HasSubstr("does not have its digest"),
                                                       HasSubstr("is missing; pull its image again")));
  EXPECT_THAT(Check(true, true), testing::Each(testing::StartsWith("repaired ")));
  EXPECT_THAT(Check(true, false), IsEmpty());
  EXPECT_NE(access(rotten.c_str(), F_OK), 0);
  content = contentservice::Content::Open(options).value();
  EXPECT_TRUE(content->GetInfo(digests[0]).ok());
  EXPECT_TRUE(absl::IsNotFound(content->GetInfo(digests[1]).status()));
}

struct Result {
  int code = 0;
  std::string out;
  std::string err;
};

Result RunFsck(const std::string& root, std::vector<const char*> more) {
  std::ostringstream out, err;
  std::vector<const char*> arguments = {"lazyblob", "--root", root.c_str(), "fsck"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  const int code = RunCli(static_cast<int>(arguments.size()), arguments.data(), {out, err, false});
  return {code, out.str(), err.str()};
}

TEST_F(MaintenanceTest, TheExitStatusTellsWhatIsLeft) {
  const std::string lost = Active("lost");
  Stop();
  ASSERT_TRUE(LockStateRoot(directory_.path(), absl::ZeroDuration()).ok()) << "needs a real disk";
  EXPECT_EQ(RunFsck(directory_.path(), {}).code, 0);
  ASSERT_TRUE(base::MakeDirectories(directory_.File("s/77")).ok());
  Result result = RunFsck(directory_.path(), {});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.out, HasSubstr("damaged: "));
  result = RunFsck(directory_.path(), {"--repair"});
  EXPECT_EQ(result.code, 1) << result.err;
  EXPECT_THAT(result.out, HasSubstr("1 findings, 1 repaired"));
  EXPECT_EQ(RunFsck(directory_.path(), {"--repair"}).code, 0);
  ASSERT_TRUE(base::RemoveTree(lost).ok());
  result = RunFsck(directory_.path(), {"--repair", "--json"});
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.out, HasSubstr("\"repaired\": false"));
  result = RunFsck(directory_.File("none"), {});
  EXPECT_EQ(result.code, 8);
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
}

}  // namespace
}  // namespace lazyblob::daemon
