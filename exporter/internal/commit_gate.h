#pragma once

// Where the destinations of one export wait for each other: nothing gets its name before everything is there
// that is to be named.

#include <cstddef>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "base/cancel.h"

namespace lazyblob::exporter {

// Thread-safe.
class CommitGate {
 public:
  // Opens when `count` have come; whoever fails before that cancels `stop`. Where `with_tags` one of them
  // sets tags in registries, which can still be refused: the others wait for that too.
  CommitGate(size_t count, bool with_tags, std::shared_ptr<base::CancelToken> stop)
      : count_(count), stop_(std::move(stop)), tagged_(!with_tags) {}

  // Of the one with the tags. Both: Cancelled when it does not come to it any more.
  absl::Status WaitToTag() ABSL_LOCKS_EXCLUDED(mutex_) { return Wait(false); }
  // Of the others.
  absl::Status WaitToCommit() ABSL_LOCKS_EXCLUDED(mutex_) { return Wait(true); }
  void Tagged() ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    tagged_ = true;
  }

 private:
  absl::Status Wait(bool for_tags) ABSL_LOCKS_EXCLUDED(mutex_) {
    const base::CancelToken::Registration wake = stop_->OnCancel([this] {
      const absl::MutexLock lock(&mutex_);  // its release wakes who waits
    });
    const absl::MutexLock lock(&mutex_);
    ++come_;
    auto open = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return come_ == count_ && (tagged_ || !for_tags);
    };
    auto ended = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return open() || stop_->cancelled(); };
    mutex_.Await(absl::Condition(&ended));
    return open() ? absl::OkStatus() : absl::CancelledError("cancelled");
  }

  const size_t count_;
  const std::shared_ptr<base::CancelToken> stop_;  // shared with the destinations
  absl::Mutex mutex_;
  size_t come_ ABSL_GUARDED_BY(mutex_) = 0;
  bool tagged_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::exporter
