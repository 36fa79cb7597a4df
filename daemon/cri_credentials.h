#pragma once

// What kubelet's pulls tell of credentials: those of the latest pull of each repository, in memory only.

#include <cstdint>
#include <list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "registry/credentials.h"

namespace lazyblob::daemon {

// An AuthConfig of CRI.
struct CriAuth {
  std::string username;
  std::string password;
  std::string auth;            // "user:password" in base64
  std::string server_address;  // the host they are for; empty: the image's
  std::string identity_token;
  std::string registry_token;
};

// Bounded: of more than kMaxRepositories the longest unused is forgotten. Thread-safe.
class CriCredentials final : public registry::CredentialsProvider {
 public:
  static constexpr size_t kMaxRepositories = 1024;

  // A pull of `image` begins. An empty `auth` is a pull without credentials, and that is remembered too. The
  // number is for Undo; 0: nothing was learnt.
  uint64_t Remember(absl::string_view image, const CriAuth& auth) ABSL_LOCKS_EXCLUDED(mutex_);
  // The pull failed: what was known before it holds again.
  void Undo(uint64_t number) ABSL_LOCKS_EXCLUDED(mutex_);

  // The latest of any repository of the host.
  absl::StatusOr<std::optional<registry::Credentials>> Lookup(absl::string_view host) const override
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Those of this repository only.
  absl::StatusOr<std::optional<registry::Credentials>> LookupFor(absl::string_view host,
                                                                 absl::string_view repository) const override
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  using Key = std::pair<std::string, std::string>;  // host, repository
  struct Learnt {
    uint64_t number = 0;
    registry::Credentials credentials;
  };
  struct Entry {
    Key key;
    std::vector<Learnt> learnt;  // latest last
  };

  mutable absl::Mutex mutex_;
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 1;
  mutable std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);  // most recently used first
  std::map<Key, std::list<Entry>::iterator> by_key_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::daemon
