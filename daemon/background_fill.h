#pragma once

// Brings what is mounted whole into the cache while nobody waits for bytes: one layer at a time, those first
// whose diffID nobody has compared yet. What cannot be had now is tried again later, with growing pauses.

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "base/digest.h"
#include "contentstore/content_store.h"

namespace lazyblob::daemon {

struct BackgroundFillOptions {
  contentstore::ContentStore* store = nullptr;      // outlives it
  std::function<std::set<base::Digest>()> mounted;  // layers
  const base::Clock* clock = &base::SystemClock();
  absl::Duration look_interval = absl::Seconds(2);  // how often it looks for new mounts
  absl::Duration retry = absl::Minutes(1);          // after an error; doubled each time, up to an hour
};

// Thread-safe.
class BackgroundFill {
 public:
  explicit BackgroundFill(BackgroundFillOptions options);
  ~BackgroundFill();  // ends what is under way
  BackgroundFill(const BackgroundFill&) = delete;

  // "running", "no-room" or "failed"; empty: nothing to tell.
  std::string StateOf(const base::Digest& layer) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Trouble {
    std::string what;
    absl::Duration pause;
    absl::Duration until;  // monotonic
  };

  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  std::shared_ptr<contentstore::LazyLayer> Next() ABSL_LOCKS_EXCLUDED(mutex_);
  void Fill(const std::shared_ptr<contentstore::LazyLayer>& layer) ABSL_LOCKS_EXCLUDED(mutex_);

  const BackgroundFillOptions options_;
  std::thread thread_;
  base::CancelToken stop_;

  mutable absl::Mutex mutex_;  // a leaf
  base::Digest running_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<base::CancelToken> cancel_ ABSL_GUARDED_BY(mutex_);  // of what runs
  std::map<base::Digest, Trouble> troubles_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::daemon
