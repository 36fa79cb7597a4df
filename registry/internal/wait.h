#pragma once

// Waits that end: by what is waited for, by deadline, or by cancellation. Thread-safe.

#include <functional>
#include <optional>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "registry/client.h"

namespace lazyblob::registry::internal {

// Kept alive around a wait on a condition of `mutex` so that cancelling evaluates the condition again. Make
// it before locking and destroy it after unlocking.
inline base::CancelToken::Registration WakeOnCancel(const CallContext& context, absl::Mutex* mutex) {
  if (context.cancel == nullptr) return {};
  return context.cancel->OnCancel([mutex] { absl::MutexLock lock(mutex); });
}

inline bool Cancelled(const CallContext& context) {
  return context.cancel != nullptr && context.cancel->cancelled();
}

// OK, kCancelled or kDeadlineExceeded.
inline absl::Status CheckLive(const CallContext& context, const base::Clock& clock) {
  if (Cancelled(context)) return absl::CancelledError("cancelled");
  if (clock.Monotonic() >= context.deadline) return absl::DeadlineExceededError("deadline reached");
  return absl::OkStatus();
}

// How a call waits between attempts; a test's moves its clock instead.
using Sleeper = std::function<void(absl::Duration, const CallContext&)>;

// Waits `duration` (real time), or less when cancelled.
inline void SleepUnlessCancelled(absl::Duration duration, const CallContext& context) {
  absl::Mutex mutex;
  base::CancelToken::Registration wake = WakeOnCancel(context, &mutex);
  absl::MutexLock lock(&mutex);
  auto cancelled = [&context] { return Cancelled(context); };
  mutex.AwaitWithTimeout(absl::Condition(&cancelled), duration);
}

}  // namespace lazyblob::registry::internal
