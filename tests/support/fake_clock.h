#pragma once

// A clock that stands still until a test moves it. Thread-safe.

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"

namespace lazyblob::support {

class FakeClock final : public base::Clock {
 public:
  // Monotonic time starts away from zero, so that "never" and "at the start" differ.
  explicit FakeClock(absl::Duration monotonic = absl::Hours(1),
                     absl::Time wall = absl::FromUnixSeconds(1'700'000'000))
      : monotonic_(monotonic), wall_(wall) {}

  absl::Duration Monotonic() const override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return monotonic_;
  }
  absl::Time WallTime() const override ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return wall_;
  }

  // Both clocks go on by `step` (>= 0).
  void Advance(absl::Duration step) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    monotonic_ += step;
    wall_ += step;
  }
  // Wall time jumps, as an administrator or NTP makes it; monotonic time does not.
  void SetWallTime(absl::Time wall) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    wall_ = wall;
  }

 private:
  mutable absl::Mutex mutex_;
  absl::Duration monotonic_ ABSL_GUARDED_BY(mutex_);
  absl::Time wall_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::support
