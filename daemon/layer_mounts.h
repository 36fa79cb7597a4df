#pragma once

// Layers as they are mounted below the state root, shared by all images that hold them: counted, mounted on
// first use and unmounted with the last.

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "daemon/mount_table.h"
#include "fuse/mounter.h"

namespace lazyblob::daemon {

// Thread-safe. Two callers that want the same layer wait for one mount.
class LayerMounts {
 public:
  // Ends a layer's outstanding reads, or allows reads again.
  struct ReadGate {
    std::function<void(const base::Digest&)> fail;
    std::function<void(const base::Digest&)> allow;
  };
  // `directory` holds the mount points (short names, so that many fit into one overlay). `mounter` outlives
  // it.
  LayerMounts(std::string directory, fuse::Mounter* mounter, ReadGate reads);

  // Mounts, or counts one more user of what is mounted. `layer.target` is ignored on the way in.
  absl::StatusOr<MountedLayer> Acquire(MountedLayer layer, const std::string& data_path, fuse::Mode mode)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // One user less; the last one ends the layer's outstanding reads and unmounts it.
  void Release(const MountedLayer& layer, fuse::Mode mode) ABSL_LOCKS_EXCLUDED(mutex_);
  // Counts a user of a mount that a predecessor made.
  void Adopt(const MountedLayer& layer, fuse::Mode mode) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Entry {
    enum class State { kMounting, kMounted, kUnmounting } state = State::kMounting;
    int users = 0;
    std::string target;
  };
  using Key = std::tuple<base::Digest, std::string, fuse::Mode, bool>;
  static Key KeyOf(const MountedLayer& layer, fuse::Mode mode);

  absl::Status Mount(const MountedLayer& layer, const std::string& data_path, fuse::Mode mode);

  const std::string directory_;
  fuse::Mounter* const mounter_;
  const ReadGate reads_;
  absl::Mutex mutex_;
  uint64_t next_target_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<Key, Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::daemon
