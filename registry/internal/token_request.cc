#include "registry/internal/token_request.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/json.h"
#include "base/status.h"
#include "registry/internal/headers.h"

namespace lazyblob::registry::internal {
namespace {

constexpr uint64_t kMaxAnswer = 1 << 20;
constexpr size_t kMaxToken = 32 << 10;  // has to fit into a request header
constexpr int kMaxHops = 5;
constexpr absl::Duration kDefaultLifetime = absl::Seconds(60);

class Collector final : public ResponseHandler {
 public:
  absl::StatusOr<BodyAction> OnResponse(const HttpResponse& response) override {
    response_ = response;
    return BodyAction::kContinue;
  }
  absl::StatusOr<BodyAction> OnBody(absl::Span<const uint8_t> data) override {
    if (body_.size() + data.size() > kMaxAnswer) return absl::DataLossError("answer over 1 MiB");
    body_.append(reinterpret_cast<const char*>(data.data()), data.size());
    return BodyAction::kContinue;
  }
  const HttpResponse& response() const { return response_; }
  const std::string& body() const { return body_; }

 private:
  HttpResponse response_;
  std::string body_;
};

bool HasPassword(const TokenQuery& query) {
  return query.credentials && !query.credentials->username.empty();
}
bool HasIdentityToken(const TokenQuery& query) {
  return query.credentials && !query.credentials->identity_token.empty();
}

HttpRequest MakeRequest(const TokenQuery& query, const Url& realm) {
  HttpRequest request;
  request.url = realm;
  std::string form = absl::StrCat("service=", PercentEncode(query.service));
  if (HasIdentityToken(query)) {
    request.method = "POST";
    request.headers.emplace_back("Content-Type", "application/x-www-form-urlencoded");
    request.body = absl::StrCat("grant_type=refresh_token&client_id=lazyblob&", form,
                                "&scope=", PercentEncode(query.scope),
                                "&refresh_token=", PercentEncode(query.credentials->identity_token));
    return request;
  }
  // Several scopes are several parameters.
  for (absl::string_view scope : absl::StrSplit(query.scope, ' ', absl::SkipEmpty())) {
    absl::StrAppend(&form, "&scope=", PercentEncode(scope));
  }
  char separator = absl::StrContains(realm.path_and_query, "?") ? '&' : '?';
  absl::StrAppend(&request.url.path_and_query, std::string(1, separator), form);
  if (HasPassword(query)) {
    absl::StrAppend(&request.url.path_and_query, "&account=", PercentEncode(query.credentials->username));
    request.headers.emplace_back(
        "Authorization",
        absl::StrCat("Basic ", absl::Base64Escape(absl::StrCat(query.credentials->username, ":",
                                                               query.credentials->password))));
  }
  return request;
}

absl::Status ExplainRefusal(const TokenQuery& query, const Url& realm, int status) {
  std::string answer = absl::StrCat("token server ", realm.HostForMessages(), " answered ", status);
  if (status == 408 || status == 429 || status >= 500) return absl::UnavailableError(answer);
  bool anonymous = !HasPassword(query) && !HasIdentityToken(query);
  return absl::UnauthenticatedError(absl::StrCat(
      answer, anonymous ? "; no credentials are known for " : " to the credentials known for ",
      query.registry.HostForMessages(), anonymous ? " (log in with docker login or skopeo login)" : ""));
}

}  // namespace

std::string MergeScopes(absl::string_view ours, absl::string_view theirs) {
  using Scope = std::pair<absl::string_view, std::vector<absl::string_view>>;  // resource, actions
  std::vector<Scope> merged;
  bool common = false;
  for (absl::string_view list : {ours, theirs}) {
    for (absl::string_view scope : absl::StrSplit(list, ' ', absl::SkipEmpty())) {
      size_t colon = std::min(scope.rfind(':'), scope.size());
      absl::string_view resource = scope.substr(0, colon);
      auto found = std::find_if(merged.begin(), merged.end(),
                                [&](const Scope& known) { return known.first == resource; });
      common = common || (list.data() == theirs.data() && found != merged.end());
      if (found == merged.end()) found = merged.insert(merged.end(), Scope(resource, {}));
      for (absl::string_view action : absl::StrSplit(scope.substr(std::min(colon + 1, scope.size())), ',')) {
        bool known = std::find(found->second.begin(), found->second.end(), action) != found->second.end();
        if (!known) found->second.push_back(action);
      }
    }
  }
  if (!common) return std::string(theirs);
  return absl::StrJoin(merged, " ", [](std::string* out, const Scope& scope) {
    absl::StrAppend(out, scope.first, ":", absl::StrJoin(scope.second, ","));
  });
}

absl::StatusOr<TokenAnswer> ParseTokenAnswer(absl::string_view text) {
  absl::StatusOr<nlohmann::json> json = base::ParseJson(text, kMaxAnswer);
  // The parser quotes what it read, which may be a token.
  if (!json.ok() || !json->is_object())
    return absl::DataLossError("the token server's answer is not a JSON object");
  std::string token;
  for (const char* key : {"token", "access_token"}) {
    absl::StatusOr<std::optional<std::string>> value = base::JsonString(*json, key);
    if (value.ok() && *value && token.empty()) token = **value;
  }
  if (token.empty()) return absl::DataLossError("the token server's answer holds no token");
  bool printable = std::all_of(token.begin(), token.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (token.size() > kMaxToken || !printable)
    return absl::DataLossError("the token server's token is not usable");
  TokenAnswer answer{std::move(token), kDefaultLifetime};
  absl::StatusOr<std::optional<uint64_t>> seconds = base::JsonUint(*json, "expires_in");
  if (seconds.ok() && *seconds && **seconds > 0) {
    answer.lifetime = absl::Seconds(std::min<uint64_t>(**seconds, 7 * 24 * 3600));
  }
  return answer;
}

absl::StatusOr<TokenAnswer> FetchToken(const TokenQuery& query, const CallContext& context,
                                       Transport* transport, HostStates* hosts, const base::Clock& clock,
                                       const Sleeper& sleep) {
  absl::StatusOr<Url> realm = Url::Parse(query.realm);
  if (!realm.ok()) return absl::DataLossError(absl::StrCat("token realm: ", realm.status().message()));
  RETURN_IF_ERROR(base::Annotate(CheckTarget(query.registry, *realm, query.allow_private), "token realm"));
  HttpRequest request = MakeRequest(query, *realm);
  for (int hop = 0; hop <= kMaxHops; ++hop) {
    RETURN_IF_ERROR(base::Annotate(hosts->AwaitTurn(request.url, context, sleep), "token server"));
    request.deadline = context.deadline;
    request.cancel = context.cancel;
    request.tls = TlsAt(query.tls, query.registry, request.url);
    request.allow_local_address = MayConnectLocally(query.registry, request.url, query.allow_private);
    Collector collector;
    absl::Status status = transport->Perform(request, &collector, nullptr);
    if (!status.ok()) {
      return base::Annotate(status, absl::StrCat("token server ", request.url.HostForMessages()));
    }
    const HttpResponse& response = collector.response();
    if (response.status == 200 || response.status == 201) return ParseTokenAnswer(collector.body());
    if (response.status == 429 || response.status == 503) {
      std::optional<absl::Duration> pause = ParseRetryAfter(response.Get("retry-after"), clock.WallTime());
      if (pause) hosts->Pause(request.url.Origin(), *pause);
    }
    bool redirect = response.status >= 301 && response.status <= 308 && request.method == "GET" &&
                    !response.Get("location").empty();
    if (!redirect) return ExplainRefusal(query, request.url, response.status);
    absl::StatusOr<Url> next = request.url.Resolve(response.Get("location"));
    if (!next.ok())
      return absl::DataLossError(absl::StrCat("token server redirect: ", next.status().message()));
    RETURN_IF_ERROR(
        base::Annotate(CheckTarget(query.registry, *next, query.allow_private), "token server redirect"));
    if (request.url.scheme == "https" && next->scheme != "https") {
      return absl::PermissionDeniedError("token server redirects from https to http; refused");
    }
    if (next->Origin() != request.url.Origin()) request.headers.clear();
    request.url = *next;
  }
  return absl::DataLossError(
      absl::StrCat("token server ", realm->HostForMessages(), " redirects more than 5 times"));
}

}  // namespace lazyblob::registry::internal
