#pragma once

// Threads working off one queue, in order. The queue is bounded only by its callers: everything that is
// scheduled here is already accounted for elsewhere (one task per admitted request).

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"

namespace lazyblob::base {

// Thread-safe. Threads are named `name` (at most 15 bytes) for debuggers; one is made at once, the others
// when they are needed.
class ThreadPool {
 public:
  // Tasks of one key, a registry's host, may hang together: at most `per_key` of them run at a time, and a
  // quarter of the threads is left to keys of which none does. 0: keys mean nothing.
  ThreadPool(std::string name, int threads, int per_key = 0);
  // Runs what is queued, then joins.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  void Schedule(absl::AnyInvocable<void() &&> task) { Schedule("", std::move(task)); }
  void Schedule(const std::string& key, absl::AnyInvocable<void() &&> task) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Lane {
    std::deque<std::pair<uint64_t, absl::AnyInvocable<void() &&>>> tasks;  // with their place in the queue
    int running = 0;
  };
  using Lanes = std::map<std::string, Lane>;

  void Work() ABSL_LOCKS_EXCLUDED(mutex_);
  Lanes::iterator Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartThread() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string name_;
  const size_t most_threads_;
  const int per_key_;
  absl::Mutex mutex_;
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
  Lanes lanes_ ABSL_GUARDED_BY(mutex_);  // by key; with tasks that wait or run
  uint64_t last_place_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t queued_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace lazyblob::base
