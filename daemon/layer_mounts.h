#pragma once

// Layers as they are mounted below the state root, shared by all that hold them: counted, mounted on first
// use and unmounted with the last. The same for id-mapped views of directories.
//
// A mount point's name is a function of what is mounted there, "<layer id>[.<chain number>]<mode letter>[d]"
// (d: on its cache file) or, for a view, "i" and a hash; so a successor finds what its predecessor had
// mounted, and names stay short enough for a hundred of them in one overlay.

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/digest.h"
#include "fuse/mounter.h"

namespace lazyblob::daemon {

// A layer as it is to be mounted.
struct WantedLayer {
  base::Digest digest;
  uint32_t id = 0;        // contentstore::LazyLayer::id
  std::string meta_path;  // the layer's EROFS image, or one made for its chain
  std::string data_path;  // the cache file, to be mounted on it without FUSE; else empty
  fuse::Mode mode = fuse::Mode::kErofs;
  std::shared_ptr<const void> pin;  // held while it is mounted: the layer, so that its files stay
};

// Thread-safe. Two callers that want the same thing wait for one mount.
class LayerMounts {
 public:
  // Ends a layer's outstanding reads, or allows reads again.
  struct ReadGate {
    std::function<void(const base::Digest&)> fail;
    std::function<void(const base::Digest&)> allow;
  };
  // `directory` holds the mount points. `mounter` outlives it.
  LayerMounts(std::string directory, fuse::Mounter* mounter, ReadGate reads);

  // What a predecessor has left mounted: taken over by whoever asks for the same, until UnmountInherited
  // takes down the rest and removes mount points that nobody uses.
  void Inherit(const std::set<std::string>& mounted) ABSL_LOCKS_EXCLUDED(mutex_);
  void UnmountInherited() ABSL_LOCKS_EXCLUDED(mutex_);

  // Mounts, or counts one more user of what is mounted; returns where.
  absl::StatusOr<std::string> Acquire(const WantedLayer& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  // Counts one more user of what is mounted at `target` as `layer`, inherited or not; false: nothing is.
  bool Adopt(const std::string& target, const WantedLayer& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  // One user less; the last one ends the layer's outstanding reads, unless the layer is mounted in another
  // way too, and unmounts it.
  void Release(const std::string& target) ABSL_LOCKS_EXCLUDED(mutex_);

  // A view of the directory `source` with ids mapped, counted in the same way.
  absl::StatusOr<std::string> AcquireView(const std::string& source, const fuse::IdMapping& mapping)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void ReleaseView(const std::string& source, const fuse::IdMapping& mapping) ABSL_LOCKS_EXCLUDED(mutex_);

  bool Mounted(const std::string& target) const ABSL_LOCKS_EXCLUDED(mutex_);
  // The layers that are mounted now, in whatever way.
  std::set<base::Digest> Layers() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Cache files of the layers that are mounted without FUSE.
  std::vector<std::string> DirectFiles() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Entry {
    enum class State { kMounting, kMounted, kUnmounting } state = State::kMounting;
    int users = 0;
    base::Digest digest;  // empty: a view
    std::string data_path;
    std::shared_ptr<const void> pin;
  };

  std::string TargetOf(const WantedLayer& layer) const;
  std::string ViewOf(const std::string& source, const fuse::IdMapping& mapping) const;
  // True when somebody, or a predecessor, has mounted `target`, which is counted then; else it is the
  // caller's to mount, and to end with Settle.
  bool Join(const std::string& target, const Entry& as) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Settle(const std::string& target, const absl::Status& mounted) ABSL_LOCKS_EXCLUDED(mutex_);
  void Unmount(const std::string& target);

  const std::string directory_;
  fuse::Mounter* const mounter_;
  const ReadGate reads_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);  // by target
  std::set<std::string> inherited_ ABSL_GUARDED_BY(mutex_);
  // Layers whose reads are being ended: not to be mounted meanwhile.
  std::set<base::Digest> failing_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::daemon
