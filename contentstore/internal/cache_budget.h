#pragma once

// How much of the disk a store may fill, and what gives way when more is wanted. One count holds the chunks
// of all layers, the data of layers being streamed, kept blobs and spools; indexes and metadata images are
// not in it. What gives way first are kept blobs, then the chunks not used for longest, whichever layer they
// are of.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"

namespace lazyblob::contentstore {

class ChunkCache;

struct CacheLimits {
  uint64_t max_bytes = 0;   // 0: no limit
  uint64_t min_free = 0;    // what the file system shall have left; 0: not looked at
  uint64_t max_pinned = 0;  // of layers held whole; 0: no limit
  std::function<absl::StatusOr<uint64_t>()> free_bytes;  // needed where there is min_free
  const base::Clock* clock = &base::SystemClock();
};

// Where the room for what comes is from.
enum class CacheRoom {
  kEvicting,  // others give way
  kFree,      // nobody does
};

// Thread-safe. Shared by the store and the layers that outlive it.
class CacheBudget {
 public:
  // Bytes on the disk, or on their way there, counted while it lives. Not thread-safe.
  class Charge {
   public:
    Charge() = default;
    explicit Charge(std::shared_ptr<CacheBudget> budget) : budget_(std::move(budget)) {}
    ~Charge() { Set(0); }
    Charge(Charge&& other) noexcept
        : budget_(std::move(other.budget_)), bytes_(std::exchange(other.bytes_, 0)) {}
    Charge& operator=(Charge&& other) noexcept;

    // Counts `bytes` more. ResourceExhausted: there is no such room for them.
    absl::Status Grow(uint64_t bytes, CacheRoom room = CacheRoom::kEvicting);
    // Counts what is there, whatever the limit.
    void Set(uint64_t bytes);
    uint64_t bytes() const { return bytes_; }

   private:
    std::shared_ptr<CacheBudget> budget_;  // null: counted nowhere
    uint64_t bytes_ = 0;
  };

  explicit CacheBudget(CacheLimits limits) : limits_(std::move(limits)) {}

  bool limited() const { return limits_.max_bytes != 0 || limits_.min_free != 0; }
  uint64_t used() const { return used_.load(std::memory_order_relaxed); }
  // Chunks are evicted in runs of about so much of the data area.
  uint64_t segment_bytes() const;
  // Whether there is room for so much more without anything giving way.
  bool Fits(uint64_t bytes);
  // Counts what is stored: the clock by which chunks grow old.
  uint64_t tick() const { return tick_.load(std::memory_order_relaxed); }

  // From now on chunks of the cache may give way.
  void Add(std::weak_ptr<ChunkCache> cache) ABSL_LOCKS_EXCLUDED(mutex_);
  // Drops a kept blob that nobody reads; false: there is none. Called with nothing of the caller's locked.
  void SetBlobDropper(std::function<bool()> drop) ABSL_LOCKS_EXCLUDED(evict_mutex_);
  // Looks at the disk and evicts what is above the limit.
  void Tend() ABSL_LOCKS_EXCLUDED(evict_mutex_);

  // Counts bytes that may not give way; ResourceExhausted above max_pinned, unless `always`.
  absl::Status TakePinned(uint64_t bytes, bool always);
  void ReleasePinned(uint64_t bytes) { pinned_.fetch_sub(bytes, std::memory_order_relaxed); }

 private:
  struct Candidate {
    uint64_t last_use;
    size_t cache;  // in listed_
    uint64_t segment;
  };

  absl::Status MakeRoom(uint64_t bytes, CacheRoom room) ABSL_LOCKS_EXCLUDED(evict_mutex_);
  bool TryTake(uint64_t bytes);
  uint64_t Limit() const;
  void LookAtDisk(bool now);
  bool EvictSome() ABSL_EXCLUSIVE_LOCKS_REQUIRED(evict_mutex_);
  void List() ABSL_EXCLUSIVE_LOCKS_REQUIRED(evict_mutex_) ABSL_LOCKS_EXCLUDED(mutex_);

  const CacheLimits limits_;
  std::atomic<uint64_t> used_{0};
  std::atomic<uint64_t> pinned_{0};
  std::atomic<uint64_t> tick_{1};
  std::atomic<uint64_t> disk_limit_{UINT64_MAX};  // what min_free leaves, when last looked at
  std::atomic<int64_t> next_look_{INT64_MIN};     // nanoseconds, monotonic

  // One thread evicts; the others wait for the room it makes. ChunkCache's locks and those of the dropper are
  // taken under it.
  absl::Mutex evict_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);
  std::function<bool()> drop_blob_ ABSL_GUARDED_BY(evict_mutex_);
  // What there was when last listed, oldest first, consumed from next_ on.
  std::vector<std::weak_ptr<ChunkCache>> listed_ ABSL_GUARDED_BY(evict_mutex_);
  std::vector<Candidate> candidates_ ABSL_GUARDED_BY(evict_mutex_);
  size_t next_ ABSL_GUARDED_BY(evict_mutex_) = 0;

  absl::Mutex mutex_;  // a leaf
  std::vector<std::weak_ptr<ChunkCache>> caches_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::contentstore
