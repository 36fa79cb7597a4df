#include "daemon/living_requesters.h"

#include <optional>
#include <utility>
#include <vector>

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

absl::StatusOr<std::optional<registry::Credentials>> LivingRequesters::Lookup(absl::string_view host) const {
  std::vector<std::shared_ptr<const registry::CredentialsProvider>> providers;
  size_t start = 0;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [number, provider] : providers_) providers.push_back(provider);
    if (!providers.empty()) start = turn_++ % providers.size();
  }
  absl::Status failure;
  for (size_t i = 0; i < providers.size(); ++i) {
    auto found = providers[(start + i) % providers.size()]->Lookup(host);
    if (!found.ok()) {
      failure.Update(found.status());
    } else if (found->has_value()) {
      return found;
    }
  }
  if (!failure.ok()) return failure;
  return std::optional<registry::Credentials>();
}

}  // namespace lazyblob::daemon
