#pragma once

// Who may send to a host now. Each host has a number of slots, each good for one chunk (or one body that
// cannot be cut), and a lane of its own for small bodies. Image chunks go first, strictly: a cache chunk
// starts only while no image transfer of that host has bytes to send; what has started is finished. While one
// of another host has, cache chunks get one slot: the link may be the same, or another. Of equal
// ones, the largest is never kept waiting by others: these take no more slots than they need to end with it,
// in turn. A slot is held while bytes flow, never while a source is waited for. Thread-safe.

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/cancel.h"

namespace lazyblob::exporter {

// Image bytes go first, strictly, at chunk granularity; cache bytes use what is left.
enum class Priority : uint8_t { kImage, kCache };

struct HostGateOptions {
  int slots = 4;                    // per host
  uint64_t small_bytes = 64 << 10;  // bodies up to this have a lane of their own beside the slots
  // A cache chunk that has waited this long goes nevertheless, one at a time: sessions are kept alive.
  absl::Duration patience = absl::Seconds(20);
};

class HostGate {
 private:
  struct Host;

 public:
  explicit HostGate(HostGateOptions options = HostGateOptions());
  ~HostGate();  // all transfers have ended
  HostGate(const HostGate&) = delete;
  HostGate& operator=(const HostGate&) = delete;

  // One upload to one host, from its first byte to its last. Belongs to one thread, but for SetPriority.
  class Transfer {
   public:
    ~Transfer();  // gives a slot it still has back
    Transfer(const Transfer&) = delete;
    Transfer& operator=(const Transfer&) = delete;

    // Waits for a slot for a body of `bytes`. Cancelled. Not again before Release. `left`: what is still to
    // be sent, with these; 0: not known.
    absl::Status Acquire(uint64_t bytes, base::CancelToken* cancel, uint64_t left = 0);
    // The chunk is sent. `more`: the next one is at hand, so lower priorities do not start now.
    void Release(bool more);
    // The next bytes have to be waited for: others may go on. As Release(false) where a slot is held.
    void Starve() { Release(false); }
    // As Acquire, but at once: a body that is open cannot wait.
    void Resume();
    void SetPriority(Priority priority);
    Priority priority() const;

   private:
    friend class HostGate;
    Transfer(HostGate* gate, Host* host, Priority priority)
        : gate_(*gate), host_(*host), priority_(priority) {}
    void ReleaseLocked(bool more) ABSL_EXCLUSIVE_LOCKS_REQUIRED(gate_.mutex_);
    void SignalLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(gate_.mutex_);

    HostGate& gate_;
    Host& host_;
    Priority priority_ ABSL_GUARDED_BY(gate_.mutex_);
    bool ready_ ABSL_GUARDED_BY(gate_.mutex_) = false;  // has bytes to send, or sends them
    bool holds_ ABSL_GUARDED_BY(gate_.mutex_) = false;
    bool small_ ABSL_GUARDED_BY(gate_.mutex_) = false;   // holds the small lane, not a slot
    uint64_t ticket_ ABSL_GUARDED_BY(gate_.mutex_) = 0;  // 0: does not wait
    uint64_t left_ ABSL_GUARDED_BY(gate_.mutex_) = 0;
    absl::Duration since_ ABSL_GUARDED_BY(gate_.mutex_);
  };
  std::unique_ptr<Transfer> Begin(const std::string& host, Priority priority) ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether an image transfer to the host is under way: then cache bodies had better be short.
  bool HasImageTransfers(const std::string& host) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  bool MayGo(const Transfer& transfer, uint64_t bytes, bool* small) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsItsTurn(const Transfer& transfer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether another host's image bytes are ready.
  bool ImageElsewhere(const Host& host) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool ImpatientLocked(const Transfer& transfer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const HostGateOptions options_;
  absl::Mutex mutex_;
  uint64_t next_ticket_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<std::string, std::unique_ptr<Host>> hosts_ ABSL_GUARDED_BY(mutex_);
};

// How many bytes all uploads together may keep in memory. Cache uploads get at most half of it, so that they
// cannot keep image uploads from beginning. Thread-safe.
class MemoryBudget {
 public:
  explicit MemoryBudget(uint64_t bytes) : limit_(bytes) {}

  class Hold {
   public:
    Hold() = default;
    Hold(MemoryBudget* budget, uint64_t bytes, Priority priority)
        : budget_(budget), bytes_(bytes), priority_(priority) {}
    ~Hold() { Reset(); }
    Hold(Hold&& other) noexcept { *this = std::move(other); }
    Hold& operator=(Hold&& other) noexcept;
    void Reset();
    bool empty() const { return budget_ == nullptr; }

   private:
    MemoryBudget* budget_ = nullptr;
    uint64_t bytes_ = 0;
    Priority priority_ = Priority::kImage;
  };
  // At once, or an empty one.
  Hold TryAcquire(uint64_t bytes, Priority priority) ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits. A request that is larger than what there is gets it when nobody else of its kind has any.
  absl::StatusOr<Hold> Acquire(uint64_t bytes, Priority priority, base::CancelToken* cancel)
      ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t peak() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  bool Fits(uint64_t bytes, Priority priority) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Hold Take(uint64_t bytes, Priority priority) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const uint64_t limit_;
  mutable absl::Mutex mutex_;
  uint64_t used_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t used_by_cache_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t peak_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace lazyblob::exporter
