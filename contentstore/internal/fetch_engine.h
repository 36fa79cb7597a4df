#pragma once

// The one fetch engine of a store: threads that bring missing chunks, most urgent first, and a thread that
// watches deadlines and cancellations. What is fetched for whom is the FlightTable's affair.

#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/cond_var.h"
#include "contentstore/internal/flight_table.h"
#include "contentstore/internal/job_runner.h"

namespace lazyblob::contentstore {

struct FetchEngineOptions {
  FlightLimits limits;
  const base::Clock* clock = nullptr;
  std::function<void(absl::string_view)> log;  // one line; never empty
  // Fetches a layer anew that can only be read whole; called on the engine's threads, which Stop waits for.
  std::function<absl::Status(Layer&, const FetchContext&)> make_anew;
};

// Thread-safe. Shared by the store and its layers, which may outlive the store: a stopped engine refuses.
class FetchEngine final : public JobHost {
 public:
  explicit FetchEngine(FetchEngineOptions options);
  ~FetchEngine() override;
  void Start();
  // Ends every wait with Cancelled and every fetch, then joins the threads.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  // Finishes the waiter, on this thread if nothing has to be fetched, else on one of the engine's.
  void Acquire(WaiterPtr waiter) ABSL_LOCKS_EXCLUDED(mutex_);
  void FailOutstanding(const Layer* layer, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  void ReadAhead(const std::shared_ptr<Layer>& layer, uint64_t end) ABSL_LOCKS_EXCLUDED(mutex_);

  // Waits until nobody waits for bytes, and none are read ahead of him; false when that takes longer than
  // `most`. Ends early when `cancel` or the engine ends.
  bool AwaitQuiet(const base::CancelToken& cancel, absl::Duration most) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends what is fetched for nobody.
  void StopReadingAhead(const Layer* layer) ABSL_LOCKS_EXCLUDED(mutex_);

  // JobHost, for the running jobs.
  CredentialsList Requesters(const Job& job) override ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Duration Deadline(const Job& job) override ABSL_LOCKS_EXCLUDED(mutex_);
  void Deliver(const Job& job, uint64_t chunk, const Bytes& memory) override ABSL_LOCKS_EXCLUDED(mutex_);
  void NoteDiskError(const Layer& layer, const absl::Status& status) override;
  absl::Duration Now() override { return options_.clock->Monotonic(); }

 private:
  void NoteReadError(const Layer& layer, const absl::Status& status);
  // Whether it is time to tell of it again; `next`: seconds, not before.
  bool MayTell(std::atomic<int64_t>& next);
  void FetchLoop() ABSL_LOCKS_EXCLUDED(mutex_);
  // One more, if there may be one: there is always one that looks for work.
  void StartFetchThread() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WatchLoop() ABSL_LOCKS_EXCLUDED(mutex_);
  // Has the layer fetched that the waiter wants, for all who wait for it.
  void MakeAnew(const WaiterPtr& first) ABSL_LOCKS_EXCLUDED(mutex_);
  void NoteCancelled(const WaiterPtr& waiter) ABSL_LOCKS_EXCLUDED(mutex_);
  // What must not happen under the mutex: stopping fetches, calling back.
  void Settle(Outcome outcome) ABSL_LOCKS_EXCLUDED(mutex_);
  // Calls back; or false: it is to be acquired again, once, for what was there cannot be read.
  static bool Finish(Waiter& waiter, const absl::Status& status);

  const FetchEngineOptions options_;
  std::thread watch_thread_;                         // Start and Stop only
  std::atomic<int64_t> next_disk_error_{INT64_MIN};  // seconds; not told again before
  std::atomic<int64_t> next_read_error_{INT64_MIN};

  absl::Mutex mutex_;
  absl::CondVar work_;   // a job may be startable
  base::CondVar watch_;  // a cancellation, an earlier deadline, or the end
  base::CondVar quiet_;  // something was settled
  FlightTable table_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
  int looking_ ABSL_GUARDED_BY(mutex_) = 0;  // threads without a job
  std::vector<WaiterPtr> cancelled_ ABSL_GUARDED_BY(mutex_);
  std::vector<WaiterPtr> anew_ ABSL_GUARDED_BY(mutex_);  // the first of each layer that is to be made anew
  std::set<const Layer*> being_made_ ABSL_GUARDED_BY(mutex_);  // those and the ones that are
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace lazyblob::contentstore
