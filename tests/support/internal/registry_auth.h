#pragma once

// The token server of the test registry, and the check of requests. Thread-safe.

#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "tests/support/internal/http.h"

namespace lazyblob::support::internal {

class RegistryAuth {
 public:
  // `host` is where the own token server is reached.
  void Configure(AuthOptions options, std::string host) ABSL_LOCKS_EXCLUDED(mutex_);

  // Empty: the request may do `actions` ("pull", "pull,push") on `repository` (empty: only be known), and
  // pull from `also_pull` unless that is empty. Else the value of the WWW-Authenticate header of the 401.
  std::string Challenge(const HttpRequest& request, absl::string_view repository, absl::string_view actions,
                        absl::string_view also_pull = "") ABSL_LOCKS_EXCLUDED(mutex_);

  struct TokenAnswer {
    int status;
    std::string body;
  };
  TokenAnswer IssueToken(const HttpRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  void RevokeTokens() ABSL_LOCKS_EXCLUDED(mutex_);
  size_t token_requests() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Token {
    std::set<std::string> grants;  // "repository:name:pull"
    absl::Time expires;
  };

  bool BasicMatches(const HttpRequest& request) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MayHaveToken(const HttpRequest& request) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  AuthOptions options_ ABSL_GUARDED_BY(mutex_);
  std::string host_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Token> tokens_ ABSL_GUARDED_BY(mutex_);
  uint64_t issued_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t requests_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace lazyblob::support::internal
