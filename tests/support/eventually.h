#pragma once

#include <thread>

#include "absl/functional/function_ref.h"
#include "absl/time/clock.h"
#include "tests/support/gate.h"

namespace lazyblob::support {

// Looks again and again until `condition` holds: for what threads do in their own time, where there is
// nothing to wait at. False after kPatience.
inline bool Eventually(absl::FunctionRef<bool()> condition) {
  const absl::Time give_up = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() >= give_up) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace lazyblob::support
