#pragma once

// containerd's filter language, as List takes it. A filter is a comma-separated list of conditions that must
// all hold:
//
//   condition = path [op value]          without op: the field is present
//   path      = field ("." field)*
//   field     = [A-Za-z0-9_-]+ | "…"
//   op        = "==" present and equal | "!=" different | "~=" matched by the expression
//   value     = "…" | bytes up to a comma or space;  after "~=" also /…/ and |…|
//   "…"       = Go's escapes: \a \b \f \n \r \t \v \\ \" \123 \x12 \u1234 \U00012345
//
// What fields there are, the caller says. An absent field has the empty value for != and ~=. Spaces may stand
// before a field, an operator and a value. An expression is RE2 (Go's regexp) and matches anywhere in the
// value. Source: containerd, pkg/filters; unlike there, an expression that does not compile is an error.
// Values; thread-safe as such.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace re2 {
class RE2;
}  // namespace re2

namespace lazyblob::containerd {

constexpr size_t kMaxFilterBytes = 64 << 10;       // of one filter
constexpr size_t kMaxFilters = 1024;               // in one call
constexpr size_t kMaxExpressions = 64;             // in one call
constexpr int64_t kMaxExpressionMemory = 1 << 20;  // of one compiled expression, bytes

// The value of a field of what is filtered: its first name, and all further ones joined by "."; nullopt:
// absent. "labels" and a key, for instance.
using FieldOf =
    absl::FunctionRef<std::optional<absl::string_view>(absl::string_view name, const std::string& rest)>;
// FieldOf for labels.
std::optional<absl::string_view> LabelOf(const std::map<std::string, std::string>& labels,
                                         const std::string& key);

// What one call filters by: any of its filters must match.
class Filter {
 public:
  Filter() = default;  // matches everything
  bool Matches(FieldOf field) const;

  // One condition of a filter.
  struct Condition {
    enum class Op : uint8_t { kPresent, kEqual, kNotEqual, kMatches };
    std::string name;
    std::string rest;
    Op op = Op::kPresent;
    std::string value;
    std::shared_ptr<const re2::RE2> expression;  // for kMatches
  };

 private:
  friend absl::StatusOr<Filter> ParseFilters(const std::vector<std::string>& texts);
  std::vector<std::vector<Condition>>
      any_;  // of these lists, one whose conditions all hold; none: everything
};

// InvalidArgument quotes the filter, the place and what was expected there. No filters, or an empty one among
// them: everything matches.
absl::StatusOr<Filter> ParseFilters(const std::vector<std::string>& texts);

}  // namespace lazyblob::containerd
