#include "registry/internal/docker_auth.h"

#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status.h"

namespace lazyblob::registry {

absl::Status ParseBasicAuth(absl::string_view base64, Credentials* credentials) {
  std::string plain;
  if (!absl::Base64Unescape(base64, &plain)) return absl::InvalidArgumentError("\"auth\" is not base64");
  size_t colon = plain.find(':');
  if (colon == std::string::npos) return absl::InvalidArgumentError("\"auth\" is not user:password");
  credentials->username = plain.substr(0, colon);
  credentials->password = plain.substr(colon + 1);
  // Some writers pad with NUL bytes.
  while (!credentials->password.empty() && credentials->password.back() == '\0')
    credentials->password.pop_back();
  return absl::OkStatus();
}

namespace internal {
namespace {

absl::StatusOr<Credentials> ParseAuth(const nlohmann::json& entry) {
  Credentials credentials;
  if (!entry.is_object()) return absl::InvalidArgumentError("entry is not an object");
  ASSIGN_OR_RETURN(std::optional<std::string> auth, base::JsonString(entry, "auth"));
  ASSIGN_OR_RETURN(std::optional<std::string> username, base::JsonString(entry, "username"));
  ASSIGN_OR_RETURN(std::optional<std::string> password, base::JsonString(entry, "password"));
  ASSIGN_OR_RETURN(std::optional<std::string> identity, base::JsonString(entry, "identitytoken"));
  ASSIGN_OR_RETURN(std::optional<std::string> bearer, base::JsonString(entry, "registrytoken"));
  credentials.username = username.value_or("");
  credentials.password = password.value_or("");
  credentials.identity_token = identity.value_or("");
  credentials.registry_token = bearer.value_or("");
  if (auth && !auth->empty()) RETURN_IF_ERROR(ParseBasicAuth(*auth, &credentials));
  return credentials;
}

}  // namespace

absl::StatusOr<std::map<std::string, Credentials>> ParseDockerAuths(const nlohmann::json& auths) {
  std::map<std::string, Credentials> parsed;
  for (const auto& [key, entry] : auths.items()) {
    absl::StatusOr<Credentials> credentials = ParseAuth(entry);
    if (!credentials.ok()) {
      return base::Annotate(credentials.status(),
                            absl::StrCat("auths of ", base::Printable(key.substr(0, 100))));
    }
    if (!credentials->empty()) parsed.emplace(key, *std::move(credentials));
  }
  return parsed;
}

}  // namespace internal
}  // namespace lazyblob::registry
