#include "daemon/credential_chain.h"

#include <optional>
#include <utility>

#include "absl/functional/function_ref.h"

namespace lazyblob::daemon {
namespace {

using Answer = absl::StatusOr<std::optional<registry::Credentials>>;

Answer FirstOf(const std::vector<CredentialChain::Provider>& providers,
               absl::FunctionRef<Answer(const registry::CredentialsProvider&)> ask) {
  absl::Status failure;
  for (const CredentialChain::Provider& provider : providers) {
    Answer found = ask(*provider);
    if (!found.ok()) {
      failure.Update(found.status());
    } else if (found->has_value()) {
      return found;
    }
  }
  if (!failure.ok()) return failure;
  return std::optional<registry::Credentials>();
}

}  // namespace

Answer CredentialChain::Lookup(absl::string_view host) const {
  return FirstOf(providers_, [&](const auto& provider) { return provider.Lookup(host); });
}

Answer CredentialChain::LookupFor(absl::string_view host, absl::string_view repository) const {
  return FirstOf(providers_, [&](const auto& provider) { return provider.LookupFor(host, repository); });
}

CredentialChain::Provider MakeCredentialChain(const Config::Credentials& config,
                                              CredentialChain::Provider requesters,
                                              CredentialChain::Provider cri,
                                              std::function<void(absl::string_view line)> log) {
  std::vector<CredentialChain::Provider> providers;
  if (requesters != nullptr) providers.push_back(std::move(requesters));
  if (cri != nullptr) providers.push_back(std::move(cri));
  if (!config.kubernetes_secrets.empty()) {
    providers.push_back(registry::KubernetesSecretCredentials(config.kubernetes_secrets, std::move(log)));
  }
  if (!config.docker_config.empty()) {
    providers.push_back(registry::DockerConfigCredentials(config.docker_config));
  }
  return std::make_shared<CredentialChain>(std::move(providers));
}

CredentialChain::Provider CredentialsOfCall(const std::string& docker_config,
                                            const CredentialChain::Provider& configured) {
  if (!docker_config.empty()) return registry::DockerConfigCredentials(docker_config);
  if (configured != nullptr) return configured;
  return std::make_shared<CredentialChain>(std::vector<CredentialChain::Provider>());
}

}  // namespace lazyblob::daemon
