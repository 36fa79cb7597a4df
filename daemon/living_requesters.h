#pragma once

// The credentials of whoever wants bytes now: every live mount lends its provider, and a lookup asks them in
// turn, starting with another one each time. Never the credentials of a mount that is gone.

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "registry/credentials.h"

namespace lazyblob::daemon {

// Thread-safe.
class LivingRequesters final : public registry::CredentialsProvider {
 public:
  // Lends `provider` until Remove with the number returned.
  uint64_t Add(std::shared_ptr<const registry::CredentialsProvider> provider) ABSL_LOCKS_EXCLUDED(mutex_);
  void Remove(uint64_t number) ABSL_LOCKS_EXCLUDED(mutex_);

  // The first credentials any of them has; an error only when none has any and one failed.
  absl::StatusOr<std::optional<registry::Credentials>> Lookup(absl::string_view host) const override
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::optional<registry::Credentials>> LookupFor(absl::string_view host,
                                                                 absl::string_view repository) const override
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // In the order of this look-up.
  std::vector<std::shared_ptr<const registry::CredentialsProvider>> Turn() const ABSL_LOCKS_EXCLUDED(mutex_);

  mutable absl::Mutex mutex_;
  mutable uint64_t turn_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<uint64_t, std::shared_ptr<const registry::CredentialsProvider>> providers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::daemon
