#pragma once

// Where user names, passwords and tokens come from, asked at the time of each token request so that changed
// credentials are picked up. Secrets stay in memory; nothing here is ever logged.

#include <functional>
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

  bool empty() const { return username.empty() && identity_token.empty() && registry_token.empty(); }
};

// Sets user name and password from "user:password" in base64, the "auth" of Docker and CRI. No error repeats
// any of it.
absl::Status ParseBasicAuth(absl::string_view base64, Credentials* credentials);

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

// Kubernetes pull secrets in a file, or in the files of a directory: Secrets of type
// kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg as JSON, Lists of them, or a bare
// .dockerconfigjson. Keys match as kubelet matches them. A file that is not a regular one of the caller's or
// root's with mode 0600 or less is refused; what is wrong with a file is given to `log` (may be null) when it
// is found out, and is an error of look-ups that find nothing elsewhere. Read again when something changed;
// a missing path is no credentials.
std::shared_ptr<const CredentialsProvider> KubernetesSecretCredentials(
    std::string path, std::function<void(absl::string_view line)> log);

}  // namespace lazyblob::registry
