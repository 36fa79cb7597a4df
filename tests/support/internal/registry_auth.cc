#include "tests/support/internal/registry_auth.h"

#include <algorithm>

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

namespace lazyblob::support::internal {
namespace {

// Adds "repository:name:pull" and so on for "repository:name:pull,push".
void AddGrants(absl::string_view scope, std::set<std::string>* grants) {
  const size_t colon = scope.rfind(':');
  if (colon == absl::string_view::npos) return;
  for (const absl::string_view action : absl::StrSplit(scope.substr(colon + 1), ',')) {
    grants->insert(absl::StrCat(scope.substr(0, colon + 1), action));
  }
}

std::string Field(const std::vector<std::pair<std::string, std::string>>& form, absl::string_view name) {
  for (const auto& [key, value] : form) {
    if (key == name) return value;
  }
  return {};
}

}  // namespace

void RegistryAuth::Configure(AuthOptions options, std::string host) {
  absl::MutexLock lock(&mutex_);
  options_ = std::move(options);
  host_ = std::move(host);
}

bool RegistryAuth::BasicMatches(const HttpRequest& request) const {
  const std::string header = request.Header("authorization");
  std::string decoded;
  if (!absl::StartsWithIgnoreCase(header, "basic ") ||
      !absl::Base64Unescape(absl::string_view(header).substr(6), &decoded)) {
    return false;
  }
  return decoded == absl::StrCat(options_.username, ":", options_.password);
}

std::string RegistryAuth::Challenge(const HttpRequest& request, absl::string_view repository,
                                    absl::string_view actions, absl::string_view also_pull) {
  absl::MutexLock lock(&mutex_);
  if (options_.kind == AuthOptions::Kind::kNone) return {};
  if (options_.kind == AuthOptions::Kind::kBasic) {
    return BasicMatches(request) ? std::string() : absl::StrCat("Basic realm=\"", options_.service, "\"");
  }
  std::string scope = repository.empty() ? "" : absl::StrCat("repository:", repository, ":", actions);
  if (!also_pull.empty()) absl::StrAppend(&scope, " repository:", also_pull, ":pull");
  std::set<std::string> grants;
  for (const absl::string_view part : absl::StrSplit(scope, ' ', absl::SkipEmpty())) AddGrants(part, &grants);
  std::string error;
  const std::string header = request.Header("authorization");
  if (absl::StartsWithIgnoreCase(header, "bearer ")) {
    const auto token = tokens_.find(header.substr(7));
    if (token == tokens_.end() || token->second.expires <= absl::Now()) {
      error = "invalid_token";
    } else if (!std::includes(token->second.grants.begin(), token->second.grants.end(), grants.begin(),
                              grants.end())) {
      error = "insufficient_scope";
    } else {
      return {};
    }
  }
  const std::string realm =
      options_.realm.empty() ? absl::StrCat("http://", host_, "/token") : options_.realm;
  std::string challenge = absl::StrCat("Bearer realm=\"", realm, "\",service=\"", options_.service, "\"");
  if (!scope.empty()) absl::StrAppend(&challenge, ",scope=\"", scope, "\"");
  if (!error.empty()) absl::StrAppend(&challenge, ",error=\"", error, "\"");
  return challenge;
}

bool RegistryAuth::MayHaveToken(const HttpRequest& request) const {
  if (request.method != "POST") {
    return options_.username.empty() ? request.Header("authorization").empty() : BasicMatches(request);
  }
  const auto form = ParseForm(request.body);
  if (Field(form, "grant_type") == "refresh_token") {
    return !options_.identity_token.empty() && Field(form, "refresh_token") == options_.identity_token;
  }
  return Field(form, "grant_type") == "password" && Field(form, "username") == options_.username &&
         Field(form, "password") == options_.password;
}

RegistryAuth::TokenAnswer RegistryAuth::IssueToken(const HttpRequest& request) {
  absl::MutexLock lock(&mutex_);
  ++requests_;
  if (!MayHaveToken(request)) {
    return {401, R"({"errors":[{"code":"UNAUTHORIZED","message":"wrong user name or password"}]})"};
  }
  Token token;
  size_t scopes = 0;
  const auto fields = request.method == "POST" ? ParseForm(request.body) : ParseForm(request.query);
  for (const auto& [name, value] : fields) {
    if (name != "scope") continue;
    for (const absl::string_view scope : absl::StrSplit(value, ' ', absl::SkipEmpty())) {
      if (++scopes > 1 && options_.first_scope_only) break;
      AddGrants(scope, &token.grants);
    }
  }
  if (scopes > 1 && options_.refuses_many_scopes) {
    return {400, R"({"errors":[{"code":"DENIED","message":"one scope only"}]})"};
  }
  for (const std::string& grant : options_.never_granted) token.grants.erase(grant);
  token.expires = absl::Now() + options_.token_ttl;
  const std::string text = absl::StrCat("test-token-", ++issued_);
  tokens_[text] = token;
  nlohmann::json answer = {{"token", text}, {"access_token", text}};
  if (options_.state_expires_in) answer["expires_in"] = absl::ToInt64Seconds(options_.token_ttl);
  answer["issued_at"] = absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone());
  return {200, answer.dump()};
}

void RegistryAuth::RevokeTokens() {
  absl::MutexLock lock(&mutex_);
  tokens_.clear();
}

size_t RegistryAuth::token_requests() const {
  absl::MutexLock lock(&mutex_);
  return requests_;
}

}  // namespace lazyblob::support::internal
