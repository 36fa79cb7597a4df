#pragma once

// Standalone mounts: an image's merged root at a directory, from resolving the reference to the overlay and
// back.

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/cancel.h"
#include "contentstore/content_store.h"
#include "daemon/image_layers.h"
#include "daemon/living_requesters.h"
#include "daemon/mount_table.h"
#include "fuse/mounter.h"

namespace lazyblob::daemon {

// Thread-safe.
class MountManager {
 public:
  struct Parts {
    ImageLayers* layers = nullptr;
    fuse::Mounter* mounter = nullptr;
    LivingRequesters* requesters = nullptr;
  };
  explicit MountManager(Parts parts);
  MountManager(const MountManager&) = delete;

  // Takes over the mounts of a predecessor: those of its record that are among `mounted`, what the keeper
  // holds.
  absl::Status Restore(const std::set<std::string>& mounted) ABSL_LOCKS_EXCLUDED(mutex_);

  // Mounts at `directory` (absolute, existing, empty, not a mount point). On error nothing stays mounted.
  absl::StatusOr<MountedImage> Mount(const ImageRequest& request, const std::string& directory,
                                     const std::string& mode, std::shared_ptr<base::CancelToken> cancel,
                                     const LayerProgress& progress) ABSL_LOCKS_EXCLUDED(mutex_);
  // NotFound: not one of ours. FailedPrecondition: in use.
  absl::Status Unmount(const std::string& directory) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends everything, lazily where busy.
  void UnmountAll() ABSL_LOCKS_EXCLUDED(mutex_);

  // Builds the indexes of an image's layers, keeps no data; returns the image's layers (not mounted).
  absl::StatusOr<MountedImage> Index(const ImageRequest& request, std::shared_ptr<base::CancelToken> cancel,
                                     const LayerProgress& progress);

  std::vector<MountedImage> List() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Layers = std::vector<LazyLayerPtr>;

  absl::Status MountLayers(const Layers& layers, MountedImage* image);
  absl::Status MountRoot(const Layers& layers, const MountedImage& image);
  void ReleaseLayers(const MountedImage& image);
  // Takes the image at `directory` out of the table and its credentials back; a failure to save is only told.
  void Forget(const std::string& directory) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Save() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LendCredentials(const MountedImage& image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Parts parts_;

  mutable absl::Mutex mutex_;
  std::vector<MountedImage> mounts_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> lent_ ABSL_GUARDED_BY(mutex_);  // directory -> number in parts_.requesters
  std::set<std::string> in_progress_ ABSL_GUARDED_BY(mutex_);     // directories being mounted or unmounted
};

}  // namespace lazyblob::daemon
