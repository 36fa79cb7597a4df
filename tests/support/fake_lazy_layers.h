#pragma once

// snapshotter::LazyLayers over plain directories: "mounting" a layer gives it a directory below `root`, and
// every user is counted. A Mount may be held at a gate or made to fail; a layer may die and come back.
// `Forget` is the death of the daemon: mounts stay, as with a keeper, but nobody counts them.

#include <sys/stat.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "snapshotter/lazy_layers.h"
#include "tests/support/gate.h"

namespace lazyblob::support {

// Thread-safe.
class FakeLazyLayers final : public snapshotter::LazyLayers {
 public:
  // `root` is made. Layer d is mounted at <root>/<12 hex of d>[.<generation>].
  explicit FakeLazyLayers(std::string root) : root_(std::move(root)) {
    base::MakeDirectories(root_).IgnoreError();
  }

  absl::StatusOr<snapshotter::LayerMount> Mount(const snapshotter::LayerClaim& claim,
                                                const std::vector<snapshotter::LowerLayer>& lowers,
                                                std::shared_ptr<base::CancelToken> cancel) override {
    {
      absl::MutexLock lock(&mutex_);
      ++mount_calls_;
      last_claim_ = claim;
      last_lowers_ = lowers;
    }
    if (gate != nullptr) gate->Pass();
    if (cancel != nullptr && cancel->cancelled()) return absl::CancelledError("cancelled");
    absl::MutexLock lock(&mutex_);
    auto failure = failures_.find(claim.layer);
    if (failure != failures_.end()) return failure->second;
    snapshotter::LayerMount mount;
    mount.layer = claim.layer;
    mount.meta_path = absl::StrCat(root_, "/", Name(claim.layer), ".erofs");
    mount.opaque_root = opaque_.contains(claim.layer);
    mount.target = Target(claim.layer);
    Use(mount.target);
    return mount;
  }
  absl::StatusOr<snapshotter::LayerMount> Restore(const snapshotter::LayerMount& recorded) override {
    absl::MutexLock lock(&mutex_);
    ++restore_calls_;
    if (lost_.contains(recorded.layer)) return absl::NotFoundError("its files are gone");
    snapshotter::LayerMount mount = recorded;
    mount.target = Target(recorded.layer);
    Use(mount.target);
    return mount;
  }
  void Unmount(const snapshotter::LayerMount& mount) override {
    absl::MutexLock lock(&mutex_);
    auto found = users_.find(mount.target);
    if (found == users_.end()) {
      ++unbalanced_;
    } else if (--found->second == 0) {
      users_.erase(found);
    }
  }
  absl::Status Check(const snapshotter::LayerMount& mount) override {
    absl::MutexLock lock(&mutex_);
    if (dead_.contains(mount.layer)) return absl::UnavailableError("its bytes are wrong");
    return users_.contains(mount.target) ? absl::OkStatus() : absl::UnavailableError("it is not mounted");
  }
  base::Digest VerifiedDiffId(const base::Digest& layer) override {
    absl::MutexLock lock(&mutex_);
    const auto found = diff_ids_.find(layer);
    return found == diff_ids_.end() ? base::Digest() : found->second;
  }
  snapshotter::Usage CacheUsage(const base::Digest&) override { return cache_usage; }
  absl::StatusOr<std::string> MapIds(const std::string& source, const fuse::IdMapping& mapping) override {
    absl::MutexLock lock(&mutex_);
    if (!map_failure_.ok()) return map_failure_;
    ++views_[{source, mapping}];
    std::string& path = view_paths_[{source, mapping}];
    if (path.empty()) path = absl::StrCat(root_, "/view", view_paths_.size());
    return path;
  }
  void UnmapIds(const std::string& source, const fuse::IdMapping& mapping) override {
    absl::MutexLock lock(&mutex_);
    auto found = views_.find({source, mapping});
    if (found == views_.end()) {
      ++unbalanced_;
    } else if (--found->second == 0) {
      views_.erase(found);
    }
  }
  absl::Status Trim() override {
    absl::MutexLock lock(&mutex_);
    ++trim_calls_;
    return absl::OkStatus();
  }

  // What tests set while nobody calls.
  Gate* gate = nullptr;  // at which every Mount waits
  snapshotter::Usage cache_usage{4096, 1};

