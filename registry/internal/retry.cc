#include "registry/internal/retry.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "registry/internal/wait.h"

namespace lazyblob::registry::internal {
namespace {

constexpr absl::Duration kMaxBackoff = absl::Seconds(5);

// Half to all of it, so that callers that failed together do not come back together.
absl::Duration Jittered(absl::Duration backoff) {
  thread_local std::minstd_rand random(std::random_device{}());
  return backoff * std::uniform_real_distribution<double>(0.5, 1.0)(random);
}

}  // namespace

Attempt Retry(const RetryPolicy& policy, const CallContext& context, absl::FunctionRef<Attempt()> attempt,
              absl::FunctionRef<bool()> progressed) {
  absl::Duration backoff = policy.first_backoff;
  absl::Status last;
  int failures = 0;
  bool broke_protocol = false;
  while (true) {
    absl::Status live = CheckLive(context, *policy.clock);
    Attempt result = live.ok() ? attempt() : Attempt{live, 0, false};
    if (result.ok()) return result;
    if (absl::IsDeadlineExceeded(result.status) && !last.ok()) {
      result.status =
          absl::DeadlineExceededError(absl::StrCat(result.status.message(), "; before: ", last.message()));
    }
    if (!result.retry) return result;
    if (progressed()) {
      failures = 0;
      backoff = policy.first_backoff;
    }
    bool protocol = absl::IsDataLoss(result.status);
    if (++failures >= policy.max_attempts || (protocol && broke_protocol)) {
      if (failures > 1)
        result.status = base::Annotate(result.status, absl::StrCat("after ", failures, " attempts"));
      return result;
    }
    broke_protocol = broke_protocol || protocol;
    last = result.status;
    absl::Duration pause = std::min(Jittered(backoff), context.deadline - policy.clock->Monotonic());
    if (pause > absl::ZeroDuration()) policy.sleep(pause, context);
    backoff = std::min(backoff * 2, kMaxBackoff);
  }
}

Attempt Retry(const RetryPolicy& policy, const CallContext& context, absl::FunctionRef<Attempt()> attempt) {
  return Retry(policy, context, attempt, [] { return false; });
}

}  // namespace lazyblob::registry::internal
