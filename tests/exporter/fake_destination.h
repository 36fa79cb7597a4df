#pragma once

// Registries in memory that the placer can be run against without a network: they break where a test says,
// wait where it says, and count. Not a model of the wire: that is tests/support/test_registry.h. Thread-safe.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "exporter/internal/destination.h"

namespace lazyblob::exporter {

// What a host is like.
struct FakeHost {
  bool mounts = true;
  bool anonymous_mounts = false;
  std::set<std::string> unreadable;  // repositories that nothing may be mounted from
  bool chunks = true;                // else PATCH is 404
  bool drops_second_chunk = false;   // Range stays where it is
  bool forgets_broken_sessions = false;
  uint64_t min_chunk = 0;
  std::set<std::string> denied;  // repositories nobody may push to
};

struct FakeStep {
  std::string operation;  // "head", "mount", "start", "put", "patch", "commit", "query", "cancel"
  std::string host;
  std::string repository;
  std::string detail;  // digest; of a mount: the repository it comes from
  uint64_t bytes = 0;  // of the body
};

class FakeRegistries {
 public:
  // Set before use.
  std::map<std::string, FakeHost> hosts;
  // Asked before each step, without a lock: an error is the answer.
  std::function<absl::Status(const FakeStep&)> before;
  // How many bytes of a body arrive before the connection breaks; unset: all.
  std::function<std::optional<uint64_t>(const FakeStep&)> cut;

  void Put(const oci::Reference& repository, const std::string& bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  std::unique_ptr<internal::Destination> NewDestination();

  bool Has(const oci::Reference& repository, const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  size_t Count(const std::string& operation, const std::string& host = "") ABSL_LOCKS_EXCLUDED(mutex_);
  // Commits of the digest in that repository's host by upload.
  size_t Uploads(const std::string& host, const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t body_bytes() ABSL_LOCKS_EXCLUDED(mutex_);
  size_t open_sessions() ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<FakeStep> steps() ABSL_LOCKS_EXCLUDED(mutex_);
  bool AwaitCount(const std::string& operation, size_t count) ABSL_LOCKS_EXCLUDED(mutex_);

  static absl::Status Refused(int http, const std::string& text);

 private:
  friend class FakeDestination;
  struct Session {
    std::string repository;  // host/name
    std::string bytes;
    int patches = 0;
  };

  // Looks only: several threads do.
  const FakeHost& Host(const std::string& name) const {
    static const FakeHost kAny;
    const auto found = hosts.find(name);
    return found == hosts.end() ? kAny : found->second;
  }

  mutable absl::Mutex mutex_;
  std::map<std::string, std::map<base::Digest, std::string>> blobs_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Session> sessions_ ABSL_GUARDED_BY(mutex_);
  std::map<std::pair<std::string, base::Digest>, size_t> uploads_ ABSL_GUARDED_BY(mutex_);
  std::vector<FakeStep> steps_ ABSL_GUARDED_BY(mutex_);
  uint64_t body_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_session_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace lazyblob::exporter
