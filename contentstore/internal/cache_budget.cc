#include "contentstore/internal/cache_budget.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "contentstore/internal/chunk_cache.h"

namespace lazyblob::contentstore {
namespace {

constexpr uint64_t kMaxSegmentBytes = 1 << 20;
constexpr uint64_t kMinSegmentBytes = 4096;
constexpr uint64_t kSegmentsPerLimit = 256;
// Free space is somebody else's too: it is looked at once in a while, and what it leaves is a limit
// meanwhile.
constexpr absl::Duration kLookInterval = absl::Seconds(5);

}  // namespace

CacheBudget::Charge& CacheBudget::Charge::operator=(Charge&& other) noexcept {
  if (this == &other) return *this;
  Set(0);
  budget_ = std::move(other.budget_);
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

absl::Status CacheBudget::Charge::Grow(uint64_t bytes, CacheRoom room) {
  if (budget_ == nullptr) return absl::OkStatus();
  RETURN_IF_ERROR(budget_->MakeRoom(bytes, room));
  bytes_ += bytes;
  return absl::OkStatus();
}

void CacheBudget::Charge::Set(uint64_t bytes) {
  if (budget_ == nullptr || bytes == bytes_) return;
  if (bytes > bytes_) {
    budget_->used_.fetch_add(bytes - bytes_, std::memory_order_relaxed);
  } else {
    budget_->used_.fetch_sub(bytes_ - bytes, std::memory_order_relaxed);
  }
  bytes_ = bytes;
}

uint64_t CacheBudget::segment_bytes() const {
  if (limits_.max_bytes == 0) return kMaxSegmentBytes;
  return std::clamp(limits_.max_bytes / kSegmentsPerLimit, kMinSegmentBytes, kMaxSegmentBytes);
}

void CacheBudget::Add(std::weak_ptr<ChunkCache> cache) {
  absl::MutexLock lock(&mutex_);
  caches_.erase(std::remove_if(caches_.begin(), caches_.end(), [](const auto& one) { return one.expired(); }),
                caches_.end());
  caches_.push_back(std::move(cache));
}

void CacheBudget::SetBlobDropper(std::function<bool()> drop) {
  absl::MutexLock lock(&evict_mutex_);
  drop_blob_ = std::move(drop);
}

uint64_t CacheBudget::Limit() const {
  const uint64_t most = limits_.max_bytes == 0 ? UINT64_MAX : limits_.max_bytes;
  return std::min(most, disk_limit_.load(std::memory_order_relaxed));
}

void CacheBudget::LookAtDisk(bool now) {
  if (limits_.min_free == 0) return;
  const int64_t time = absl::ToInt64Nanoseconds(limits_.clock->Monotonic());
  int64_t next = next_look_.load(std::memory_order_relaxed);
  if (!now && time < next) return;
  const int64_t after = time + absl::ToInt64Nanoseconds(kLookInterval);
  if (!next_look_.compare_exchange_strong(next, after)) return;  // another thread looks
  const absl::StatusOr<uint64_t> free = limits_.free_bytes();
  if (!free.ok()) return;  // what was seen last goes on to hold
  const uint64_t used = this->used();
  if (*free >= limits_.min_free) {
    const uint64_t spare = *free - limits_.min_free;
    disk_limit_.store(spare > UINT64_MAX - used ? UINT64_MAX : used + spare, std::memory_order_relaxed);
  } else {
    const uint64_t lacking = limits_.min_free - *free;
    disk_limit_.store(used - std::min(used, lacking), std::memory_order_relaxed);
  }
}

bool CacheBudget::TryTake(uint64_t bytes) {
  const uint64_t limit = Limit();
  uint64_t used = used_.load(std::memory_order_relaxed);
  do {
    if (used > limit || bytes > limit - used) return false;
  } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
  return true;
}

bool CacheBudget::Fits(uint64_t bytes) {
  LookAtDisk(false);
  const uint64_t limit = Limit();
  const uint64_t used = this->used();
  return used <= limit && bytes <= limit - used;
}

absl::Status CacheBudget::MakeRoom(uint64_t bytes, CacheRoom room) {
  tick_.fetch_add(1, std::memory_order_relaxed);
  LookAtDisk(false);
  if (TryTake(bytes)) return absl::OkStatus();
  if (room == CacheRoom::kFree) {
    return absl::ResourceExhaustedError(absl::StrCat("the cache has no room for ", bytes, " bytes more"));
  }
  absl::MutexLock lock(&evict_mutex_);
  while (!TryTake(bytes)) {
    if (bytes <= Limit() && EvictSome()) continue;
    const bool disk = Limit() != limits_.max_bytes;
    return absl::ResourceExhaustedError(absl::StrCat(
        "the cache is at its limit of ", Limit(), " bytes",
        disk ? ", which cache.min_free leaves," : " (cache.max_bytes)", " and all that is in it is in use"));
  }
  return absl::OkStatus();
}

void CacheBudget::Tend() {
  if (!limited()) return;
  LookAtDisk(true);
  absl::MutexLock lock(&evict_mutex_);
  while (used() > Limit() && EvictSome()) continue;
}

bool CacheBudget::EvictSome() {
  if (drop_blob_ != nullptr && drop_blob_()) return true;
  for (bool fresh : {false, true}) {
    if (fresh) List();
    while (next_ < candidates_.size()) {
      const Candidate& oldest = candidates_[next_++];
      const std::shared_ptr<ChunkCache> cache = listed_[oldest.cache].lock();
      if (cache == nullptr) continue;
      if (!fresh && cache->LastUse(oldest.segment) != oldest.last_use) continue;
      if (cache->Evict(oldest.segment) > 0) return true;
    }
  }
  return false;
}

void CacheBudget::List() {
  candidates_.clear();
  next_ = 0;
  {
    absl::MutexLock lock(&mutex_);
    listed_ = caches_;
  }
  for (size_t i = 0; i < listed_.size(); ++i) {
    const std::shared_ptr<ChunkCache> cache = listed_[i].lock();
    if (cache == nullptr || cache->allocated() == 0) continue;
    for (uint64_t segment = 0; segment < cache->segments(); ++segment) {
      candidates_.push_back({cache->LastUse(segment), i, segment});
    }
  }
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return std::tie(a.last_use, a.cache, a.segment) < std::tie(b.last_use, b.cache, b.segment);
  });
}

absl::Status CacheBudget::TakePinned(uint64_t bytes, bool always) {
  uint64_t pinned = pinned_.load(std::memory_order_relaxed);
  do {
    const bool fits =
        limits_.max_pinned == 0 || (pinned <= limits_.max_pinned && bytes <= limits_.max_pinned - pinned);
    if (!fits && !always) {
      return absl::ResourceExhaustedError(absl::StrCat("layers of ", pinned, " bytes are held whole, ", bytes,
                                                       " more would be above cache.pinned_max"));
    }
  } while (!pinned_.compare_exchange_weak(pinned, pinned + bytes, std::memory_order_relaxed));
  return absl::OkStatus();
}

}  // namespace lazyblob::contentstore
