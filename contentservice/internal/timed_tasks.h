#pragma once

// Tasks on a few threads, each at once or after a while.

#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/cond_var.h"

namespace lazyblob::contentservice {

// Thread-safe. Threads are named `name` (at most 15 bytes).
class TimedTasks {
 public:
  using Task = absl::AnyInvocable<void() &&>;

  TimedTasks(const std::string& name, int threads);
  // Waits for what runs; what does not yet is dropped.
  ~TimedTasks();
  TimedTasks(const TimedTasks&) = delete;

  void Run(Task task) { RunAfter(absl::ZeroDuration(), std::move(task)); }
  void RunAfter(absl::Duration wait, Task task) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Work() ABSL_LOCKS_EXCLUDED(mutex_);

  std::vector<std::thread> threads_;
  absl::Mutex mutex_;
  base::CondVar changed_;
  std::multimap<absl::Duration, Task> tasks_ ABSL_GUARDED_BY(mutex_);  // by when they are due, monotonic
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace lazyblob::contentservice
