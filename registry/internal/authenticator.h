#pragma once

// Who we are to a registry: turns challenges and credentials into Authorization headers. Remembers, per
// origin, how it wants to be spoken to; keeps tokens per (origin, scope, identity of the credentials) and
// renews them before they expire. Thread-safe.

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "registry/client.h"
#include "registry/credentials.h"
#include "registry/internal/endpoint.h"
#include "registry/internal/headers.h"
#include "registry/internal/host_state.h"
#include "registry/internal/single_flight.h"
#include "registry/internal/transport.h"

namespace lazyblob::registry::internal {

class Authenticator {
 public:
  // All must outlive the object.
  Authenticator(const ClientOptions* options, Transport* transport, HostStates* hosts, Sleeper sleep)
      : options_(*options),
        transport_(*transport),
        hosts_(*hosts),
        clock_(*options->clock),
        sleep_(std::move(sleep)) {}

  // The Authorization value for `endpoint` and `scope`, empty for none: by what is known of the origin.
  // Unauthenticated: the token server refused; Unavailable: it could not be asked (worth a retry).
  absl::StatusOr<std::string> Authorize(const Endpoint& endpoint, const std::string& scope,
                                        const CallContext& context);

  // `endpoint` answered 401 to a request that carried `used`: learns from the challenges and forgets what was
  // used. Unauthenticated if nothing can be learnt from the answer.
  absl::Status Learn(const Endpoint& endpoint, const std::string& scope, const HttpResponse& response,
                     const std::string& used, const CallContext& context) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Way {  // how an origin wants to be authenticated to
    bool bearer = false;
    std::string realm;
    std::string service;
  };
  struct Identity {  // credentials as last looked up
    std::weak_ptr<const CredentialsProvider> provider;
    std::optional<Credentials> credentials;
    std::string name;  // digest of the credentials
    absl::Duration looked_up;
  };
  struct Token {
    std::string value;
    absl::Duration refresh_at;
    absl::Duration expires;
  };

  std::shared_ptr<const CredentialsProvider> ProviderOf(const CallContext& context) const {
    return context.credentials != nullptr ? context.credentials : options_.credentials;
  }
  std::optional<Way> WayOf(const std::string& origin) const ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Identity> KnownIdentity(const std::string& key,
                                        const std::shared_ptr<const CredentialsProvider>& provider) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  std::optional<Token> KnownToken(const std::string& key) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Credentials looked up now, or by whoever is at it.
  absl::StatusOr<Identity> LookUp(const Endpoint& endpoint, const CallContext& context)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::string> BasicHeader(const Endpoint& endpoint, const CallContext& context);
  absl::StatusOr<std::string> BearerHeader(const Endpoint& endpoint, const Way& way, const std::string& scope,
                                           const CallContext& context);
  absl::StatusOr<Token> NewToken(const Endpoint& endpoint, const Way& way, const std::string& scope,
                                 const Identity& identity, const CallContext& context)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Token> RequestToken(const Endpoint& endpoint, const Way& way, const std::string& scope,
                                     const Identity& identity, const CallContext& context);

  const ClientOptions& options_;
  Transport& transport_;
  HostStates& hosts_;
  const base::Clock& clock_;
  const Sleeper sleep_;
  SingleFlight<Identity> lookups_;
  SingleFlight<Token> requests_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Way> ways_ ABSL_GUARDED_BY(mutex_);             // by origin
  std::map<std::string, std::string> scopes_ ABSL_GUARDED_BY(mutex_);   // by origin and our scope: theirs
  std::map<std::string, Identity> identities_ ABSL_GUARDED_BY(mutex_);  // by provider, host, repository
  std::map<std::string, Token> tokens_ ABSL_GUARDED_BY(mutex_);         // by origin, scope and identity
};

}  // namespace lazyblob::registry::internal
