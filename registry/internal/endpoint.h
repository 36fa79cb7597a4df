#pragma once

// One place that serves a repository: the registry itself or one of its mirrors. Values; thread-safe as such.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "oci/reference.h"
#include "registry/client.h"
#include "registry/internal/transport.h"
#include "registry/internal/url.h"

namespace lazyblob::registry::internal {

struct Endpoint {
  Url base;                     // "https://registry-1.docker.io:443/"
  std::string path = "/v2";     // in front of the repository
  std::string credential_host;  // the name credentials are looked up under
  std::string host;             // as in references: what a link estimate is filed under
  std::string repository;       // credentials may be for this one only
  std::string ns;               // of another host than the reference's: the host it stands for
  Headers headers;              // to be sent to `base`
  TlsPtr tls;
  bool guessed_tls = false;  // the next one is the same host by plain http

  // The URL of "<path>/<repository><rest>", with ?ns= where needed. `rest` is encoded already.
  absl::StatusOr<Url> ApiUrl(const std::string& repository, const std::string& rest) const;
};

// What is wanted of an endpoint.
enum class Capability : uint8_t { kPull, kResolve, kPush };

// Those that may be asked, in order, at least one; of those that may be pushed to the first alone.
// InvalidArgument if a host is not one; Unavailable if none has the capability; errors of the configuration
// as they are.
absl::StatusOr<std::vector<Endpoint>> EndpointsOf(const oci::Reference& reference,
                                                  const ClientOptions& options,
                                                  Capability wanted = Capability::kPull);

}  // namespace lazyblob::registry::internal
