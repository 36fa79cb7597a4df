#include "base/toml.h"

#include <algorithm>
#include <utility>

#define TOML_HEADER_ONLY 1
#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::base {
namespace {

using Kind = TomlValue::Kind;

TomlValue Convert(const toml::node& node, uint32_t line);

std::vector<TomlValue> Members(const toml::table& table) {
  // toml++ sorts by name; here the order of the file has a meaning.
  std::vector<std::pair<const toml::key*, const toml::node*>> entries;
  for (const auto& [key, value] : table) entries.emplace_back(&key, &value);
  auto place = [](const auto& entry) {
    toml::source_position at = entry.first->source().begin;
    return std::pair(at.line, at.column);
  };
  std::sort(entries.begin(), entries.end(),
            [&](const auto& a, const auto& b) { return place(a) < place(b); });
  std::vector<TomlValue> members;
  for (const auto& [key, value] : entries) {
    members.push_back(Convert(*value, key->source().begin.line));
    members.back().key = std::string(key->str());
  }
  return members;
}

TomlValue Convert(const toml::node& node, uint32_t line) {
  TomlValue value;
  value.line = std::max<uint32_t>(line, 1);
  if (const toml::table* table = node.as_table()) {
    value.items = Members(*table);
  } else if (const toml::array* array = node.as_array()) {
    value.kind = Kind::kArray;
    for (const toml::node& item : *array) value.items.push_back(Convert(item, item.source().begin.line));
  } else if (const auto* text = node.as_string()) {
    value.kind = Kind::kString;
    value.text = text->get();
  } else if (const auto* integer = node.as_integer()) {
    value.kind = Kind::kInteger;
    value.integer = integer->get();
  } else if (const auto* boolean = node.as_boolean()) {
    value.kind = Kind::kBoolean;
    value.boolean = boolean->get();
  } else {
    value.kind = node.is_floating_point() ? Kind::kNumber : Kind::kTime;
  }
  return value;
}

absl::Status WrongType(absl::string_view name, absl::string_view key, const TomlValue& value,
                       absl::string_view wanted) {
  return TomlError(name, value, absl::StrCat(key, " is ", value.KindName(), "; it must be ", wanted));
}

}  // namespace

const TomlValue* TomlValue::Find(absl::string_view name) const {
  if (kind != Kind::kTable) return nullptr;
  for (const TomlValue& member : items) {
    if (member.key == name) return &member;
  }
  return nullptr;
}

const char* TomlValue::KindName() const {
  switch (kind) {
    case Kind::kString:
      return "a string";
    case Kind::kInteger:
      return "an integer";
    case Kind::kNumber:
      return "a number with a fraction";
    case Kind::kBoolean:
      return "true or false";
    case Kind::kTime:
      return "a date or time";
    case Kind::kArray:
      return "a list";
    case Kind::kTable:
      return "a table";
  }
  return "unknown";
}

absl::StatusOr<TomlValue> ParseToml(absl::string_view text, absl::string_view name, uint64_t max_bytes) {
  if (text.size() > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(Printable(name), ": ", text.size(), " bytes, the limit is ", max_bytes));
  }
  toml::parse_result result = toml::parse(std::string_view(text.data(), text.size()));
  if (!result) {
    TomlValue place;
    place.line = std::max<uint32_t>(result.error().source().begin.line, 1);
    std::string_view what = result.error().description();
    return TomlError(name, place, absl::string_view(what.data(), what.size()));
  }
  return Convert(result.table(), 1);
}

absl::Status TomlError(absl::string_view name, const TomlValue& value, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(Printable(name), ":", value.line, ": ", Printable(what)));
}

absl::StatusOr<std::string> TomlString(absl::string_view name, absl::string_view key,
                                       const TomlValue& value) {
  if (value.kind != Kind::kString) return WrongType(name, key, value, "a string");
  return value.text;
}

absl::StatusOr<bool> TomlBool(absl::string_view name, absl::string_view key, const TomlValue& value) {
  if (value.kind != Kind::kBoolean) return WrongType(name, key, value, "true or false");
  return value.boolean;
}

absl::StatusOr<std::vector<std::string>> TomlStrings(absl::string_view name, absl::string_view key,
                                                     const TomlValue& value) {
  if (value.kind == Kind::kString) return std::vector<std::string>{value.text};
  if (value.kind != Kind::kArray) return WrongType(name, key, value, "a string or a list of strings");
  std::vector<std::string> strings;
  for (const TomlValue& item : value.items) {
    ASSIGN_OR_RETURN(std::string text, TomlString(name, absl::StrCat("an entry of ", key), item));
    strings.push_back(std::move(text));
  }
  return strings;
}

}  // namespace lazyblob::base
