#pragma once

// Upload sessions that outlive the process: one file per placement, rewritten after each chunk the registry
// has confirmed. Format, to the byte: docs/EXPORTER.md. Thread-safe; one process per directory. A location is
// as good as a credential: the directory is 0700, its files 0600, nothing of them is logged.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/digest.h"
#include "base/file.h"
#include "oci/reference.h"
#include "registry/pusher.h"

namespace lazyblob::exporter {

struct JournalEntry {
  oci::Reference repository;  // tag and digest ignored
  base::Digest digest;
  uint64_t size = 0;
  registry::UploadSession session;  // offset: what the registry confirmed
  std::string hash_state;           // of the first session.offset bytes, see internal/resumable_hash.h
  int64_t saved = 0;                // seconds since 1970, set by Save
};

class Journal {
 public:
  // Makes the directory, and locks it: a process that ends is waited for, for `patience`. A directory that
  // others can enter, or that another journal has, is FailedPrecondition. Entries older than `max_age` are
  // removed: registries have forgotten their sessions.
  static absl::StatusOr<std::unique_ptr<Journal>> Open(const std::string& directory,
                                                       absl::Duration max_age = absl::Hours(168),
                                                       const base::Clock* clock = &base::SystemClock(),
                                                       absl::Duration patience = absl::Seconds(5));

  // Survives the process; after a loss of power there is none, or an older one.
  absl::Status Save(JournalEntry entry) ABSL_LOCKS_EXCLUDED(mutex_);
  // nullopt when there is none; a file that cannot be read as an entry is removed, and none.
  std::optional<JournalEntry> Find(const oci::Reference& repository, const base::Digest& digest)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Remove(const oci::Reference& repository, const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  std::vector<JournalEntry> All() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  Journal(std::string directory, base::UniqueFd lock, const base::Clock* clock)
      : directory_(std::move(directory)), lock_(std::move(lock)), clock_(*clock) {}
  std::string PathOf(const oci::Reference& repository, const base::Digest& digest) const;

  const std::string directory_;
  const base::UniqueFd lock_;
  const base::Clock& clock_;
  absl::Mutex mutex_;  // held while files are written
};

}  // namespace lazyblob::exporter
