#include "daemon/layer_mounts.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "layer/chain_image_name.h"

namespace lazyblob::daemon {
namespace {

absl::string_view ModeLetter(fuse::Mode mode) { return fuse::ModeName(mode).substr(0, 1); }

}  // namespace

LayerMounts::LayerMounts(std::string directory, fuse::Mounter* mounter, ReadGate reads)
    : directory_(std::move(directory)), mounter_(mounter), reads_(std::move(reads)) {}

std::string LayerMounts::TargetOf(const WantedLayer& layer) const {
  const std::string file = layer.meta_path.substr(layer.meta_path.rfind('/') + 1);
  const auto chain = layer::ParseChainImageName(file);
  return absl::StrCat(directory_, "/", layer.id, chain.has_value() ? absl::StrCat(".", chain->number) : "",
                      ModeLetter(layer.mode), layer.data_path.empty() ? "" : "d");
}

std::string LayerMounts::ViewOf(const std::string& source, const fuse::IdMapping& mapping) const {
  std::string text = absl::StrCat(source, "\n");
  for (const auto* ranges : {&mapping.uids, &mapping.gids}) {
    for (const fuse::IdRange& range : *ranges) {
      absl::StrAppend(&text, range.container, ":", range.host, ":", range.length, ",");
    }
    text += "\n";
  }
  return absl::StrCat(directory_, "/i", base::Digest::Of(text).hex().substr(0, 12));
}

void LayerMounts::Inherit(const std::set<std::string>& mounted) {
  absl::MutexLock lock(&mutex_);
  for (const std::string& target : mounted) {
    if (absl::StartsWith(target, directory_ + "/")) inherited_.insert(target);
  }
}

void LayerMounts::UnmountInherited() {
  std::set<std::string> left;
  {
    absl::MutexLock lock(&mutex_);
    left.swap(inherited_);
  }
  for (const std::string& target : left) Unmount(target);
  auto names = base::ListDirectory(directory_);
  absl::MutexLock lock(&mutex_);
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    const std::string target = absl::StrCat(directory_, "/", name);
    if (entries_.count(target) == 0) rmdir(target.c_str());
  }
}

bool LayerMounts::Join(const std::string& target, const Entry& as) {
  absl::MutexLock lock(&mutex_);
  auto settled = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (failing_.count(as.digest) > 0) return false;
    auto found = entries_.find(target);
    return found == entries_.end() || found->second.state == Entry::State::kMounted;
  };
  mutex_.Await(absl::Condition(&settled));
  auto [found, fresh] = entries_.try_emplace(target, as);
  if (fresh && inherited_.erase(target) > 0) found->second.state = Entry::State::kMounted;
  if (found->second.state != Entry::State::kMounted) return false;
  ++found->second.users;
  return true;
}

absl::Status LayerMounts::Settle(const std::string& target, const absl::Status& mounted) {
  absl::MutexLock lock(&mutex_);
  if (!mounted.ok()) {
    rmdir(target.c_str());
    entries_.erase(target);
    return mounted;
  }
  Entry& entry = entries_[target];
  entry.state = Entry::State::kMounted;
  entry.users = 1;
  return absl::OkStatus();
}

absl::StatusOr<std::string> LayerMounts::Acquire(const WantedLayer& layer) {
  const std::string target = TargetOf(layer);
  Entry entry;
  entry.digest = layer.digest;
  entry.data_path = layer.data_path;
  entry.pin = layer.pin;
  if (Join(target, entry)) return target;
  absl::Status status = base::MakeDirectories(target);
  if (status.ok()) {
    fuse::LayerMountRequest request;
    request.layer = layer.digest;
    request.meta_path = layer.meta_path;
    request.data_path = layer.data_path;
    request.target = target;
    request.mode = layer.mode;
    status = mounter_->MountLayer(request);
  }
  status = Settle(target, status);
  if (!status.ok()) return base::Annotate(status, absl::StrCat("mount layer ", layer.digest.ToString()));
  return target;
}

bool LayerMounts::Adopt(const std::string& target, const WantedLayer& layer) {
  absl::MutexLock lock(&mutex_);
  if (inherited_.erase(target) > 0) {
    Entry& entry = entries_[target];
    entry.state = Entry::State::kMounted;
    entry.digest = layer.digest;
    entry.data_path = layer.data_path;
    entry.pin = layer.pin;
  }
  auto found = entries_.find(target);
  if (found == entries_.end() || found->second.state != Entry::State::kMounted) return false;
  if (found->second.digest != layer.digest) return false;
  ++found->second.users;
  return true;
}

void LayerMounts::Unmount(const std::string& target) {
  absl::Status status = mounter_->Unmount(target, /*lazy=*/false);
  if (absl::IsFailedPrecondition(status)) mounter_->Unmount(target, /*lazy=*/true).IgnoreError();
  rmdir(target.c_str());
}

void LayerMounts::Release(const std::string& target) {
  base::Digest digest;
  std::shared_ptr<const void> pin;
  bool alone = true;
  {
    absl::MutexLock lock(&mutex_);
    auto found = entries_.find(target);
    if (found == entries_.end() || --found->second.users > 0) return;
    found->second.state = Entry::State::kUnmounting;
    digest = found->second.digest;
    for (const auto& [other, entry] : entries_) {
      if (other != target && entry.digest == digest) alone = false;
    }
    alone = alone && !digest.empty();
    if (alone) failing_.insert(digest);
  }
  // An unmount waits for reads that nobody has answered: end them first (design rule 2).
  if (alone) reads_.fail(digest);
  Unmount(target);
  if (alone) reads_.allow(digest);
  absl::MutexLock lock(&mutex_);
  auto found = entries_.find(target);
  if (alone) failing_.erase(digest);
  pin = std::move(found->second.pin);  // let go of after the lock
  entries_.erase(found);
}

absl::StatusOr<std::string> LayerMounts::AcquireView(const std::string& source,
                                                     const fuse::IdMapping& mapping) {
  const std::string target = ViewOf(source, mapping);
  if (Join(target, Entry())) return target;
  absl::Status status = base::MakeDirectories(target);
  if (status.ok()) status = mounter_->MountIdMapped({source, target, mapping});
  RETURN_IF_ERROR(base::Annotate(Settle(target, status), absl::StrCat("id-mapped view of ", source)));
  return target;
}

void LayerMounts::ReleaseView(const std::string& source, const fuse::IdMapping& mapping) {
  Release(ViewOf(source, mapping));
}

bool LayerMounts::Mounted(const std::string& target) const {
  absl::MutexLock lock(&mutex_);
  auto found = entries_.find(target);
  return found != entries_.end() && found->second.state == Entry::State::kMounted;
}

std::set<base::Digest> LayerMounts::Layers() const {
  std::set<base::Digest> layers;
  absl::MutexLock lock(&mutex_);
  for (const auto& [target, entry] : entries_) {
    if (!entry.digest.empty()) layers.insert(entry.digest);
  }
  return layers;
}

std::vector<std::string> LayerMounts::DirectFiles() const {
  std::set<std::string> files;
  absl::MutexLock lock(&mutex_);
  for (const auto& [target, entry] : entries_) {
    if (!entry.data_path.empty()) files.insert(entry.data_path);
  }
  return {files.begin(), files.end()};
}

}  // namespace lazyblob::daemon
