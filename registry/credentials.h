#pragma once

// Where user names, passwords and tokens come from, asked at the time of each token request so that changed
// credentials are picked up. Secrets stay in memory; nothing here is ever logged.

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lazyblob::registry {

struct Credentials {
  std::string username;
  std::string password;
  std::string identity_token;  // OAuth2 refresh token; used instead of the password where set
  std::string registry_token;  // bearer token used as it is
};

// Thread-safe.
class CredentialsProvider {
 public:
  virtual ~CredentialsProvider() = default;
  // nullopt: anonymous. An error is a provider that should have known (say, a failing helper), naming it.
  virtual absl::StatusOr<std::optional<Credentials>> Lookup(absl::string_view host) const = 0;
  // As Lookup, for a call on one repository of the host; most providers know no difference.
  virtual absl::StatusOr<std::optional<Credentials>> LookupFor(absl::string_view host,
                                                               absl::string_view repository) const {
    static_cast<void>(repository);
    return Lookup(host);
  }
};

// Docker's config.json: "auths", "credHelpers", "credsStore" (docker-credential-* run with the host on stdin,
// bounded in time and output). `path` empty: $DOCKER_CONFIG/config.json, else ~/.docker/config.json. A
// missing file is no credentials; the file is read again when it changed.
std::shared_ptr<const CredentialsProvider> DockerConfigCredentials(std::string path);

}  // namespace lazyblob::registry
