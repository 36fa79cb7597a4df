#pragma once

// What is remembered about hosts: until when they asked to be left alone, how fast they are, which mirrors
// are out of order, who ignores ranges, who has no Referrers API. Bounded; thread-safe.

#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "registry/client.h"
#include "registry/internal/transport.h"
#include "registry/internal/wait.h"

namespace lazyblob::registry::internal {

class HostStates {
 public:
  explicit HostStates(const base::Clock* clock) : clock_(*clock) {}

  // `origin` asked for a pause. Longer ones than 10 minutes are cut to that; a shorter one never shortens
  // another.
  void Pause(const std::string& origin, absl::Duration pause) ABSL_LOCKS_EXCLUDED(mutex_);
  // Everybody who wants something from the host of `url` waits here until its pause is over. Unavailable at
  // once when the pause outlasts the call; kCancelled, kDeadlineExceeded.
  absl::Status AwaitTurn(const Url& url, const CallContext& context, const Sleeper& sleep) const;
  // Monotonic time before which `origin` is not to be asked; zero if any time.
  absl::Duration PausedUntil(const std::string& origin) const ABSL_LOCKS_EXCLUDED(mutex_);

  // Exponentially weighted, under the host name callers know.
  void Observe(const std::string& host, const TransferTiming& timing) ABSL_LOCKS_EXCLUDED(mutex_);
  void SetIgnoresRanges(const std::string& host) ABSL_LOCKS_EXCLUDED(mutex_);
  Client::LinkEstimate Estimate(const std::string& host) const ABSL_LOCKS_EXCLUDED(mutex_);

  // A fact that expires: "mirror is down", "no Referrers API".
  void Note(const std::string& fact, absl::Duration lifetime) ABSL_LOCKS_EXCLUDED(mutex_);
  bool Noted(const std::string& fact) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const base::Clock& clock_;
  mutable absl::Mutex mutex_;
  std::map<std::string, absl::Duration> paused_until_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Client::LinkEstimate> links_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, absl::Duration> facts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::registry::internal
