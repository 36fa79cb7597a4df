#include "base/json.h"

#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::base {
namespace {

using nlohmann::json;

// Parser callback state: refuses duplicate keys and too deep nesting, which nlohmann by itself accepts.
class Guard {
 public:
  explicit Guard(int max_depth) : max_depth_(max_depth) {}

  bool operator()(int depth, json::parse_event_t event, json& parsed) {
    using Event = json::parse_event_t;
    if (depth > max_depth_ && problem_.empty()) problem_ = absl::StrCat("nested deeper than ", max_depth_);
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end && !keys_.empty()) keys_.pop_back();
    if (event == Event::key && !keys_.empty()) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys_.back().insert(key).second && problem_.empty()) {
        problem_ = absl::StrCat("duplicate key \"", Printable(key), "\"");
      }
    }
    return true;
  }
  const std::string& problem() const { return problem_; }

 private:
  const int max_depth_;
  std::vector<std::set<std::string>> keys_;
  std::string problem_;
};

// Depth of the deepest bracket, counted without recursion: nlohmann builds and destroys values recursively in
// places.
bool DeeperThan(absl::string_view text, int max_depth) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > max_depth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<json> ParseJson(absl::string_view text, uint64_t max_bytes, int max_depth) {
  if (text.size() > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("JSON document of ", text.size(), " bytes, limit is ", max_bytes));
  }
  if (DeeperThan(text, max_depth)) {
    return absl::InvalidArgumentError(absl::StrCat("JSON: nested deeper than ", max_depth));
  }
  Guard guard(max_depth);
  try {
    json value = json::parse(text.begin(), text.end(), std::ref(guard));
    if (!guard.problem().empty()) return absl::InvalidArgumentError(absl::StrCat("JSON: ", guard.problem()));
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
