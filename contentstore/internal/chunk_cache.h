#pragma once

// The cached bytes of one layer: the sparse file `data`, with the addresses of the data area, and the map
// `presence` that says which chunks of it are there (docs/CONTENT_STORE.md fixes its bytes).
//
// The crash rule: what `presence` says of an earlier run is a claim. A claimed chunk is compared with its
// SHA-256 before this run uses it for the first time, so bits that reached the disk before their data, and
// bytes that rotted there, end as a miss. Only the mark "complete" is taken at its word: it is written after
// the data was synced.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "contentstore/internal/bitmap.h"
#include "layer/layer_index.h"

namespace lazyblob::contentstore {

// Thread-safe. A chunk is missing, claimed or present; only present ones may be given out.
class ChunkCache {
 public:
  // Opens the two files in `directory`, made or made anew where they are absent or belong to another index.
  // `verified`: this process itself wrote and verified what is there, so claims are present at once.
  static absl::StatusOr<std::shared_ptr<ChunkCache>> Open(std::shared_ptr<const layer::LayerIndex> index,
                                                          const std::string& directory, bool verified);
  // Makes a `data` file that was just written whole into a complete cache: sized, synced, then marked.
  static absl::Status Seal(const layer::LayerIndex& index, const std::string& directory);
  // Takes both files away.
  static absl::Status Discard(const std::string& directory);

  int fd() const { return data_.get(); }
  bool Present(uint64_t chunk) const { return present_.Test(chunk); }
  bool Claimed(uint64_t chunk) const { return claimed_.Test(chunk); }
  bool Missing(uint64_t chunk) const { return !Present(chunk) && !Claimed(chunk); }
  bool AllPresent(uint64_t first, uint64_t end) const { return present_.AllSet(first, end); }
  // The first chunk of [first, end) that is not present; `end` if all are.
  uint64_t FindNotPresent(uint64_t first, uint64_t end) const { return present_.FindUnset(first, end); }

  // Compares a claimed chunk with its SHA-256: present when right; DataLoss, and missing, when not.
  absl::Status Verify(uint64_t chunk);
  // Writes verified bytes. An error leaves the chunk as it was; the caller has the bytes still.
  absl::Status Store(uint64_t chunk, absl::Span<const uint8_t> bytes);

  // Makes everything stored so far durable, data before presence. When the disk fails to take the data, the
  // chunks concerned are missing again: nobody can say what of them is on the disk.
  absl::Status Sync();
  // All chunks must be present. Syncs, then writes the mark.
  absl::Status MarkComplete();
  bool complete() const { return complete_.load(std::memory_order_acquire); }
  uint64_t cached_bytes() const { return cached_bytes_.load(std::memory_order_relaxed); }

 private:
  ChunkCache(std::shared_ptr<const layer::LayerIndex> index, base::UniqueFd data, base::UniqueFd presence);
  absl::Status Load(bool verified) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status WriteWord(uint64_t word) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status SyncLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(sync_mutex_) ABSL_LOCKS_EXCLUDED(mutex_);
  void Forget(uint64_t chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<const layer::LayerIndex> index_;
  const base::UniqueFd data_;
  const base::UniqueFd presence_;

  AtomicBitmap present_;  // verified in this run
  AtomicBitmap
      claimed_;  // of an earlier run, unverified; disjoint from present_ but for moments inside mutex_
  std::atomic<bool> complete_{false};
  std::atomic<uint64_t> cached_bytes_{0};

  absl::Mutex sync_mutex_;  // one sync at a time; taken before mutex_
  absl::Mutex mutex_;       // changes of the maps and of the file `presence`
  std::vector<uint64_t> unsynced_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::contentstore
