#include "daemon/living_requesters.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "daemon/credential_chain.h"

namespace lazyblob::daemon {

uint64_t LivingRequesters::Add(std::shared_ptr<const registry::CredentialsProvider> provider) {
  absl::MutexLock lock(&mutex_);
  providers_.emplace(next_, std::move(provider));
  return next_++;
}

void LivingRequesters::Remove(uint64_t number) {
  absl::MutexLock lock(&mutex_);
  providers_.erase(number);
}

std::vector<std::shared_ptr<const registry::CredentialsProvider>> LivingRequesters::Turn() const {
  std::vector<std::shared_ptr<const registry::CredentialsProvider>> providers;
  absl::MutexLock lock(&mutex_);
  for (const auto& [number, provider] : providers_) providers.push_back(provider);
  if (providers.empty()) return providers;
  auto first = providers.begin() + static_cast<std::ptrdiff_t>(turn_++ % providers.size());
  std::rotate(providers.begin(), first, providers.end());
  return providers;
}

absl::StatusOr<std::optional<registry::Credentials>> LivingRequesters::Lookup(absl::string_view host) const {
  return CredentialChain(Turn()).Lookup(host);
}

absl::StatusOr<std::optional<registry::Credentials>> LivingRequesters::LookupFor(
    absl::string_view host, absl::string_view repository) const {
  return CredentialChain(Turn()).LookupFor(host, repository);
}

}  // namespace lazyblob::daemon
