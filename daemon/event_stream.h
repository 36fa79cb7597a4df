#pragma once

// What a streaming call tells its client, on a thread of its own: nobody who has something to tell waits for
// a client that does not read.

#include <algorithm>
#include <functional>
#include <list>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "base/cond_var.h"
#include "daemon/export_progress.h"
#include "proto/exporter.pb.h"

namespace lazyblob::daemon {

// Thread-safe. Finish is called once, before it is destroyed.
template <typename Event>
class EventStream {
 public:
  // `write` blocks while the client does not read, and is false when the call is over; `give_up` ends it.
  EventStream(std::function<bool(const Event&)> write, std::function<void()> give_up,
              absl::Duration patience = absl::Seconds(2))
      : write_(std::move(write)),
        give_up_(std::move(give_up)),
        patience_(patience),
        thread_([this] { Run(); }) {}

  void Put(Event event) { Add(std::move(event), "", true); }
  // Of one layer and destination only the latest waits, and all final states.
  void Put(Event event, const v1::Progress& progress) {
    Add(std::move(event),
        absl::StrCat(progress.cache() ? "c\n" : "i\n", progress.destination(), "\n", progress.name()),
        IsFinalState(progress.state()));
  }

  // Returns when all is written or the call is over. Once `cancel` is cancelled, a client that has read
  // nothing for `patience` is given up.
  void Finish(const base::CancelToken& cancel) ABSL_LOCKS_EXCLUDED(mutex_) {
    {
      const absl::MutexLock lock(&mutex_);
      closed_ = true;
      absl::Duration since = absl::InfiniteDuration();
      const auto drained = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return waiting_.empty() && !writing_;
      };
      while (!written_.AwaitFor(&mutex_, drained, absl::Milliseconds(100))) {
        if (!cancel.cancelled()) continue;
        const absl::Duration now = base::SystemClock().Monotonic();
        since = std::min(since, now);
        if (now - std::max(since, written_at_) >= patience_) give_up_();
      }
    }
    thread_.join();
  }

 private:
  struct Waiting {
    Event event;
    std::string key;  // empty: stays
  };

  void Add(Event event, const std::string& key, bool stays) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    if (over_) return;
    if (const auto before = latest_.find(key); before != latest_.end()) {
      waiting_.erase(before->second);
      latest_.erase(before);
    }
    waiting_.push_back({std::move(event), stays ? "" : key});
    if (!stays) latest_.emplace(key, std::prev(waiting_.end()));
  }

  void Run() ABSL_LOCKS_EXCLUDED(mutex_) {
    while (true) {
      Event event;
      {
        const absl::MutexLock lock(&mutex_);
        auto something = [this]()
                             ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return closed_ || !waiting_.empty(); };
        mutex_.Await(absl::Condition(&something));
        if (waiting_.empty()) return;
        latest_.erase(waiting_.front().key);
        event = std::move(waiting_.front().event);
        waiting_.pop_front();
        writing_ = true;
      }
      const bool written = write_(event);
      const absl::MutexLock lock(&mutex_);
      writing_ = false;
      written_.SignalAll();
      written_at_ = base::SystemClock().Monotonic();
      if (written) continue;
      over_ = true;
      waiting_.clear();
      latest_.clear();
    }
  }

  const std::function<bool(const Event&)> write_;
  const std::function<void()> give_up_;
  const absl::Duration patience_;
  absl::Mutex mutex_;
  base::CondVar written_;
  std::list<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, typename std::list<Waiting>::iterator> latest_ ABSL_GUARDED_BY(mutex_);  // by key
  absl::Duration written_at_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: uses all of the above
};

}  // namespace lazyblob::daemon
