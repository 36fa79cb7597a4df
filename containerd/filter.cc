#include "containerd/filter.h"

#include <re2/re2.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"

namespace lazyblob::containerd {
namespace {

using Condition = Filter::Condition;

constexpr size_t kQuotedContext = 60;  // bytes of the filter shown on each side of an error's place

// One code point; 0 bytes at the end of a text or where it is not UTF-8 (RFC 3629).
struct Rune {
  uint32_t value = 0;
  size_t bytes = 0;
};

Rune DecodeRune(absl::string_view text) {
  if (text.empty()) return {};
  auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < bytes) return {};
  uint32_t value = lead & (0x7Fu >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    value = value << 6 | (byte(i) & 0x3Fu);
  }
  constexpr uint32_t kLowest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (value < kLowest[bytes] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return {};
  return {value, bytes};
}

// Go writes U+FFFD for what is no code point.
void AppendRune(uint32_t value, std::string* out) {
  if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) value = 0xFFFD;
  auto put = [&](uint32_t bits) { out->push_back(static_cast<char>(bits)); };
  if (value < 0x80) return put(value);
  if (value < 0x800) {
    put(0xC0 | value >> 6);
  } else if (value < 0x10000) {
    put(0xE0 | value >> 12);
    put(0x80 | (value >> 6 & 0x3F));
  } else {
    put(0xF0 | value >> 18);
    put(0x80 | (value >> 12 & 0x3F));
    put(0x80 | (value >> 6 & 0x3F));
  }
  put(0x80 | (value & 0x3F));
}

bool IsSpace(uint32_t c) {
  return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}
bool IsControl(uint32_t c) { return c < 0x20 || (c >= 0x7F && c < 0xA0); }
bool IsFieldByte(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-';
}
bool IsOperatorByte(char c) { return c == '=' || c == '!' || c == '~'; }
int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 16;
}

class Parser {
 public:
  Parser(absl::string_view text, size_t* expressions) : text_(text), expressions_(expressions) {}

