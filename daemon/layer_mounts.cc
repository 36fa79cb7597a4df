#include "daemon/layer_mounts.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::daemon {

LayerMounts::LayerMounts(std::string directory, fuse::Mounter* mounter, ReadGate reads)
    : directory_(std::move(directory)), mounter_(mounter), reads_(std::move(reads)) {}

LayerMounts::Key LayerMounts::KeyOf(const MountedLayer& layer, fuse::Mode mode) {
  return Key(layer.digest, layer.meta_path, mode, layer.direct);
}

absl::Status LayerMounts::Mount(const MountedLayer& layer, const std::string& data_path, fuse::Mode mode) {
  RETURN_IF_ERROR(base::MakeDirectories(layer.target));
  fuse::LayerMountRequest request;
  request.layer = layer.digest;
  request.meta_path = layer.meta_path;
  request.data_path = layer.direct ? data_path : "";
  request.target = layer.target;
  request.mode = mode;
  absl::Status status = mounter_->MountLayer(request);
  if (!status.ok()) rmdir(layer.target.c_str());
  return base::Annotate(status, absl::StrCat("mount layer ", layer.digest.ToString()));
}

absl::StatusOr<MountedLayer> LayerMounts::Acquire(MountedLayer layer, const std::string& data_path,
                                                  fuse::Mode mode) {
  const Key key = KeyOf(layer, mode);
  {
    absl::MutexLock lock(&mutex_);
    auto settled = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      auto found = entries_.find(key);
      return found == entries_.end() || found->second.state == Entry::State::kMounted;
    };
    mutex_.Await(absl::Condition(&settled));
    Entry& entry = entries_[key];
    if (entry.state == Entry::State::kMounted) {
      ++entry.users;
      layer.target = entry.target;
      return layer;
    }
    struct stat unused;
    do {
      entry.target = absl::StrCat(directory_, "/", next_target_++);
    } while (lstat(entry.target.c_str(), &unused) == 0);
    layer.target = entry.target;
  }
  absl::Status status = Mount(layer, data_path, mode);
  absl::MutexLock lock(&mutex_);
  if (!status.ok()) {
    entries_.erase(key);
    return status;
  }
  entries_[key].state = Entry::State::kMounted;
  entries_[key].users = 1;
  return layer;
}

void LayerMounts::Release(const MountedLayer& layer, fuse::Mode mode) {
  const Key key = KeyOf(layer, mode);
  {
    absl::MutexLock lock(&mutex_);
    auto found = entries_.find(key);
    if (found == entries_.end() || --found->second.users > 0) return;
    found->second.state = Entry::State::kUnmounting;
  }
  // An unmount waits for reads that nobody has answered: end them first (design rule 2).
  reads_.fail(layer.digest);
  absl::Status status = mounter_->Unmount(layer.target, /*lazy=*/false);
  if (absl::IsFailedPrecondition(status)) mounter_->Unmount(layer.target, /*lazy=*/true).IgnoreError();
  reads_.allow(layer.digest);
  rmdir(layer.target.c_str());
  absl::MutexLock lock(&mutex_);
  entries_.erase(key);
}

void LayerMounts::Adopt(const MountedLayer& layer, fuse::Mode mode) {
  absl::MutexLock lock(&mutex_);
  Entry& entry = entries_[KeyOf(layer, mode)];
  entry.state = Entry::State::kMounted;
  entry.target = layer.target;
  ++entry.users;
}

}  // namespace lazyblob::daemon
