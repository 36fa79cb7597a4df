#pragma once

// Waits that end: by what is waited for, by deadline, or by cancellation. Thread-safe.

#include <functional>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "base/cond_var.h"
#include "registry/client.h"

namespace lazyblob::registry::internal {

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
  base::SleepUnlessCancelled(duration, context.cancel.get());
}

}  // namespace lazyblob::registry::internal
