#pragma once

// The cached bytes of one layer: the sparse file `data`, with the addresses of the data area, and the map
// `presence` that says which chunks of it are there (docs/CONTENT_STORE.md fixes its bytes).
//
// The crash rule: what `presence` says of an earlier run is a claim. A claimed chunk is compared with its
// SHA-256 before this run uses it for the first time, so bits that reached the disk before their data, and
// bytes that rotted there, end as a miss. The mark "complete" is taken at its word, for it is written after
// the data was synced; a mount of the file itself, whose reads nobody compares any more, wants more than that
// where the run before did not end well: that all chunks were compared.
//
// Eviction: chunks go by segments, runs of the data area. A segment is taken only while nobody pins it, and
// never while anybody else has the file open, for that may be a file system mounted on it: a hole would be
// zeros there. In this order: the mark "complete" is removed and synced, the chunks are missing, the map says
// so, the hole is made. A crash in between leaves claims, which are verified.

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
#include "contentstore/internal/cache_budget.h"
#include "layer/layer_index.h"

namespace lazyblob::contentstore {

// Thread-safe. A chunk is missing, claimed or present; only present ones may be given out.
class ChunkCache : public std::enable_shared_from_this<ChunkCache> {
 public:
  // Opens the two files in `directory`, made or made anew where they are absent or belong to another index.
  // `verified`: this process itself wrote and verified what is there, so claims are present at once.
  static absl::StatusOr<std::shared_ptr<ChunkCache>> Open(std::shared_ptr<const layer::LayerIndex> index,
                                                          const std::string& directory, bool verified,
                                                          std::shared_ptr<CacheBudget> budget);
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
  absl::Status Verify(uint64_t chunk) ABSL_LOCKS_EXCLUDED(mutex_);
  // The same of a chunk that is present, too, as the disk has it where the kernel lets go of its pages; it
  // does not count as a use. NotFound: it is not cached.
  absl::Status Recheck(uint64_t chunk) ABSL_LOCKS_EXCLUDED(mutex_);
  // Reading chunks [first, end) of the file has failed: those that were present are claims from now on, and
  // the mark "complete" is gone.
  void Doubt(uint64_t first, uint64_t end) ABSL_LOCKS_EXCLUDED(mutex_);
  // Chunks that this process found wrong or unreadable.
  uint64_t rotten() const { return rotten_.load(std::memory_order_relaxed); }
  // Writes verified bytes. An error (ResourceExhausted: the budget has no room; also where the disk takes
  // bytes and does not give them) leaves the chunk as it was; the caller has the bytes still. Who tells
  // others that the chunk is present pins it from before until then.
  absl::Status Store(uint64_t chunk, absl::Span<const uint8_t> bytes, CacheRoom room)
      ABSL_LOCKS_EXCLUDED(evict_mutex_, mutex_);

  // Chunks [first, end), first < end, that are present, or come to be, stay while it lives; the cache
  // outlives it. Pinned first and tested for presence then, in this order.
  class Pin {
   public:
    // `use`: it counts as a use of them.
    Pin(ChunkCache& cache, uint64_t first, uint64_t end, bool use = true);
    ~Pin();
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;

   private:
    ChunkCache& cache_;
    const uint64_t first_;  // segments, both included
    const uint64_t last_;
  };
  // The same for all chunks.
  std::shared_ptr<const void> PinWhole() ABSL_LOCKS_EXCLUDED(evict_mutex_);
  // For mounts of the file itself; counted by the budget. FailedPrecondition: not complete, or not to be
  // trusted before all chunks were compared; ResourceExhausted: too much is held so. Neither when `mounted`
  // already.
  absl::StatusOr<std::shared_ptr<const void>> PinMounted(bool mounted) ABSL_LOCKS_EXCLUDED(evict_mutex_);
  bool mounted() const ABSL_LOCKS_EXCLUDED(evict_mutex_);
  // The run that left the claims ended well: what it marked complete may be mounted as it is.
  void Trust() { trusted_.store(true, std::memory_order_release); }