  void Fail(const base::Digest& layer, absl::Status with) {
    absl::MutexLock lock(&mutex_);
    failures_[layer] = std::move(with);
  }
  void StopFailing() {
    absl::MutexLock lock(&mutex_);
    failures_.clear();
    map_failure_ = absl::OkStatus();
  }
  void FailMapping(absl::Status with) {
    absl::MutexLock lock(&mutex_);
    map_failure_ = std::move(with);
  }
  // Somebody has read the layer whole.
  void SetDiffId(const base::Digest& layer, const base::Digest& diff_id) {
    absl::MutexLock lock(&mutex_);
    diff_ids_[layer] = diff_id;
  }
  void MakeOpaque(const base::Digest& layer) {
    absl::MutexLock lock(&mutex_);
    opaque_.insert(layer);
  }
  // From now on the layer is bad, and restoring it does not help.
  void Kill(const base::Digest& layer) {
    absl::MutexLock lock(&mutex_);
    dead_.insert(layer);
  }
  void Heal(const base::Digest& layer) {
    absl::MutexLock lock(&mutex_);
    dead_.erase(layer);
    lost_.erase(layer);
  }
  // Its files go: Restore cannot bring it back, Mount can.
  void Lose(const base::Digest& layer) {
    absl::MutexLock lock(&mutex_);
    lost_.insert(layer);
  }
  // The mount is gone, as if a person had unmounted it; Restore and Mount make the next one elsewhere.
  void Move(const base::Digest& layer) {
    absl::MutexLock lock(&mutex_);
    users_.erase(Target(layer));
    ++generation_[layer];
  }
  // The daemon dies: no user is counted any more.
  void Forget() {
    absl::MutexLock lock(&mutex_);
    users_.clear();
    views_.clear();
  }

  int users(const base::Digest& layer) {
    absl::MutexLock lock(&mutex_);
    auto found = users_.find(Target(layer));
    return found == users_.end() ? 0 : found->second;
  }
  size_t mounted() {
    absl::MutexLock lock(&mutex_);
    return users_.size();
  }
  size_t views() {
    absl::MutexLock lock(&mutex_);
    return views_.size();
  }
  int mount_calls() {
    absl::MutexLock lock(&mutex_);
    return mount_calls_;
  }
  int restore_calls() {
    absl::MutexLock lock(&mutex_);
    return restore_calls_;
  }
  int trim_calls() {
    absl::MutexLock lock(&mutex_);
    return trim_calls_;
  }
  // Calls of Unmount and UnmapIds for what nobody used.
  int unbalanced() {
    absl::MutexLock lock(&mutex_);
    return unbalanced_;
  }
  snapshotter::LayerClaim last_claim() {
    absl::MutexLock lock(&mutex_);
    return last_claim_;
  }
  std::vector<snapshotter::LowerLayer> last_lowers() {
    absl::MutexLock lock(&mutex_);
    return last_lowers_;
  }

 private:
  static std::string Name(const base::Digest& layer) { return layer.hex().substr(0, 12); }
  std::string Target(const base::Digest& layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const int generation = generation_[layer];
    return absl::StrCat(root_, "/", Name(layer), generation == 0 ? "" : absl::StrCat(".", generation));
  }
  void Use(const std::string& target) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    mkdir(target.c_str(), 0755);
    chmod(target.c_str(), 0755);
    ++users_[target];
  }

  const std::string root_;
  absl::Mutex mutex_;
  std::map<base::Digest, absl::Status> failures_ ABSL_GUARDED_BY(mutex_);
  absl::Status map_failure_ ABSL_GUARDED_BY(mutex_);
  std::set<base::Digest> opaque_ ABSL_GUARDED_BY(mutex_);
  std::map<base::Digest, base::Digest> diff_ids_ ABSL_GUARDED_BY(mutex_);
  std::set<base::Digest> dead_ ABSL_GUARDED_BY(mutex_);
  std::set<base::Digest> lost_ ABSL_GUARDED_BY(mutex_);
  std::map<base::Digest, int> generation_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, int> users_ ABSL_GUARDED_BY(mutex_);  // by target
  using View = std::pair<std::string, fuse::IdMapping>;
  std::map<View, int> views_ ABSL_GUARDED_BY(mutex_);  // users
  std::map<View, std::string> view_paths_ ABSL_GUARDED_BY(mutex_);
  int mount_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int restore_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int trim_calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int unbalanced_ ABSL_GUARDED_BY(mutex_) = 0;
  snapshotter::LayerClaim last_claim_ ABSL_GUARDED_BY(mutex_);
  std::vector<snapshotter::LowerLayer> last_lowers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::support
