#pragma once

// One place that serves a repository: the registry itself or one of its mirrors. Values; thread-safe as such.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "oci/reference.h"
#include "registry/client.h"
#include "registry/internal/url.h"

namespace lazyblob::registry::internal {

struct Endpoint {
  Url base;                     // "https://registry-1.docker.io:443/"
  std::string credential_host;  // the name credentials are looked up under
  std::string host;             // as in references: what a link estimate is filed under
  std::string ns;               // of a mirror: the host it stands for
  bool is_mirror() const { return !ns.empty(); }

  // The URL of "/v2/<repository><rest>", with ?ns= where this is a mirror. `rest` is encoded already.
  absl::StatusOr<Url> ApiUrl(const std::string& repository, const std::string& rest) const;
};

// Mirrors in order, the host itself last. InvalidArgument if a host is not one.
absl::StatusOr<std::vector<Endpoint>> EndpointsOf(const oci::Reference& reference,
                                                  const ClientOptions& options);

}  // namespace lazyblob::registry::internal
