#pragma once

// A door that threads wait at until a test opens it: how tests hold a fetch open, look around, and let it go
// on, without sleeping. Thread-safe. No wait is for ever: every one ends after `kPatience` at the latest.

#include <cstddef>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace lazyblob::support {

// Far longer than anything on a loopback takes, shorter than the time limit of a test.
inline constexpr absl::Duration kPatience = absl::Seconds(60);

class Gate {
 public:
  Gate() = default;
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  // Waits for the gate to be open or for a ticket of LetThrough. False: gave up after kPatience.
  bool Pass() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    ++arrived_;
    ++waiting_;
    auto may_go = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return open_ || tickets_ > 0; };
    const bool passed = mutex_.AwaitWithTimeout(absl::Condition(&may_go), kPatience);
    --waiting_;
    if (passed && !open_) --tickets_;
    return passed;
  }

  // Everybody passes, now and later.
  void Open() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    open_ = true;
  }
  // Whoever comes now waits again.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    open_ = false;
    tickets_ = 0;
  }
  // The next `count` threads pass; the others wait on.
  void LetThrough(size_t count) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    tickets_ += count;
  }

  // Waits until `count` threads wait at the gate. False: gave up after kPatience.
  bool AwaitWaiting(size_t count) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return waiting_ >= count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&enough), kPatience);
  }
  size_t waiting() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return waiting_;
  }
  // How many ever came to the gate.
  size_t arrived() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return arrived_;
  }

 private:
  mutable absl::Mutex mutex_;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
  size_t tickets_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t arrived_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace lazyblob::support
