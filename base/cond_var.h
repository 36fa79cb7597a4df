#pragma once

// Timed waits that hold when somebody sets the wall clock: those of Abseil (CondVar, Mutex, Notification)
// wait on CLOCK_REALTIME where it is older than 2024, and take an hour longer when NTP sets the clock back by
// one. Only what is below is used for timed waits; untimed ones may be Abseil's.

#include <condition_variable>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/cancel.h"

namespace lazyblob::base {

// A condition variable. Thread-safe. Unlike Mutex::Await nothing is noticed by itself: whoever makes true
// what is waited for signals, while holding the mutex or after.
class CondVar {
 public:
  // Lets `mutex` go, waits for a signal, takes it again. May return without a signal.
  void Wait(absl::Mutex* mutex) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // As Wait, for `duration` of CLOCK_MONOTONIC at most (infinite: as Wait); true: it has run out.
  bool WaitFor(absl::Mutex* mutex, absl::Duration duration) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);
  // Waits until `condition`, evaluated under `mutex`, is true, for `duration` at most; what it was last.
  bool AwaitFor(absl::Mutex* mutex, absl::FunctionRef<bool()> condition, absl::Duration duration)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  void Signal() { changed_.notify_one(); }
  void SignalAll() { changed_.notify_all(); }

 private:
  std::condition_variable_any changed_;
};

// Waits for `duration` of CLOCK_MONOTONIC, or less when `cancel` (null: nothing) is cancelled; whether it is.
bool SleepUnlessCancelled(absl::Duration duration, CancelToken* cancel);

}  // namespace lazyblob::base
