#pragma once

// What a configuration says of registries, put together for the daemon and the command line: where hosts are
// asked, whom to trust, and whose credentials.

#include <functional>
#include <memory>

#include "absl/strings/string_view.h"
#include "daemon/config.h"
#include "daemon/cri_credentials.h"
#include "daemon/cri_proxy_service.h"
#include "daemon/living_requesters.h"
#include "registry/client.h"

namespace lazyblob::daemon {

// Thread-safe.
class RegistryAccess {
 public:
  // `log` gets lines about files that are wrong or insecure, never a secret; may be null.
  RegistryAccess(const Config& config, std::function<void(absl::string_view line)> log);

  // For a client: certificates, hosts.toml directories, the chain of credentials (docs/CONFIG.md). May
  // outlive this object.
  registry::ClientOptions Options() const;

  // What the administrator has configured alone: Kubernetes' secrets and Docker's config. Never null.
  std::shared_ptr<const registry::CredentialsProvider> configured() const { return configured_; }
  // Mounts lend their credentials here; asked before all others.
  LivingRequesters* requesters() const { return requesters_.get(); }
  // To be part of the server on `address`; null unless configured.
  CriProxy* cri() const { return cri_proxy_.get(); }

 private:
  const Config::Registry config_;
  const std::function<void(absl::string_view)> log_;
  // Shared with the options given out.
  const std::shared_ptr<LivingRequesters> requesters_ = std::make_shared<LivingRequesters>();
  std::shared_ptr<CriCredentials> cri_credentials_;
  std::shared_ptr<const registry::CredentialsProvider> chain_;
  std::shared_ptr<const registry::CredentialsProvider> configured_;
  std::unique_ptr<CriProxy> cri_proxy_;
};

}  // namespace lazyblob::daemon
