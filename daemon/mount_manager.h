#pragma once

// Standalone mounts: an image's merged root at a directory, from resolving the reference to the overlay and
// back.

#include <functional>
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
#include "daemon/image_resolver.h"
#include "daemon/layer_mounts.h"
#include "daemon/living_requesters.h"
#include "daemon/mount_table.h"
#include "daemon/plain_http_hosts.h"
#include "fuse/mounter.h"
#include "registry/client.h"

namespace lazyblob::daemon {

// An image and how to reach it, as a client asks for it.
struct ImageRequest {
  std::string reference;
  std::string platform;  // empty: the host's
  bool plain_http = false;
  std::string docker_config;  // path; empty: anonymous
};

// Bytes of one layer's blob received so far; called from several threads.
using LayerProgress = std::function<void(const oci::Descriptor& layer, uint64_t received)>;

// Thread-safe.
class MountManager {
 public:
  struct Parts {
    std::string root;  // state root
    registry::Client* client = nullptr;
    contentstore::ContentStore* store = nullptr;
    fuse::Mounter* mounter = nullptr;
    LayerMounts::ReadGate reads;  // of the FUSE server
    LivingRequesters* requesters = nullptr;
    PlainHttpHosts* plain_http = nullptr;
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
  // Cache files of the layers that are mounted without FUSE.
  std::vector<std::string> DirectFiles() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Layers = std::vector<std::shared_ptr<contentstore::LazyLayer>>;
  struct Requester;

  absl::StatusOr<ResolvedImage> Resolve(const ImageRequest& request, const registry::CallContext& context);
  // Makes every layer of the image known and indexed, concurrently.
  absl::StatusOr<Layers> PrepareLayers(const ResolvedImage& image, bool keep_data,
                                       const contentstore::FetchContext& context,
                                       const LayerProgress& progress);
  // The metadata image of layer `i` of the chain: its own, or one with the attributes of the layers below.
  absl::StatusOr<std::string> MetadataPath(const Layers& layers, size_t i) ABSL_LOCKS_EXCLUDED(chain_mutex_);
  absl::Status MountLayers(const Layers& layers, bool direct, MountedImage* image);
  absl::Status MountRoot(const Layers& layers, const MountedImage& image);
  void ReleaseLayers(const MountedImage& image);
  // Takes the image at `directory` out of the table and its credentials back; a failure to save is only told.
  void Forget(const std::string& directory) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<fuse::ProbeResult> Probe() ABSL_LOCKS_EXCLUDED(probe_mutex_);
  absl::Status Save() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void LendCredentials(const MountedImage& image) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Parts parts_;
  LayerMounts layer_mounts_;

  absl::Mutex probe_mutex_;
  std::optional<fuse::ProbeResult> probe_ ABSL_GUARDED_BY(probe_mutex_);

  absl::Mutex chain_mutex_;  // one chain image is made at a time; nothing else is locked under it

  mutable absl::Mutex mutex_;
  std::vector<MountedImage> mounts_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, uint64_t> lent_ ABSL_GUARDED_BY(mutex_);  // directory -> number in parts_.requesters
  std::set<std::string> in_progress_ ABSL_GUARDED_BY(mutex_);     // directories being mounted or unmounted
};

}  // namespace lazyblob::daemon
