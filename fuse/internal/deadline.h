#pragma once

// How long one READ may wait.

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"

namespace lazyblob::fuse::internal {

// `budget` is for one read() of a program, which is two or three requests; the later ones fail at once
// (ReadEngine), so nearly all of it is for the first. A kernel that limits requests to `kernel_limit_seconds`
// (0: it does not) aborts the whole connection when one takes longer: stay far below.
inline absl::Duration RequestDeadline(absl::Duration budget, uint64_t kernel_limit_seconds) {
  const absl::Duration deadline = budget * 0.9;
  if (kernel_limit_seconds == 0) return deadline;
  return std::min(deadline, absl::Seconds(kernel_limit_seconds) / 2);
}

// The same for a request that came again after a predecessor had it: the kernel counts from the first time,
// and there may have been several.
inline absl::Duration ResentDeadline(absl::Duration budget, uint64_t kernel_limit_seconds) {
  const absl::Duration deadline = RequestDeadline(budget, kernel_limit_seconds);
  if (kernel_limit_seconds == 0) return deadline;
  return std::min(deadline, absl::Seconds(kernel_limit_seconds) / 8);
}

}  // namespace lazyblob::fuse::internal
