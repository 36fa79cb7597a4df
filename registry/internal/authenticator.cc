#include "registry/internal/authenticator.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/digest.h"
#include "base/status.h"
#include "registry/internal/token_request.h"

namespace lazyblob::registry::internal {
namespace {

constexpr size_t kMaxEntries = 4096;
// Callers that come one after another within this time share a look-up: a burst must not start a helper each.
constexpr absl::Duration kFreshLookup = absl::Seconds(1);
constexpr absl::Duration kBasicAge = absl::Minutes(1);  // of credentials that are sent without asking again

// Bounds a cache whose keys outsiders can multiply; losing an entry costs one request.
template <typename Map>
void Bound(Map* map) {
  while (map->size() >= kMaxEntries) map->erase(map->begin());
}

std::string IdentityName(const std::optional<Credentials>& credentials) {
  if (!credentials) return "anonymous";
  std::string text;
  for (const std::string* part : {&credentials->username, &credentials->password,
                                  &credentials->identity_token, &credentials->registry_token}) {
    absl::StrAppend(&text, part->size(), ":", *part);
  }
  return base::Digest::Of(text).hex();
}

std::string IdentityKey(const CredentialsProvider* provider, const Endpoint& endpoint) {
  return absl::StrFormat("%p %s/%s", provider, endpoint.credential_host, endpoint.repository);
}

std::string TokenKey(const std::string& origin, const std::string& scope, const std::string& identity) {
  return absl::StrCat(origin, " ", identity, " ", scope);
}

}  // namespace

std::optional<Authenticator::Way> Authenticator::WayOf(const std::string& origin) const {
  absl::MutexLock lock(&mutex_);
  auto found = ways_.find(origin);
  if (found == ways_.end()) return std::nullopt;
  return found->second;
}

std::optional<Authenticator::Identity> Authenticator::KnownIdentity(
    const std::string& key, const std::shared_ptr<const CredentialsProvider>& provider) const {
  absl::MutexLock lock(&mutex_);
  auto found = identities_.find(key);
  // The address may have been another provider's before.
  if (found == identities_.end() || found->second.provider.lock() != provider) return std::nullopt;
  return found->second;
}

std::optional<Authenticator::Token> Authenticator::KnownToken(const std::string& key) const {
  absl::MutexLock lock(&mutex_);
  auto found = tokens_.find(key);
  if (found == tokens_.end() || clock_.Monotonic() >= found->second.expires) return std::nullopt;
  return found->second;
}

absl::StatusOr<Authenticator::Identity> Authenticator::LookUp(const Endpoint& endpoint,
                                                              const CallContext& context) {
  std::shared_ptr<const CredentialsProvider> provider = ProviderOf(context);
  std::string key = IdentityKey(provider.get(), endpoint);
  return lookups_.Do(key, context, clock_, [&]() -> absl::StatusOr<Identity> {
    std::optional<Identity> known = KnownIdentity(key, provider);
    if (known && clock_.Monotonic() - known->looked_up < kFreshLookup) return *known;
    Identity identity;
    if (provider != nullptr) {
      absl::StatusOr<std::optional<Credentials>> found =
          provider->LookupFor(endpoint.credential_host, endpoint.repository);
      if (!found.ok())
        return absl::UnauthenticatedError(absl::StrCat("credentials: ", found.status().message()));
      identity.credentials = *std::move(found);
    }
    identity.provider = provider;
    identity.name = IdentityName(identity.credentials);
    identity.looked_up = clock_.Monotonic();
    absl::MutexLock lock(&mutex_);
    Bound(&identities_);
    identities_[key] = identity;
    return identity;
  });
}

absl::StatusOr<std::string> Authenticator::BasicHeader(const Endpoint& endpoint, const CallContext& context) {
  std::shared_ptr<const CredentialsProvider> provider = ProviderOf(context);
  std::optional<Identity> identity = KnownIdentity(IdentityKey(provider.get(), endpoint), provider);
  const bool usable = identity && identity->credentials;
  // Some registries refuse what has expired with 403, which says nothing of credentials.
  if (!usable || clock_.Monotonic() - identity->looked_up > kBasicAge) {
    absl::StatusOr<Identity> fresh = LookUp(endpoint, context);
    if (!fresh.ok() && !usable) return fresh.status();
    if (fresh.ok()) identity = *std::move(fresh);
  }
  if (!identity->credentials || identity->credentials->username.empty()) {
    return absl::UnauthenticatedError(
        absl::StrCat(endpoint.base.HostForMessages(),
                     " wants a user name and password and none are known for it (log in "
                     "with docker login or skopeo login)"));
  }
  return absl::StrCat("Basic ", absl::Base64Escape(absl::StrCat(identity->credentials->username, ":",
                                                                identity->credentials->password)));
}

absl::StatusOr<Authenticator::Token> Authenticator::RequestToken(const Endpoint& endpoint, const Way& way,
                                                                 const std::string& scope,
                                                                 const Identity& identity,
                                                                 const CallContext& context) {
  std::string origin = endpoint.base.Origin();
  TokenQuery query;
  query.registry = endpoint.base;
  query.tls = endpoint.tls;
  query.realm = way.realm;
  query.service = way.service;
  query.scope = scope;
  query.credentials = identity.credentials;
  query.allow_private = options_.allow_private_redirects;
  {
    absl::MutexLock lock(&mutex_);
    if (auto theirs = scopes_.find(absl::StrCat(origin, " ", scope)); theirs != scopes_.end())
      query.scope = context.access == Access::kPush ? MergeScopes(scope, theirs->second) : theirs->second;
  }
  // Judged from when it was asked for: a slow answer is an older token.
  absl::Duration asked = clock_.Monotonic();
  ASSIGN_OR_RETURN(TokenAnswer answer, FetchToken(query, context, &transport_, &hosts_, clock_, sleep_));
  Token token{std::move(answer.token), asked + answer.lifetime * 0.9, asked + answer.lifetime};
  absl::MutexLock lock(&mutex_);
  Bound(&tokens_);
  tokens_[TokenKey(origin, scope, identity.name)] = token;
  return token;
}

absl::StatusOr<Authenticator::Token> Authenticator::NewToken(const Endpoint& endpoint, const Way& way,
                                                             const std::string& scope,
                                                             const Identity& identity,
                                                             const CallContext& context) {
  std::string key = TokenKey(endpoint.base.Origin(), scope, identity.name);
  return requests_.Do(key, context, clock_, [&]() -> absl::StatusOr<Token> {
    std::optional<Token> token = KnownToken(key);
    if (token && clock_.Monotonic() < token->refresh_at) return *token;
    return RequestToken(endpoint, way, scope, identity, context);
  });
}

absl::StatusOr<std::string> Authenticator::BearerHeader(const Endpoint& endpoint, const Way& way,
                                                        const std::string& scope,
                                                        const CallContext& context) {
  std::shared_ptr<const CredentialsProvider> provider = ProviderOf(context);
  std::optional<Identity> identity = KnownIdentity(IdentityKey(provider.get(), endpoint), provider);
  if (identity && identity->credentials && !identity->credentials->registry_token.empty()) {
    return absl::StrCat("Bearer ", identity->credentials->registry_token);
  }
  std::optional<Token> token;
  std::string key = identity ? TokenKey(endpoint.base.Origin(), scope, identity->name) : "";
  if (identity) token = KnownToken(key);
  if (token && clock_.Monotonic() < token->refresh_at) return absl::StrCat("Bearer ", token->value);
  if (token) {
    // Still good: one caller renews it, the others go on with the old one, and so does that one if it fails.
    std::optional<absl::StatusOr<Token>> renewed = requests_.TryDo(key, [&]() -> absl::StatusOr<Token> {
      std::optional<Token> known = KnownToken(key);
      if (known && clock_.Monotonic() < known->refresh_at) return *known;
      absl::StatusOr<Identity> current = LookUp(endpoint, context);
      if (!current.ok()) return current.status();
      return RequestToken(endpoint, way, scope, *current, context);
    });
    if (renewed && renewed->ok()) token = **renewed;
    return absl::StrCat("Bearer ", token->value);
  }
  ASSIGN_OR_RETURN(Identity current, LookUp(endpoint, context));
  if (current.credentials && !current.credentials->registry_token.empty()) {
    return absl::StrCat("Bearer ", current.credentials->registry_token);
  }
  ASSIGN_OR_RETURN(Token fresh, NewToken(endpoint, way, scope, current, context));
  return absl::StrCat("Bearer ", fresh.value);
}

absl::StatusOr<std::string> Authenticator::Authorize(const Endpoint& endpoint, const std::string& scope,
                                                     const CallContext& context) {
  std::optional<Way> way = WayOf(endpoint.base.Origin());
  if (!way) return std::string();
  return way->bearer ? BearerHeader(endpoint, *way, scope, context) : BasicHeader(endpoint, context);
}

absl::Status Authenticator::Learn(const Endpoint& endpoint, const std::string& scope,
                                  const HttpResponse& response, const std::string& used,
                                  const CallContext& context) {
  std::string origin = endpoint.base.Origin();
  const Challenge* chosen = nullptr;
  std::vector<Challenge> challenges;
  for (const auto& [name, value] : response.headers) {
    if (name != "www-authenticate") continue;
    for (Challenge& challenge : ParseChallenges(value)) challenges.push_back(std::move(challenge));
  }
  for (const Challenge& challenge : challenges) {
    bool bearer = challenge.scheme == "bearer" && !challenge.Get("realm").empty();
    if (bearer && (chosen == nullptr || chosen->scheme == "basic")) chosen = &challenge;
    if (challenge.scheme == "basic" && chosen == nullptr) chosen = &challenge;
  }
  if (chosen == nullptr) {
    return absl::UnauthenticatedError(
        absl::StrCat(endpoint.base.HostForMessages(), " answered 401 without a challenge this client knows"));
  }
  std::shared_ptr<const CredentialsProvider> provider = ProviderOf(context);
  std::string identity_key = IdentityKey(provider.get(), endpoint);
  absl::MutexLock lock(&mutex_);
  Bound(&ways_);
  Bound(&scopes_);
  ways_[origin] = Way{chosen->scheme == "bearer", chosen->Get("realm"), chosen->Get("service")};
  std::string theirs = chosen->Get("scope");
  if (!theirs.empty()) scopes_[absl::StrCat(origin, " ", scope)] = std::move(theirs);
  if (used.empty()) return absl::OkStatus();
  // Forget what was refused, unless somebody has replaced it meanwhile.
  auto identity = identities_.find(identity_key);
  if (identity == identities_.end()) return absl::OkStatus();
  auto token = tokens_.find(TokenKey(origin, scope, identity->second.name));
  if (token == tokens_.end()) {
    identities_.erase(identity);  // Basic, or a bearer token from the credentials
  } else if (absl::StrCat("Bearer ", token->second.value) == used) {
    tokens_.erase(token);
    identities_.erase(identity);
  }
  return absl::OkStatus();
}

}  // namespace lazyblob::registry::internal
