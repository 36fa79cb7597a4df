#pragma once

// Named fault points: places where a test may make the code fail, stop or die. One relaxed load when none is
// armed. Points are armed by a test in its own process, or, for child processes, by
// LAZYBLOB_FAULTS="name=kill,name=abort,name=error".

#include <atomic>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace lazyblob::base {

namespace internal {
extern std::atomic<bool> faults_armed;
absl::Status HitFault(absl::string_view name);
}  // namespace internal

// OK unless the point `name` is armed; then what its action returns.
inline absl::Status FaultPoint(absl::string_view name) {
  if (!internal::faults_armed.load(std::memory_order_relaxed)) return absl::OkStatus();
  return internal::HitFault(name);
}

// Arms `name` for the life of the object. The action runs on the thread that hits the point.
class ScopedFault {
 public:
  ScopedFault(absl::string_view name, std::function<absl::Status()> action);
  ~ScopedFault();
  ScopedFault(const ScopedFault&) = delete;
  ScopedFault& operator=(const ScopedFault&) = delete;

 private:
  const std::string name_;
};

// Arms what LAZYBLOB_FAULTS names; called once by each main().
void ArmFaultsFromEnvironment();

}  // namespace lazyblob::base
