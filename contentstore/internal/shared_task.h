#pragma once

// Work on a whole layer (indexing, unlazying) that several callers wait for together: done once, on a thread
// of the store. A caller that gives up ends only its own wait; when the last one has left the work is
// cancelled.

#include <cstdint>
#include <map>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "base/cond_var.h"
#include "contentstore/content_store.h"
#include "contentstore/internal/source_read.h"

namespace lazyblob::contentstore {

// Thread-safe.
class SharedTask {
 public:
  explicit SharedTask(const base::Clock* clock) : clock_(clock) {}

  // Enters a caller; false when the task is over or given up: then another one is needed. Followed by Wait.
  bool Join(const FetchContext& context, uint64_t* ticket) ABSL_LOCKS_EXCLUDED(mutex_);
  // Blocks until the task is finished or this caller's patience is; calls `progress` on this thread
  // meanwhile, when there is some; for FetchCause::kBackground also while there is none.
  absl::Status Wait(uint64_t ticket, const FetchContext& context, const Progress& progress)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // For the thread that does the work.
  const std::shared_ptr<base::CancelToken>& cancel() const { return cancel_; }
  CredentialsList Requesters() ABSL_LOCKS_EXCLUDED(mutex_);
  void Report(uint64_t received) ABSL_LOCKS_EXCLUDED(mutex_);
  // From anywhere: the work shall end, whoever waits for it.
  void GiveUp() ABSL_LOCKS_EXCLUDED(mutex_);
  void Finish(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const base::Clock* const clock_;
  const std::shared_ptr<base::CancelToken> cancel_ = std::make_shared<base::CancelToken>();

  absl::Mutex mutex_;
  base::CondVar changed_;
  std::map<uint64_t, CredentialsPtr> callers_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_ticket_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t rotation_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t received_ ABSL_GUARDED_BY(mutex_) = 0;
  bool abandoned_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::contentstore
