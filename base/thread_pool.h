#pragma once

// A fixed number of threads working off one queue, in order. The queue is bounded only by its callers:
// everything that is scheduled here is already accounted for elsewhere (one task per admitted request).

#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"

namespace lazyblob::base {

// Thread-safe. Threads are named `name` (at most 15 bytes) for debuggers.
class ThreadPool {
 public:
  ThreadPool(std::string name, int threads);
  // Runs what is queued, then joins.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  void Schedule(absl::AnyInvocable<void() &&> task) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Work() ABSL_LOCKS_EXCLUDED(mutex_);

  const std::string name_;
  std::vector<std::thread> threads_;
  absl::Mutex mutex_;
  std::deque<absl::AnyInvocable<void() &&>> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace lazyblob::base
