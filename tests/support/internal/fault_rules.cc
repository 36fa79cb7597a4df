#include "tests/support/internal/fault_rules.h"

#include "absl/strings/match.h"

namespace lazyblob::support::internal {

Matcher::Matcher(const RequestMatcher& fields) : fields_(fields), regex_(fields.path_regex) {}

bool Matcher::Matches(absl::string_view method, const std::string& path, absl::string_view range) const {
  return (fields_.method.empty() || method == fields_.method) &&
         absl::StrContains(path, fields_.path_contains) && absl::StrContains(range, fields_.range_contains) &&
         (fields_.path_regex.empty() || std::regex_search(path, regex_));
}

void FaultRules::Add(const RequestMatcher& matcher, FaultAction action) {
  absl::MutexLock lock(&mutex_);
  for (const auto& gate : {action.gate, action.body_gate, action.request_gate}) {
    if (gate != nullptr) gates_.push_back(gate);
  }
  rules_.push_back({Matcher(matcher), matcher.skip, matcher.count, std::move(action)});
}

void FaultRules::Remember(std::shared_ptr<Gate> gate) {
  absl::MutexLock lock(&mutex_);
  gates_.push_back(std::move(gate));
}

void FaultRules::Clear() {
  absl::MutexLock lock(&mutex_);
  rules_.clear();
}

std::optional<FaultAction> FaultRules::Take(const HttpRequest& request) {
  absl::MutexLock lock(&mutex_);
  for (Rule& rule : rules_) {
    if (rule.count == 0 || !rule.matcher.Matches(request.method, request.path, request.Header("range")))
      continue;
    if (rule.skip > 0) {
      --rule.skip;
      continue;
    }
    if (rule.count > 0) --rule.count;
    return rule.action;
  }
  return std::nullopt;
}

void FaultRules::OpenGates() {
  absl::MutexLock lock(&mutex_);
  for (const auto& gate : gates_) gate->Open();
}

}  // namespace lazyblob::support::internal
