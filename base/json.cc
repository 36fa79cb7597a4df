#include "base/json.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::base {
namespace {

using nlohmann::json;

// Brackets and commas that a document may have; real ones have one for twenty bytes or more.
constexpr uint64_t kBytesPerPart = 8;
constexpr uint64_t kLeastParts = 100'000;

// Looks for duplicate keys, of which nlohmann by itself keeps the last. A pass of its own: the parser that
// has a callback looks through the whole list again after each object in it.
class DuplicateKeys final : public json::json_sax_t {
 public:
  // Empty: there are none.
  const std::string& found() const { return found_; }

  bool start_object(std::size_t) override {
    keys_.emplace_back();
    return true;
  }
  bool end_object() override {
    keys_.pop_back();
    return true;
  }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    found_ = absl::StrCat("duplicate key \"", Printable(name), "\"");
    return false;
  }
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_array(std::size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(std::size_t, const std::string&, const json::exception&) override { return false; }

 private:
  std::vector<std::set<std::string>> keys_;
  std::string found_;
};

// "" or why the text is not to be parsed. Counted without recursion: nlohmann builds and destroys values
// recursively in places, and a value of two bytes takes a hundred in memory.
std::string TooMuch(absl::string_view text, int max_depth, uint64_t max_parts) {
  int depth = 0;
  uint64_t parts = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > max_depth) return absl::StrCat("nested deeper than ", max_depth);
      ++parts;
    } else if (c == '}' || c == ']') {
      --depth;
    } else if (c == ',') {
      ++parts;
    }
  }
  return parts > max_parts ? absl::StrCat("more than ", max_parts, " values") : "";
}

}  // namespace

absl::StatusOr<json> ParseJson(absl::string_view text, uint64_t max_bytes, int max_depth) {
  if (text.size() > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("JSON document of ", text.size(), " bytes, limit is ", max_bytes));
  }
  const std::string too_much = TooMuch(text, max_depth, std::max(kLeastParts, max_bytes / kBytesPerPart));
  if (!too_much.empty()) return absl::InvalidArgumentError(absl::StrCat("JSON: ", too_much));
  DuplicateKeys duplicates;
  try {
    json value = json::parse(text.begin(), text.end());
    json::sax_parse(text.begin(), text.end(), &duplicates);
    if (!duplicates.found().empty()) {
      return absl::InvalidArgumentError(absl::StrCat("JSON: ", duplicates.found()));
    }
    return value;
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("JSON: ", Printable(error.what())));
  }
}

absl::StatusOr<std::optional<std::string>> JsonString(const json& object, const char* key) {
  auto member = object.find(key);
  if (member == object.end() || member->is_null()) return std::optional<std::string>();
  if (!member->is_string()) return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is not a string"));
  return std::optional<std::string>(member->get<std::string>());
}

absl::StatusOr<std::optional<uint64_t>> JsonUint(const json& object, const char* key) {
  auto member = object.find(key);
  if (member == object.end() || member->is_null()) return std::optional<uint64_t>();
  if (!member->is_number_unsigned()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is not a non-negative integer"));
  }
  return std::optional<uint64_t>(member->get<uint64_t>());
}

}  // namespace lazyblob::base