  uint64_t segments() const { return segments_.size(); }
  // CacheBudget::tick of the last use.
  uint64_t LastUse(uint64_t segment) const {
    return segments_[segment].last_use.load(std::memory_order_relaxed);
  }
  // Bytes the file has on the disk; 0 where the budget has no limit.
  uint64_t allocated() const { return allocated_.load(std::memory_order_relaxed); }
  // Makes the chunks that begin in the segment missing and gives their bytes back to the disk; how many that
  // were. 0: it may not be done now, or there are none.
  uint64_t Evict(uint64_t segment) ABSL_LOCKS_EXCLUDED(evict_mutex_, mutex_);

  // Makes everything stored so far durable, data before presence. When the disk fails to take the data, the
  // chunks concerned are missing again: nobody can say what of them is on the disk.
  absl::Status Sync();
  // All chunks must be present, and pinned. Syncs, then writes the mark.
  absl::Status MarkComplete();
  bool complete() const { return complete_.load(std::memory_order_acquire); }
  uint64_t cached_bytes() const { return cached_bytes_.load(std::memory_order_relaxed); }

 private:
  struct Segment {
    std::atomic<uint64_t> last_use{0};
    std::atomic<uint32_t> pins{0};
  };

  ChunkCache(std::shared_ptr<const layer::LayerIndex> index, base::UniqueFd data, base::UniqueFd presence,
             std::shared_ptr<CacheBudget> budget);
  absl::Status Load(bool verified) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status WriteWord(uint64_t word) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status SyncLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(sync_mutex_) ABSL_LOCKS_EXCLUDED(mutex_);
  void Forget(uint64_t chunk) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetMark() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether the file has the right bytes there; an error: it cannot be read.
  absl::StatusOr<bool> HasItsBytes(uint64_t chunk) const;
  // The same, but a disk that gives an error is asked once more.
  absl::StatusOr<bool> HasItsBytesAtLast(uint64_t chunk) const;
  // What HasItsBytes said of a chunk that was claimed, or `was_present`.
  absl::Status Settle(uint64_t chunk, const absl::StatusOr<bool>& right, bool was_present)
      ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t SegmentOf(uint64_t chunk) const { return index_->chunk(chunk).data_offset / segment_bytes_; }
  bool HasBytes(uint64_t first, uint64_t end) const;
  bool OpenElsewhere() const;
  absl::Status RemoveMark() ABSL_EXCLUSIVE_LOCKS_REQUIRED(evict_mutex_) ABSL_LOCKS_EXCLUDED(mutex_);
  bool MakeMissing(uint64_t segment, uint64_t first, uint64_t end) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Punch(uint64_t first, uint64_t end) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(evict_mutex_);
  void Recount() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<const layer::LayerIndex> index_;
  const base::UniqueFd data_;
  const base::UniqueFd presence_;
  const std::shared_ptr<CacheBudget> budget_;
  const uint64_t segment_bytes_;

  AtomicBitmap present_;  // verified in this run
  AtomicBitmap
      claimed_;  // of an earlier run, unverified; disjoint from present_ but for moments inside mutex_
  std::atomic<bool> complete_{false};
  // The file may say so although complete_ does not, until that is synced.
  std::atomic<bool> may_be_marked_{false};
  std::atomic<bool> trusted_{false};
  std::atomic<uint64_t> rotten_{0};
  std::atomic<bool> read_failed_{false};  // what is written is read again before it is relied on
  std::atomic<uint64_t> cached_bytes_{0};
  std::atomic<uint64_t> allocated_{0};
  std::vector<Segment> segments_;

  absl::Mutex sync_mutex_;  // one sync at a time; taken before mutex_
  // Held to evict; shared while a chunk is written. Taken before mutex_.
  mutable absl::Mutex evict_mutex_;
  int whole_pins_ ABSL_GUARDED_BY(evict_mutex_) = 0;
  int mounted_pins_ ABSL_GUARDED_BY(evict_mutex_) = 0;
  bool evictable_ ABSL_GUARDED_BY(evict_mutex_) = true;
  absl::Mutex mutex_;  // changes of the maps and of the file `presence`
  std::vector<uint64_t> unsynced_ ABSL_GUARDED_BY(mutex_);
  CacheBudget::Charge charge_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::contentstore
