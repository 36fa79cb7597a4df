#pragma once

// Several sources of credentials as one, asked in order.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "daemon/config.h"
#include "registry/credentials.h"

namespace lazyblob::daemon {

// The first credentials any of them has; an error only when none has any and one failed. Thread-safe.
class CredentialChain final : public registry::CredentialsProvider {
 public:
  using Provider = std::shared_ptr<const registry::CredentialsProvider>;
  explicit CredentialChain(std::vector<Provider> providers) : providers_(std::move(providers)) {}

  absl::StatusOr<std::optional<registry::Credentials>> Lookup(absl::string_view host) const override;
  absl::StatusOr<std::optional<registry::Credentials>> LookupFor(absl::string_view host,
                                                                 absl::string_view repository) const override;

 private:
  const std::vector<Provider> providers_;
};

// What the daemon knows: living requesters, kubelet's pulls (null: not asked), Kubernetes' secrets, Docker's
// config. `log` gets a line for each file that is wrong; may be null.
std::shared_ptr<const registry::CredentialsProvider> MakeCredentialChain(
    const Config::Credentials& config, CredentialChain::Provider requesters, CredentialChain::Provider cri,
    std::function<void(absl::string_view line)> log);

// Of a call over gRPC: those of the file that it names, else `configured` (null: none). Never null, which
// would be all that the daemon knows, the credentials of others' mounts among them.
CredentialChain::Provider CredentialsOfCall(const std::string& docker_config,
                                            const CredentialChain::Provider& configured);

}  // namespace lazyblob::daemon
