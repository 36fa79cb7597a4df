#pragma once

// One exchange with a token server (Docker's token specification; OAuth2 form for identity tokens). Pure but
// for the transport; thread-safe.

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "registry/client.h"
#include "registry/credentials.h"
#include "registry/internal/host_state.h"
#include "registry/internal/transport.h"

namespace lazyblob::registry::internal {

struct TokenQuery {
  Url registry;  // on whose behalf
  std::string realm;
  std::string service;
  std::string scope;  // space-separated
  std::optional<Credentials> credentials;
  bool allow_private = false;
  TlsPtr tls;  // of the registry
};

struct TokenAnswer {
  std::string token;
  absl::Duration lifetime;
};

// Unauthenticated: refused; PermissionDenied: the realm is somewhere a registry has no business to send us;
// Unavailable: worth a retry. Credentials go to the realm itself only, never along a redirect to another
// origin.
absl::StatusOr<TokenAnswer> FetchToken(const TokenQuery& query, const CallContext& context,
                                       Transport* transport, HostStates* hosts, const base::Clock& clock,
                                       const Sleeper& sleep);

// The scope to ask for when we want `ours` and a challenge named `theirs`: ours first and whole, since a
// challenge to a check speaks of pulling only; theirs as it is where it names other resources, for the
// registry knows its own names.
std::string MergeScopes(absl::string_view ours, absl::string_view theirs);

// What a token server's JSON says; without "expires_in" a token lives 60 s.
absl::StatusOr<TokenAnswer> ParseTokenAnswer(absl::string_view json);

}  // namespace lazyblob::registry::internal
