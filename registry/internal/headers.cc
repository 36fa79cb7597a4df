#include "registry/internal/headers.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status.h"

namespace lazyblob::registry::internal {
namespace {

constexpr size_t kMaxChallenges = 16;
constexpr size_t kMaxParameters = 32;

bool IsTokenChar(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
         absl::StrContains("!#$%&'*+-.^_`|~", absl::string_view(&c, 1));
}

// A cursor over a header value.
class Scanner {
 public:
  explicit Scanner(absl::string_view text) : rest_(text) {}

  bool done() const { return rest_.empty(); }
  bool At(char c) const { return !rest_.empty() && rest_.front() == c; }
  absl::string_view rest() const { return rest_; }
  void Restore(absl::string_view rest) { rest_ = rest; }

  void SkipSpace() {
    while (!rest_.empty() && (rest_.front() == ' ' || rest_.front() == '\t')) rest_.remove_prefix(1);
  }
  void SkipSpaceAndCommas() {
    while (!rest_.empty() && (rest_.front() == ' ' || rest_.front() == '\t' || rest_.front() == ',')) {
      rest_.remove_prefix(1);
    }
  }
  void SkipToComma() { rest_.remove_prefix(std::min(rest_.find(','), rest_.size())); }

  absl::string_view Token() {
    size_t end = 0;
    while (end < rest_.size() && IsTokenChar(rest_[end])) ++end;
    absl::string_view token = rest_.substr(0, end);
    rest_.remove_prefix(end);
    return token;
  }

  bool Consume(char c) {
    if (!At(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }

  // A quoted string after its opening quote; false if it does not end.
  bool Quoted(std::string* out) {
    for (size_t i = 0; i < rest_.size(); ++i) {
      if (rest_[i] == '"') {
        rest_.remove_prefix(i + 1);
        return true;
      }
      if (rest_[i] == '\\' && i + 1 < rest_.size()) ++i;
      out->push_back(rest_[i]);
    }
    return false;
  }

 private:
  absl::string_view rest_;
};

// "name = value"; on anything else the scanner stays where it was.
bool Parameter(Scanner* scanner, std::string* name, std::string* value) {
  absl::string_view before = scanner->rest();
  *name = absl::AsciiStrToLower(scanner->Token());
  value->clear();
  scanner->SkipSpace();
  bool fine = !name->empty() && scanner->Consume('=');
  scanner->SkipSpace();
  if (fine && scanner->Consume('"')) {
    fine = scanner->Quoted(value);
  } else if (fine) {
    *value = std::string(scanner->Token());
    fine = !value->empty();
  }
  scanner->SkipSpace();
  fine = fine && (scanner->done() || scanner->At(','));
  if (!fine) scanner->Restore(before);
  return fine;
}

}  // namespace

std::vector<Challenge> ParseChallenges(absl::string_view value) {
  std::vector<Challenge> challenges;
  Scanner scanner(value);
  scanner.SkipSpaceAndCommas();
  while (!scanner.done()) {
    std::string name;
    std::string text;
    if (!challenges.empty() && Parameter(&scanner, &name, &text)) {
      auto& parameters = challenges.back().parameters;
      if (parameters.size() >= kMaxParameters) return challenges;
      parameters.emplace(std::move(name), std::move(text));
    } else {
      absl::string_view scheme = scanner.Token();
      bool fine =
          !scheme.empty() && (scanner.done() || scanner.At(' ') || scanner.At('\t') || scanner.At(','));
      if (!fine || challenges.size() >= kMaxChallenges) return challenges;
      challenges.push_back({absl::AsciiStrToLower(scheme), {}});
      scanner.SkipSpace();
      // What follows is parameters, or one opaque word (token68), which no scheme we speak uses.
      absl::string_view before = scanner.rest();
      if (Parameter(&scanner, &name, &text)) {
        scanner.Restore(before);
        continue;
      }
      if (scanner.At('"')) return challenges;
      absl::string_view word = scanner.rest().substr(0, scanner.rest().find(','));
      if (word.find_first_of("\"") != absl::string_view::npos) return challenges;
      scanner.SkipToComma();
    }
    scanner.SkipSpaceAndCommas();
  }
  return challenges;
}

std::optional<uint64_t> ParseDecimal(absl::string_view text) {
  if (text.empty() || text.size() > 20) return std::nullopt;
  if (!std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; }))
    return std::nullopt;
  uint64_t value = 0;
  if (!absl::SimpleAtoi(text, &value)) return std::nullopt;
  return value;
}

absl::StatusOr<ContentRange> ParseContentRange(absl::string_view value) {
  auto bad = [&](absl::string_view why) {
    return absl::DataLossError(
        absl::StrCat("Content-Range \"", base::Printable(value.substr(0, 80)), "\": ", why));
  };
  absl::string_view rest = absl::StripAsciiWhitespace(value);
  size_t space = rest.find(' ');
  if (space == absl::string_view::npos || !absl::EqualsIgnoreCase(rest.substr(0, space), "bytes")) {
    return bad("the unit is not bytes");
  }
  rest = absl::StripAsciiWhitespace(rest.substr(space));
  size_t slash = rest.find('/');
  size_t dash = rest.find('-');
  if (slash == absl::string_view::npos || dash == absl::string_view::npos || dash > slash) {
    return bad("want first-last/total");
  }
  std::optional<uint64_t> first = ParseDecimal(rest.substr(0, dash));
  std::optional<uint64_t> last = ParseDecimal(rest.substr(dash + 1, slash - dash - 1));
  if (!first || !last || *last < *first) return bad("want first-last/total");
  ContentRange range{*first, *last, std::nullopt};
  if (rest.substr(slash + 1) == "*") return range;
  range.total = ParseDecimal(rest.substr(slash + 1));
  if (!range.total || *range.total <= *last) return bad("the total does not fit the range");
  return range;
}

std::optional<absl::Duration> ParseRetryAfter(absl::string_view value, absl::Time now) {
  value = absl::StripAsciiWhitespace(value);
  if (std::optional<uint64_t> seconds = ParseDecimal(value)) {
    return absl::Seconds(std::min<uint64_t>(*seconds, 1'000'000'000));
  }
  absl::Time when;
  std::string error;
  if (!absl::ParseTime("%a, %d %b %Y %H:%M:%S GMT", value, &when, &error)) return std::nullopt;
  return std::max(when - now, absl::ZeroDuration());
}

std::string NextLink(absl::string_view value) {
  while (!value.empty()) {
    size_t open = value.find('<');
    if (open == absl::string_view::npos) return "";
    size_t close = value.find('>', open);
    if (close == absl::string_view::npos) return "";
    absl::string_view target = value.substr(open + 1, close - open - 1);
    value.remove_prefix(close + 1);
    absl::string_view attributes = value.substr(0, value.find('<'));
    for (absl::string_view attribute : absl::StrSplit(attributes, absl::ByAnyChar(";,"))) {
      std::string plain = absl::StrReplaceAll(absl::AsciiStrToLower(attribute), {{"\"", ""}, {" ", ""}});
      if (plain == "rel=next") return std::string(target);
    }
  }
  return "";
}

}  // namespace lazyblob::registry::internal
