#include "contentservice/internal/timed_tasks.h"

#include <pthread.h>

#include <utility>

#include "base/clock.h"

namespace lazyblob::contentservice {

TimedTasks::TimedTasks(const std::string& name, int threads) {
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this, name] {
      pthread_setname_np(pthread_self(), name.c_str());
      Work();
    });
  }
}

TimedTasks::~TimedTasks() {
  std::multimap<absl::Duration, Task> dropped;  // outside of the lock: tasks own things
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    dropped.swap(tasks_);
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void TimedTasks::RunAfter(absl::Duration wait, Task task) {
  const absl::Duration due = base::SystemClock().Monotonic() + wait;
  absl::MutexLock lock(&mutex_);
  if (stopping_) return;
  tasks_.emplace(due, std::move(task));
  changed_.Signal();
}

void TimedTasks::Work() {
  absl::MutexLock lock(&mutex_);
  while (!stopping_) {
    if (tasks_.empty()) {
      changed_.Wait(&mutex_);
      continue;
    }
    const absl::Duration wait = tasks_.begin()->first - base::SystemClock().Monotonic();
    if (wait > absl::ZeroDuration()) {
      changed_.WaitFor(&mutex_, wait);
      continue;
    }
    Task task = std::move(tasks_.begin()->second);
    tasks_.erase(tasks_.begin());
    mutex_.Unlock();
    std::move(task)();
    task = nullptr;
    mutex_.Lock();
  }
}

}  // namespace lazyblob::contentservice
