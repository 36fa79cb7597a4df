#include "registry/internal/refusal.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/json.h"
#include "base/status.h"

namespace lazyblob::registry {
namespace internal {
namespace {

constexpr size_t kMaxErrors = 64;
constexpr size_t kMaxCode = 60;
constexpr char kPayload[] = "lazyblob.registry.Refusal";

bool IsCode(absl::string_view text) {
  return !text.empty() && text.size() <= kMaxCode &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= 'A' && c <= 'Z') || c == '_'; });
}

// A digest as it is, or in a member of an object whatever its name is: registries do not agree on one.
void AddDigests(const nlohmann::json& detail, std::vector<base::Digest>* digests) {
  auto add = [digests](const nlohmann::json& value) {
    if (!value.is_string()) return;
    absl::StatusOr<base::Digest> digest = base::Digest::Parse(value.get<std::string>());
    if (digest.ok()) digests->push_back(*digest);
  };
  add(detail);
  if (detail.is_object()) {
    for (const auto& member : detail.items()) add(member.value());
  }
}

}  // namespace

ErrorBody ParseErrorBody(absl::string_view body) {
  ErrorBody parsed;
  absl::StatusOr<nlohmann::json> json = base::ParseJson(body, kMaxErrorBody + 1, 8);
  if (!json.ok() || !json->is_object()) return parsed;
  auto errors = json->find("errors");
  if (errors == json->end() || !errors->is_array()) return parsed;
  size_t count = 0;
  for (const auto& error : *errors) {
    if (!error.is_object() || ++count > kMaxErrors) break;
    absl::StatusOr<std::optional<std::string>> code = base::JsonString(error, "code");
    if (code.ok() && *code && IsCode(**code)) parsed.codes.push_back(**code);
    if (auto detail = error.find("detail"); detail != error.end()) AddDigests(*detail, &parsed.digests);
  }
  return parsed;
}

absl::Status WithRefusal(absl::Status status, int http_status, const ErrorBody& body) {
  std::string text = absl::StrCat(http_status, "\n", body.codes.empty() ? "" : body.codes.front());
  for (const base::Digest& digest : body.digests) absl::StrAppend(&text, "\n", digest.ToString());
  status.SetPayload(kPayload, absl::Cord(text));
  return status;
}

}  // namespace internal

std::optional<Refusal> RefusalOf(const absl::Status& status) {
  absl::optional<absl::Cord> payload = status.GetPayload(internal::kPayload);
  if (!payload) return std::nullopt;
  std::vector<std::string> lines = absl::StrSplit(std::string(*payload), '\n');
  Refusal refusal;
  if (lines.size() < 2 || !absl::SimpleAtoi(lines[0], &refusal.http_status)) return std::nullopt;
  refusal.code = std::move(lines[1]);
  for (size_t i = 2; i < lines.size(); ++i) {
    absl::StatusOr<base::Digest> digest = base::Digest::Parse(lines[i]);
    if (digest.ok()) refusal.digests.push_back(*digest);
  }
  return refusal;
}

}  // namespace lazyblob::registry
