#pragma once

// A Snapshotter over a directory of its own and fake lazy layers; it can be closed and opened again.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "snapshotter/labels.h"
#include "snapshotter/snapshotter.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_lazy_layers.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::snapshotter {

inline base::Digest LayerDigest(absl::string_view name) { return base::Digest::Of(name); }

// What containerd sends for a layer of an image: committed under `ref`.
inline Labels LazyLabels(const std::string& ref, const base::Digest& layer) {
  return {{kLabelSnapshotRef, ref},
          {kLabelCriImageRef, "registry.test/app:1"},
          {kLabelCriManifestDigest, base::Digest::Of("manifest").ToString()},
          {kLabelCriLayerDigest, layer.ToString()}};
}

class SnapshotterTest : public testing::Test {
 protected:
  SnapshotterTest() : layers_(std::make_unique<support::FakeLazyLayers>(dir_.File("m"))) {
    options_.root = dir_.File("root");
    options_.layers = layers_.get();
    options_.clock = &clock_;
    options_.log = [this](absl::string_view line) {
      absl::MutexLock lock(&log_mutex_);
      log_.emplace_back(line);
    };
  }
  void SetUp() override { Open(); }
  void Open() {
    auto opened = Snapshotter::Open(options_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    snapshotter_ = *std::move(opened);
  }
  // The daemon dies and comes back; what it had mounted is still there.
  void Restart() {
    snapshotter_.reset();
    layers_->Forget();
    Open();
  }

  absl::StatusOr<std::vector<MountSpec>> Prepare(const std::string& key, const std::string& parent = "",
                                                 const Labels& labels = {}) {
    return snapshotter_->Prepare(key, parent, labels, nullptr);
  }
  absl::Status Commit(const std::string& name, const std::string& key, const Labels& labels = {},
                      const std::string& parent = "") {
    return snapshotter_->Commit(name, key, labels, parent);
  }
  // A committed snapshot on the local disk.
  void MakeCommitted(const std::string& name, const std::string& parent = "") {
    auto mounts = Prepare(name + "-key", parent);
    ASSERT_TRUE(mounts.ok()) << mounts.status();
    ASSERT_TRUE(Commit(name, name + "-key").ok());
  }
  // A lazily committed one, named `ref`.
  void MakeLazy(const std::string& ref, const std::string& parent = "") {
    const absl::Status status = Prepare("extract " + ref, parent, LazyLabels(ref, LayerDigest(ref))).status();
    ASSERT_TRUE(absl::IsAlreadyExists(status)) << status;
    ASSERT_TRUE(snapshotter_->Stat(ref).ok());
  }
  std::vector<std::string> Names(const std::vector<std::string>& filters = {}) {
    std::vector<std::string> names;
    absl::Status status = snapshotter_->List(filters, [&](const Info& info) {
      names.push_back(info.name);
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
    return names;
  }
  // The directories of snapshots, and garbage.
  std::vector<std::string> Directories() { return base::ListDirectory(options_.root + "/s").value(); }
  static std::string Option(const MountSpec& mount, absl::string_view name) {
    for (const std::string& option : mount.options) {
      if (absl::StartsWith(option, absl::StrCat(name, "="))) return option.substr(name.size() + 1);
    }
    return "";
  }
  // The directory a snapshot without a parent is a bind of, or the upper directory of an overlay.
  static std::string Upper(const std::vector<MountSpec>& mounts) {
    return mounts.at(0).type == "bind" ? mounts[0].source : Option(mounts[0], "upperdir");
  }
  static bool Has(const MountSpec& mount, absl::string_view option) {
    for (const std::string& one : mount.options) {
      if (one == option) return true;
    }
    return false;
  }
  std::vector<std::string> Log() {
    absl::MutexLock lock(&log_mutex_);
    return log_;
  }
  size_t LoggedTimes(absl::string_view text) {
    size_t times = 0;
    for (const std::string& line : Log()) times += absl::StrContains(line, text) ? 1 : 0;
    return times;
  }

  support::TempDir dir_;
  support::FakeClock clock_;
  std::unique_ptr<support::FakeLazyLayers> layers_;
  SnapshotterOptions options_;
  absl::Mutex log_mutex_;
  std::vector<std::string> log_ ABSL_GUARDED_BY(log_mutex_);
  std::unique_ptr<Snapshotter> snapshotter_;
};

}  // namespace lazyblob::snapshotter
