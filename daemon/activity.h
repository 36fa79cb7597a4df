#pragma once

// Counts what keeps a standalone daemon alive: calls that run and images that are mounted. When the last one
// ends, whoever waits may stop the daemon.

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/cond_var.h"

namespace lazyblob::daemon {

// Thread-safe.
class Activity {
 public:
  // One more; false once the daemon is ending: the caller must turn its client away.
  [[nodiscard]] bool Begin() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return false;
    ++running_;
    ++begun_;
    changed_.SignalAll();
    return true;
  }
  // `mounts` is how many images are mounted now.
  void End(size_t mounts) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    --running_;
    mounts_ = mounts;
    changed_.SignalAll();
  }
  void RequestStop() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    stop_requested_ = true;
    changed_.SignalAll();
  }
  // Returns when a stop was requested, or, with `until_idle`, when nothing runs and nothing is mounted (any
  // more; `grace` is how long a fresh daemon waits for its first call). No call begins after that.
  void Wait(bool until_idle, size_t mounts, absl::Duration grace) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    mounts_ = mounts;
    const auto used = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return stop_requested_ || begun_ > 0 || mounts_ > 0;
    };
    const auto idle = [this, until_idle]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return stop_requested_ || (until_idle && running_ == 0 && mounts_ == 0);
    };
    if (until_idle) changed_.AwaitFor(&mutex_, used, grace);
    changed_.AwaitFor(&mutex_, idle, absl::InfiniteDuration());
    stopping_ = true;
    const auto drained = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return running_ == 0; };
    changed_.AwaitFor(&mutex_, drained, absl::Seconds(10));
  }

 private:
  absl::Mutex mutex_;
  base::CondVar changed_;
  uint64_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t begun_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t mounts_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_requested_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace lazyblob::daemon
