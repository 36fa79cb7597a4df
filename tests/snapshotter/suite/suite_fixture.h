#pragma once

// The real Snapshotter behind its socket, a client of it, and a place to mount. Needs root.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "containerd/grpc_server.h"
#include "snapshotter/labels.h"
#include "snapshotter/snapshots_service.h"
#include "tests/snapshotter/suite/mounted.h"
#include "tests/snapshotter/suite/tree.h"
#include "tests/snapshotter/suite/wire_client.h"
#include "tests/support/fake_lazy_layers.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::snapshotter::suite {

class SuiteTest : public ::testing::Test {
 protected:
  SuiteTest() : layers_(dir_.File("m")) {
    // overlayfs takes no upper directory on an overlayfs, which containers' roots often are.
    options_.root = dir_.File("root");
    options_.layers = &layers_;
    options_.log = [](absl::string_view) {};
  }
  void SetUp() override {
    ASSERT_EQ(geteuid(), 0u) << "this test mounts: run it as root";
    Start();
  }
  void Start() {
    auto opened = Snapshotter::Open(options_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    snapshotter_ = *std::move(opened);
    service_ = SnapshotsService::Create(snapshotter_.get());
    auto server = containerd::GrpcServer::Start(dir_.File("run") + "/s.sock", {service_->service()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    client_ = std::make_unique<WireClient>(dir_.File("run") + "/s.sock");
  }
  void Restart() {
    client_.reset();
    server_.reset();
    service_.reset();
    snapshotter_.reset();
    layers_.Forget();
    Start();
  }
  std::string Work(absl::string_view name) const { return dir_.File(absl::StrCat("work/", name)); }

  // Prepares, mounts, changes, unmounts and commits.
  void MakeLayer(const std::string& name, const std::string& parent, const Change& change,
                 const Labels& labels = {}) {
    auto mounts = client_->Prepare(name + "-prepare", parent, labels);
    ASSERT_TRUE(mounts.ok()) << mounts.status();
    auto mounted = Mounted::At(Work(absl::StrCat("make", ++count_)), *mounts);
    ASSERT_TRUE(mounted.ok()) << mounted.status();
    change(mounted->path());
    ASSERT_TRUE(mounted->Unmount().ok());
    absl::Status status = client_->Commit(name, name + "-prepare", labels);
    ASSERT_TRUE(status.ok()) << status;
  }
  // The tree of a view of `name`.
  std::string TreeOfView(const std::string& name) {
    const std::string key = absl::StrCat(name, "-view", ++count_);
    auto mounts = client_->View(key, name);
    if (!mounts.ok()) return mounts.status().ToString();
    std::string tree;
    {
      auto mounted = Mounted::At(Work(absl::StrCat("view", count_)), *mounts);
      if (!mounted.ok()) return mounted.status().ToString();
      tree = TreeOf(mounted->path());
    }
    EXPECT_TRUE(client_->Remove(key).ok());
    return tree;
  }
  // Each change makes a layer; the view of each layer equals the same changes made to one plain directory.
  void CheckLayers(const std::vector<Change>& changes) {
    const std::string flat = Work(absl::StrCat("flat", ++count_));
    ASSERT_TRUE(base::MakeDirectories(flat).ok());
    ASSERT_EQ(chmod(flat.c_str(), 0755), 0);
    std::string parent;
    for (const Change& change : changes) {
      const std::string name = absl::StrCat("layer", ++count_);
      ASSERT_NO_FATAL_FAILURE(MakeLayer(name, parent, change));
      change(flat);
      ASSERT_EQ(TreeOf(flat), TreeOfView(name)) << name;
      parent = name;
    }
  }
  std::vector<std::string> Names(const std::vector<std::string>& filters = {}) {
    auto infos = client_->List(filters);
    if (!infos.ok()) return {infos.status().ToString()};
    std::vector<std::string> names;
    for (const Info& info : *infos) names.push_back(info.name);
    return names;
  }

  support::TempDir dir_;
  support::FakeLazyLayers layers_;
  SnapshotterOptions options_;
  std::unique_ptr<Snapshotter> snapshotter_;
  std::unique_ptr<SnapshotsService> service_;
  std::unique_ptr<containerd::GrpcServer> server_;
  std::unique_ptr<WireClient> client_;
  int count_ = 0;
};

inline void ExpectSame(const Info& a, const Info& b) {
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.parent, b.parent);
  EXPECT_EQ(a.kind, b.kind);
  EXPECT_EQ(a.labels, b.labels);
  EXPECT_EQ(a.created, b.created);
  EXPECT_EQ(a.updated, b.updated);
}

}  // namespace lazyblob::snapshotter::suite
