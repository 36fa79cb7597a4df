#include "base/fault.h"

#include <csignal>
#include <cstdlib>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"

namespace lazyblob::base {
namespace {

struct Faults {
  absl::Mutex mutex;
  std::map<std::string, std::function<absl::Status()>, std::less<>> actions ABSL_GUARDED_BY(mutex);
};

Faults& AllFaults() {
  static Faults* faults = new Faults;
  return *faults;
}

void Arm(std::string name, std::function<absl::Status()> action) {
  absl::MutexLock lock(&AllFaults().mutex);
  AllFaults().actions[std::move(name)] = std::move(action);
  internal::faults_armed = true;
}

}  // namespace

namespace internal {

std::atomic<bool> faults_armed{false};

absl::Status HitFault(absl::string_view name) {
  std::function<absl::Status()> action;
  {
    absl::MutexLock lock(&AllFaults().mutex);
    auto found = AllFaults().actions.find(std::string(name));
    if (found == AllFaults().actions.end()) return absl::OkStatus();
    action = found->second;
  }
  return action();
}

}  // namespace internal

ScopedFault::ScopedFault(absl::string_view name, std::function<absl::Status()> action) : name_(name) {
  Arm(name_, std::move(action));
}

ScopedFault::~ScopedFault() {
  absl::MutexLock lock(&AllFaults().mutex);
  AllFaults().actions.erase(name_);
  internal::faults_armed = !AllFaults().actions.empty();
}

void ArmFaultsFromEnvironment() {
  const char* list = std::getenv("LAZYBLOB_FAULTS");
  if (list == nullptr) return;
  for (absl::string_view item : absl::StrSplit(list, ',', absl::SkipEmpty())) {
    std::pair<std::string, std::string> point = absl::StrSplit(item, absl::MaxSplits('=', 1));
    if (point.second == "kill") {
      Arm(point.first, []() -> absl::Status {
        raise(SIGKILL);
        return absl::OkStatus();
      });
    } else if (point.second == "abort") {
      Arm(point.first, []() -> absl::Status { std::abort(); });
    } else {
      Arm(point.first,
          [name = point.first] { return absl::InternalError(absl::StrCat("fault injected at ", name)); });
    }
  }
}

}  // namespace lazyblob::base
