#pragma once

// What is known of where blobs are, and of which hosts mount: learned from what was placed, asked and told.
// Thread-safe.

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/digest.h"
#include "oci/reference.h"

namespace lazyblob::exporter::internal {

class MountBook {
 public:
  explicit MountBook(const base::Clock* clock) : clock_(*clock) {}

  // Somebody says that the blob is there.
  void Learn(const base::Digest& digest, const oci::Reference& repository) ABSL_LOCKS_EXCLUDED(mutex_);
  // The registry itself said so, just now.
  void NoteThere(const base::Digest& digest, const oci::Reference& repository) ABSL_LOCKS_EXCLUDED(mutex_);
  void Forget(const base::Digest& digest, const oci::Reference& repository) ABSL_LOCKS_EXCLUDED(mutex_);
  // NoteThere not long ago.
  bool IsThere(const base::Digest& digest, const oci::Reference& repository) ABSL_LOCKS_EXCLUDED(mutex_);

  // Repositories of the host to mount from, best first: those that mounts into `to` came from before, then by
  // the longest common path. Without those that failed for this blob lately.
  std::vector<std::string> Candidates(const base::Digest& digest, const oci::Reference& to)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void NoteMount(const base::Digest& digest, const std::string& from, const oci::Reference& to, bool mounted)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Not one candidate for the blob could be mounted.
  void NoteNoneMounted(const base::Digest& digest, const oci::Reference& to) ABSL_LOCKS_EXCLUDED(mutex_);
  // False: the host did not mount what was there for certain; siblings had better upload at once.
  bool Mounts(const std::string& host) ABSL_LOCKS_EXCLUDED(mutex_);

  // Mounts that name no source repository: whether to try, and what came of it.
  bool TryAnonymous(const std::string& host) ABSL_LOCKS_EXCLUDED(mutex_);
  void NoteAnonymous(const std::string& host, bool mounted) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Place {
    bool certain = false;
    absl::Duration seen;
  };
  struct Host {
    std::map<base::Digest, std::map<std::string, Place>> places;                          // by repository
    std::map<std::tuple<base::Digest, std::string, std::string>, absl::Duration> failed;  // from, to
    std::map<std::pair<std::string, std::string>, int> scores;  // from, to: mounts less failures
    bool has_mounted = false;
    absl::Duration no_mounts_until = -absl::InfiniteDuration();
    int anonymous_misses = 0;
    absl::Duration no_anonymous_until = -absl::InfiniteDuration();
  };
  void Trim(Host* host) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const base::Clock& clock_;
  absl::Mutex mutex_;
  std::map<std::string, Host> hosts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::exporter::internal
