#include "base/cond_var.h"

#include <algorithm>
#include <chrono>

#include "base/clock.h"

namespace lazyblob::base {
namespace {

constexpr absl::Duration kForever = absl::Hours(24 * 365 * 100);

// What the standard library locks and unlocks.
struct Lockable {
  absl::Mutex* const mutex;
  void lock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex->Lock(); }
  void unlock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex->Unlock(); }
};

}  // namespace

void CondVar::Wait(absl::Mutex* mutex) {
  Lockable lock{mutex};
  changed_.wait(lock);
}

bool CondVar::WaitFor(absl::Mutex* mutex, absl::Duration duration) {
  if (duration >= kForever) {
    Wait(mutex);
    return false;
  }
  const auto most = absl::ToChronoNanoseconds(std::max(duration, absl::ZeroDuration()));
  Lockable lock{mutex};
  return changed_.wait_until(lock, std::chrono::steady_clock::now() + most) == std::cv_status::timeout;
}

bool CondVar::AwaitFor(absl::Mutex* mutex, absl::FunctionRef<bool()> condition, absl::Duration duration) {
  const absl::Duration end = SystemClock().Monotonic() + duration;
  while (!condition()) {
    const absl::Duration left = end - SystemClock().Monotonic();
    if (left <= absl::ZeroDuration()) return false;
    WaitFor(mutex, left);
  }
  return true;
}

bool SleepUnlessCancelled(absl::Duration duration, CancelToken* cancel) {
  CancelToken none;
  absl::Mutex mutex;
  CondVar changed;
  bool cancelled = false;
  const CancelToken::Registration wake = (cancel == nullptr ? &none : cancel)->OnCancel([&] {
    const absl::MutexLock lock(&mutex);
    cancelled = true;
    changed.SignalAll();
  });
  const absl::MutexLock lock(&mutex);
  return changed.AwaitFor(&mutex, [&] { return cancelled; }, duration);
}

}  // namespace lazyblob::base
