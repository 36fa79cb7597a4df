#include "fuse/internal/handle_table.h"

#include <utility>

namespace lazyblob::fuse::internal {

void HandleTable::Open(uint64_t handle, std::shared_ptr<contentstore::LazyLayer> layer) {
  Handle entry{layer, layer->index(), layer->descriptor().digest};
  absl::MutexLock lock(&mutex_);
  auto [it, inserted] = handles_.try_emplace(handle, std::move(entry));
  if (inserted) ++counts_[it->second.digest];
}

void HandleTable::Close(uint64_t handle) {
  Handle closed;  // its destructor may be the layer's: outside the lock
  absl::MutexLock lock(&mutex_);
  auto it = handles_.find(handle);
  if (it == handles_.end()) return;
  closed = std::move(it->second);
  handles_.erase(it);
  auto count = counts_.find(closed.digest);
  if (--count->second == 0) counts_.erase(count);
}

std::shared_ptr<contentstore::LazyLayer> HandleTable::Find(uint64_t handle) const {
  absl::ReaderMutexLock lock(&mutex_);
  auto it = handles_.find(handle);
  return it == handles_.end() ? nullptr : it->second.layer;
}

uint64_t HandleTable::Count(const base::Digest& layer) const {
  absl::ReaderMutexLock lock(&mutex_);
  auto it = counts_.find(layer);
  return it == counts_.end() ? 0 : it->second;
}

}  // namespace lazyblob::fuse::internal
