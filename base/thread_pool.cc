#include "base/thread_pool.h"

#include <pthread.h>

#include <system_error>
#include <utility>

namespace lazyblob::base {

ThreadPool::ThreadPool(std::string name, int threads, int per_key)
    : name_(std::move(name)), most_threads_(static_cast<size_t>(threads)), per_key_(per_key) {
  absl::MutexLock lock(&mutex_);
  StartThread();
}

ThreadPool::~ThreadPool() {
  std::vector<std::thread> threads;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

void ThreadPool::StartThread() {
  try {
    threads_.emplace_back([this] { Work(); });
  } catch (const std::system_error&) {
    if (threads_.empty()) throw;  // else those that are there do the work
  }
}

void ThreadPool::Schedule(const std::string& key, absl::AnyInvocable<void() &&> task) {
  absl::MutexLock lock(&mutex_);
  lanes_[key].tasks.emplace_back(++last_place_, std::move(task));
  ++queued_;
  // While it stops, the threads that there are do it.
  if (!stopping_ && running_ + queued_ > threads_.size() && threads_.size() < most_threads_) StartThread();
}

ThreadPool::Lanes::iterator ThreadPool::Next() {
  auto next = lanes_.end();
  for (auto it = lanes_.begin(); it != lanes_.end(); ++it) {
    const Lane& lane = it->second;
    if (lane.tasks.empty()) continue;
    const bool full = lane.running > 0 && (lane.running >= per_key_ || running_ >= most_threads_ / 4 * 3);
    if (per_key_ > 0 && full) continue;
    if (next == lanes_.end() || lane.tasks.front().first < next->second.tasks.front().first) next = it;
  }
  return next;
}

void ThreadPool::Work() {
  pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
  auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return (stopping_ && queued_ == 0) || Next() != lanes_.end();
  };
  while (true) {
    Lanes::iterator lane;
    absl::AnyInvocable<void() &&> task;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(&ready));
      lane = Next();
      if (lane == lanes_.end()) return;
      task = std::move(lane->second.tasks.front().second);
      lane->second.tasks.pop_front();
      --queued_, ++running_, ++lane->second.running;
    }
    std::move(task)();
    task = nullptr;  // what it holds goes before it counts as over
    absl::MutexLock lock(&mutex_);
    --running_;
    if (--lane->second.running == 0 && lane->second.tasks.empty()) lanes_.erase(lane);
  }
}

}  // namespace lazyblob::base
