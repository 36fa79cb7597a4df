#pragma once

// The time seam. Deadlines and timeouts are kept on the monotonic clock only; wall time is for people.
// Production uses SystemClock(); tests use tests/support/fake_clock.h.

#include <ctime>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace lazyblob::base {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // CLOCK_MONOTONIC as time since an arbitrary start; never goes back.
  virtual absl::Duration Monotonic() const = 0;
  virtual absl::Time WallTime() const = 0;
};

inline const Clock& SystemClock() {
  class System final : public Clock {
   public:
    absl::Duration Monotonic() const override {
      timespec now{};
      clock_gettime(CLOCK_MONOTONIC, &now);
      return absl::DurationFromTimespec(now);
    }
    absl::Time WallTime() const override { return absl::Now(); }
  };
  static const System* clock = new System;
  return *clock;
}

}  // namespace lazyblob::base
