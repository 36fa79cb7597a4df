#pragma once

// What the test registry has: manifests, tags and blobs by repository. Thread-safe.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "base/digest.h"

namespace lazyblob::support::internal {

// Bytes in memory or in a file.
struct Bytes {
  std::shared_ptr<const std::string> memory;
  std::string file;
  uint64_t size = 0;

  static Bytes Of(std::string bytes);
  // [offset, offset+length); what cannot be read is an empty string.
  std::string Read(uint64_t offset, uint64_t length) const;
};

struct StoredManifest {
  Bytes raw;
  std::string media_type;
  base::Digest digest;
};

class RegistryContents {
 public:
  void PutBlob(absl::string_view repository, const base::Digest& digest, Bytes bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void RemoveBlob(absl::string_view repository, const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  void PutManifest(absl::string_view repository, absl::string_view tag, StoredManifest manifest)
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status PutLayout(absl::string_view repository, const std::string& directory)
      ABSL_LOCKS_EXCLUDED(mutex_);

  std::optional<Bytes> FindBlob(absl::string_view repository, absl::string_view digest) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  // In any repository.
  std::optional<Bytes> FindAnywhere(absl::string_view digest) const ABSL_LOCKS_EXCLUDED(mutex_);
  // By digest or tag.
  std::optional<StoredManifest> FindManifest(absl::string_view repository, absl::string_view reference) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The image index that the referrers API answers with.
  std::string Referrers(absl::string_view repository, absl::string_view subject,
                        absl::string_view artifact_type) const ABSL_LOCKS_EXCLUDED(mutex_);
  std::string TagList(absl::string_view repository) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Repository {
    std::map<std::string, Bytes, std::less<>> blobs;
    std::map<std::string, StoredManifest, std::less<>> manifests;  // by digest
    std::map<std::string, std::string, std::less<>> tags;          // to digest
  };

  mutable absl::Mutex mutex_;
  std::map<std::string, Repository, std::less<>> repositories_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::support::internal
