#pragma once

// Open file handles. A handle's number is the kernel's id of the OPEN that made it, so an OPEN or RELEASE
// that the kernel sends again after a takeover changes nothing, and handles of different processes never
// collide.

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "base/digest.h"
#include "contentstore/content_store.h"

namespace lazyblob::fuse::internal {

// Thread-safe. What a handle holds keeps the layer (index, sources, data) alive until RELEASE.
class HandleTable {
 public:
  // Records the handle; does nothing when it is known.
  void Open(uint64_t handle, std::shared_ptr<contentstore::LazyLayer> layer) ABSL_LOCKS_EXCLUDED(mutex_);
  // Forgets it; unknown handles (released twice, or opened at a predecessor and never used here) are ignored.
  void Close(uint64_t handle) ABSL_LOCKS_EXCLUDED(mutex_);
  // Null when unknown.
  std::shared_ptr<contentstore::LazyLayer> Find(uint64_t handle) const ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t Count(const base::Digest& layer) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Handle {
    std::shared_ptr<contentstore::LazyLayer> layer;
    std::shared_ptr<const layer::LayerIndex> index;
    base::Digest digest;
  };
  mutable absl::Mutex mutex_;
  absl::flat_hash_map<uint64_t, Handle> handles_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<base::Digest, uint64_t> counts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::fuse::internal