  absl::StatusOr<std::vector<Condition>> Parse() {
    if (text_.size() > kMaxFilterBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("filter of ", text_.size(), " bytes: more than ", kMaxFilterBytes));
    }
    RETURN_IF_ERROR(CheckRunes());
    std::vector<Condition> conditions;
    while (true) {
      ASSIGN_OR_RETURN(Condition condition, ParseCondition());
      conditions.push_back(std::move(condition));
      if (AtEnd()) return conditions;
      if (!Consume(',')) return Error(pos_, "unexpected input; want a comma or the end");
    }
  }

 private:
  bool AtEnd() const { return pos_ == text_.size(); }
  bool At(char c) const { return !AtEnd() && text_[pos_] == c; }
  bool Consume(char c) {
    if (!At(c)) return false;
    ++pos_;
    return true;
  }
  void SkipSpaces() {
    while (true) {
      Rune rune = DecodeRune(text_.substr(pos_));
      if (rune.bytes == 0 || !IsSpace(rune.value)) return;
      pos_ += rune.bytes;
    }
  }

  // "[before >|at|< after]: why", as containerd shows it.
  absl::Status Error(size_t at, absl::string_view why) const {
    size_t from = at > kQuotedContext ? at - kQuotedContext : 0;
    std::string place = base::Printable(text_.substr(from, at - from));
    if (at < text_.size()) {
      size_t width = std::max<size_t>(1, DecodeRune(text_.substr(at)).bytes);
      absl::StrAppend(&place, " >|", base::Printable(text_.substr(at, width)), "|< ",
                      base::Printable(text_.substr(at + width, kQuotedContext)));
    }
    return absl::InvalidArgumentError(absl::StrCat("filter: parse error: [", place, "]: ", why));
  }

  absl::Status CheckRunes() const {
    for (size_t at = 0; at < text_.size();) {
      Rune rune = DecodeRune(text_.substr(at));
      if (rune.bytes == 0) return Error(at, "not UTF-8");
      if (rune.value == 0) return Error(at, "unexpected null");
      at += rune.bytes;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Condition> ParseCondition() {
    std::vector<std::string> path;
    do {
      ASSIGN_OR_RETURN(std::string field, ParseField());
      path.push_back(std::move(field));
    } while (Consume('.'));
    Condition condition;
    condition.name = path[0];
    condition.rest = absl::StrJoin(path.begin() + 1, path.end(), ".");
    if (AtEnd() || At(',')) return condition;

    RETURN_IF_ERROR(ParseOperator(&condition));
    SkipSpaces();
    size_t at = pos_;
    ASSIGN_OR_RETURN(condition.value, ParseValue(condition.op == Condition::Op::kMatches));
    if (condition.op != Condition::Op::kMatches) return condition;
    if (++*expressions_ > kMaxExpressions) {
      return Error(at, absl::StrCat("more than ", kMaxExpressions, " expressions in one call"));
    }
    re2::RE2::Options options;
    options.set_log_errors(false);
    options.set_max_mem(kMaxExpressionMemory);
    auto expression = std::make_shared<const re2::RE2>(condition.value, options);
    if (!expression->ok()) return Error(at, absl::StrCat("not an expression: ", expression->error()));
    condition.expression = std::move(expression);
    return condition;
  }

  absl::StatusOr<std::string> ParseField() {
    SkipSpaces();
    if (At('"')) return ParseQuoted();
    if (At('/') || At('|')) {
      size_t from = pos_;
      RETURN_IF_ERROR(ParseQuoted().status());  // an unterminated one is the likelier mistake
      return Error(from, "invalid quote encountered; quote fields with \"");
    }
    size_t from = pos_;
    while (!AtEnd() && IsFieldByte(text_[pos_])) ++pos_;
    if (pos_ == from) return Error(pos_, "expected field or quoted");
    return std::string(text_.substr(from, pos_ - from));
  }

  absl::Status ParseOperator(Condition* condition) {
    SkipSpaces();
    size_t from = pos_;
    while (!AtEnd() && IsOperatorByte(text_[pos_])) ++pos_;
    absl::string_view text = text_.substr(from, pos_ - from);
    if (text == "==") {
      condition->op = Condition::Op::kEqual;
    } else if (text == "!=") {
      condition->op = Condition::Op::kNotEqual;
    } else if (text == "~=") {
      condition->op = Condition::Op::kMatches;
    } else if (text.empty()) {
      return Error(from, At('/') ? "expected an operator; quote keys that hold a /: labels.\"a/b\""
                                 : "expected an operator (\"==\"|\"!=\"|\"~=\")");
    } else {
      return Error(from, absl::StrCat("unsupported operator \"", text.substr(0, 16), "\""));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> ParseValue(bool alternative_quotes) {
    if (At('"')) return ParseQuoted();
    if (At('/') || At('|')) {
      size_t from = pos_;
      ASSIGN_OR_RETURN(std::string value, ParseQuoted());
      if (!alternative_quotes) return Error(from, "invalid quote encountered; only ~= takes / and |");
      return value;
    }
    if (AtEnd() || At(',') || At('.') || IsOperatorByte(text_[pos_])) {
      return Error(pos_, "expected value or quoted");
    }
    size_t from = pos_;
    while (true) {
      Rune rune = DecodeRune(text_.substr(pos_));
      if (rune.bytes == 0 || rune.value == ',' || IsSpace(rune.value) || IsControl(rune.value)) break;
      pos_ += rune.bytes;
    }
    if (pos_ == from) return Error(pos_, "expected value or quoted");
    return std::string(text_.substr(from, pos_ - from));
  }

  // The string whose opening quote is at pos_.
  absl::StatusOr<std::string> ParseQuoted() {
    const size_t from = pos_;
    const char quote = text_[pos_++];
    std::string out;
    while (true) {
      if (AtEnd() || At('\n')) return Error(from, "quoted literal not terminated");
      char c = text_[pos_++];
      if (c == quote) return out;
      if (c != '\\') {
        out.push_back(c);
        continue;
      }
      if (AtEnd()) return Error(from, "quoted literal not terminated");
      RETURN_IF_ERROR(ParseEscape(quote, &out));
    }
  }

  // What follows a backslash.
  absl::Status ParseEscape(char quote, std::string* out) {
    const size_t at = pos_ - 1;
    char c = text_[pos_++];
    if (c == quote) {
      out->push_back(c);
      return absl::OkStatus();
    }
    constexpr absl::string_view kNames = "abfnrtv\\";
    if (size_t i = kNames.find(c); i != absl::string_view::npos) {
      out->push_back("\a\b\f\n\r\t\v\\"[i]);
      return absl::OkStatus();
    }
    size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    int base = 16;
    if (c >= '0' && c <= '7') {
      digits = 3;
      base = 8;
      --pos_;
    }
    if (digits == 0) return Error(at, "illegal escape sequence");
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i, ++pos_) {
      int digit = AtEnd() ? 16 : HexDigit(text_[pos_]);
      if (digit >= base) return Error(at, "illegal numeric escape sequence");
      value = value * static_cast<uint32_t>(base) + static_cast<uint32_t>(digit);
    }
    if (c == 'u' || c == 'U') {
      if (value > 0x10FFFF) return Error(at, "escape sequence beyond U+10FFFF");
      AppendRune(value, out);
    } else {
      if (value > 255) return Error(at, "octal escape sequence beyond 255");
      out->push_back(static_cast<char>(value));
    }
    return absl::OkStatus();
  }

  const absl::string_view text_;
  size_t* const expressions_;
  size_t pos_ = 0;
};

bool Holds(const Condition& condition, FieldOf field_of) {
  std::optional<absl::string_view> field = field_of(condition.name, condition.rest);
  absl::string_view value = field.value_or("");
  switch (condition.op) {
    case Condition::Op::kPresent:
      return field.has_value();
    case Condition::Op::kEqual:
      return field.has_value() && value == condition.value;
    case Condition::Op::kNotEqual:
      return value != condition.value;
    case Condition::Op::kMatches:
      return re2::RE2::PartialMatch(re2::StringPiece(value.data(), value.size()), *condition.expression);
  }
  return false;
}

}  // namespace

std::optional<absl::string_view> LabelOf(const std::map<std::string, std::string>& labels,
                                         const std::string& key) {
  auto label = labels.find(key);
  if (label == labels.end()) return std::nullopt;
  return label->second;
}

bool Filter::Matches(FieldOf field) const {
  if (any_.empty()) return true;
  return std::any_of(any_.begin(), any_.end(), [&](const std::vector<Condition>& all) {
    return std::all_of(all.begin(), all.end(), [&](const Condition& one) { return Holds(one, field); });
  });
}

absl::StatusOr<Filter> ParseFilters(const std::vector<std::string>& texts) {
  if (texts.size() > kMaxFilters) {
    return absl::InvalidArgumentError(absl::StrCat(texts.size(), " filters: more than ", kMaxFilters));
  }
  Filter filter;
  bool everything = false;
  size_t expressions = 0;
  for (const std::string& text : texts) {
    if (text.empty()) {
      everything = true;
      continue;
    }
    ASSIGN_OR_RETURN(std::vector<Condition> conditions, Parser(text, &expressions).Parse());
    filter.any_.push_back(std::move(conditions));
  }
  if (everything) filter.any_.clear();
  return filter;
}

}  // namespace lazyblob::containerd
