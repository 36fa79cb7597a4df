#pragma once

// The response headers a registry client has to understand. Hostile input; pure; thread-safe.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace lazyblob::registry::internal {

// One challenge of WWW-Authenticate (RFC 9110 section 11.3): scheme and parameter names in lower case.
struct Challenge {
  std::string scheme;
  std::map<std::string, std::string> parameters;

  std::string Get(const std::string& name) const {
    auto found = parameters.find(name);
    return found == parameters.end() ? "" : found->second;
  }
};

// All challenges of one header value. What cannot be read ends the list; what was read before stays. A
// repeated parameter keeps its first value. At most 16 challenges of 32 parameters.
std::vector<Challenge> ParseChallenges(absl::string_view value);

// Content-Range of a 206 (RFC 9110 section 14.4): "bytes first-last/total", total "*" is nullopt.
struct ContentRange {
  uint64_t first = 0;
  uint64_t last = 0;
  std::optional<uint64_t> total;
};
absl::StatusOr<ContentRange> ParseContentRange(absl::string_view value);

// Decimal digits only, no sign, no overflow.
std::optional<uint64_t> ParseDecimal(absl::string_view text);

// Retry-After: seconds or an HTTP date. nullopt if unreadable; never negative.
std::optional<absl::Duration> ParseRetryAfter(absl::string_view value, absl::Time now);

// The target of rel="next" in a Link header (RFC 8288), empty if none.
std::string NextLink(absl::string_view value);

}  // namespace lazyblob::registry::internal
