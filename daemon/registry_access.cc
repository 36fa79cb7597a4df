#include "daemon/registry_access.h"

#include <utility>

#include "daemon/credential_chain.h"
#include "registry/hosts_toml.h"

namespace lazyblob::daemon {

RegistryAccess::RegistryAccess(const Config& config, std::function<void(absl::string_view)> log)
    : config_(config.registry), log_(std::move(log)) {
  if (config.credentials.cri) {
    cri_credentials_ = std::make_shared<CriCredentials>();
    cri_proxy_ = CriProxy::Create(config.credentials.cri_image_service, cri_credentials_.get());
  }
  chain_ = MakeCredentialChain(config.credentials, requesters_, cri_credentials_, log_);
  configured_ = MakeCredentialChain(config.credentials, nullptr, nullptr, log_);
}

registry::ClientOptions RegistryAccess::Options() const {
  registry::ClientOptions options;
  options.ca_file = config_.ca_file;
  options.local_hosts_may_be_insecure = true;
  options.credentials = chain_;
  if (!config_.config_path.empty()) {
    auto directories = std::make_shared<registry::HostsDirectories>(config_.config_path, log_);
    options.host_config = [directories](const std::string& host) { return directories->Find(host); };
  }
  return options;
}

}  // namespace lazyblob::daemon
