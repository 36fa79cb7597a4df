#pragma once

// Matching of requests and the list of fault rules. Thread-safe.

#include <memory>
#include <optional>
#include <regex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tests/support/internal/http.h"
#include "tests/support/test_registry.h"

namespace lazyblob::support::internal {

// A matcher made ready; ignores skip and count.
class Matcher {
 public:
  explicit Matcher(const RequestMatcher& fields);
  bool Matches(absl::string_view method, const std::string& path, absl::string_view range) const;
  bool Matches(const LoggedRequest& request) const {
    return Matches(request.method, request.path, request.range);
  }

 private:
  const RequestMatcher fields_;
  const std::regex regex_;
};

class FaultRules {
 public:
  void Add(const RequestMatcher& matcher, FaultAction action) ABSL_LOCKS_EXCLUDED(mutex_);
  void Clear() ABSL_LOCKS_EXCLUDED(mutex_);
  // Of the first rule that means the request; counts it.
  std::optional<FaultAction> Take(const HttpRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  // A gate that OpenGates is to open too.
  void Remember(std::shared_ptr<Gate> gate) ABSL_LOCKS_EXCLUDED(mutex_);
  // Opens the gates of all rules there ever were.
  void OpenGates() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Rule {
    Matcher matcher;
    int skip;
    int count;
    FaultAction action;
  };
  absl::Mutex mutex_;
  std::vector<Rule> rules_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<Gate>> gates_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::support::internal
