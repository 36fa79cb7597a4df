#pragma once

// Trying again: exponential back-off with jitter under one deadline. Belongs to one call on one thread.

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "registry/client.h"
#include "registry/internal/requester.h"
#include "registry/internal/wait.h"

namespace lazyblob::registry::internal {

struct RetryPolicy {
  int max_attempts = 1;
  absl::Duration first_backoff;
  const base::Clock* clock = nullptr;
  Sleeper sleep;
};

// Calls `attempt` until it succeeds, fails for good, or attempts or time are used up. Attempts that made
// progress do not count. An answer that breaks the protocol (DataLoss) is asked for once more only. On
// kDeadlineExceeded the message says what went wrong before.
Attempt Retry(const RetryPolicy& policy, const CallContext& context, absl::FunctionRef<Attempt()> attempt,
              absl::FunctionRef<bool()> progressed);
Attempt Retry(const RetryPolicy& policy, const CallContext& context, absl::FunctionRef<Attempt()> attempt);

}  // namespace lazyblob::registry::internal
