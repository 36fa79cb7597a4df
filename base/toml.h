#pragma once

// TOML 1.0 of configuration files as plain values that remember their lines; toml++ ends here. Thread-safe
// (pure functions).

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lazyblob::base {

struct TomlValue {
  enum class Kind { kString, kInteger, kNumber, kBoolean, kTime, kArray, kTable };
  Kind kind = Kind::kTable;
  uint32_t line = 1;  // of the key, or of the value in an array
  std::string text;   // kString
  int64_t integer = 0;
  bool boolean = false;
  std::string key;               // of a member of a table
  std::vector<TomlValue> items;  // of an array; members of a table in the order of the file

  // A member of a table; null if there is none of that name.
  const TomlValue* Find(absl::string_view name) const;
  // "a string", "a table", …
  const char* KindName() const;
};

// The table a document is. InvalidArgument "NAME:LINE: what is wrong"; ResourceExhausted over `max_bytes`.
absl::StatusOr<TomlValue> ParseToml(absl::string_view text, absl::string_view name, uint64_t max_bytes);

// InvalidArgument "NAME:LINE: <what>", on one line whatever the file holds.
absl::Status TomlError(absl::string_view name, const TomlValue& value, absl::string_view what);

// Typed access; another type is InvalidArgument that says which was found. `key` is for the message.
absl::StatusOr<std::string> TomlString(absl::string_view name, absl::string_view key, const TomlValue& value);
absl::StatusOr<bool> TomlBool(absl::string_view name, absl::string_view key, const TomlValue& value);
// A list of strings, or one string.
absl::StatusOr<std::vector<std::string>> TomlStrings(absl::string_view name, absl::string_view key,
                                                     const TomlValue& value);

}  // namespace lazyblob::base
