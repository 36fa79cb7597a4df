#pragma once

// Ingests: blobs that are being written, each a directory `<SHA-256 of its ref, hex>` with the files
// `ingest.json` and `data` (docs/CONTENT_SERVICE.md). They outlive the process; after a restart of the
// machine those of their bytes that were synced do. What exists is also known in memory.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "base/clock.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/thread_pool.h"
#include "contentservice/content.h"

namespace lazyblob::contentservice {

class Ingest;

// Thread-safe.
class Ingests {
 public:
  struct Options {
    std::string directory;  // created 0700
    const base::Clock* clock = nullptr;
    base::ThreadPool* pool = nullptr;  // removes files
    std::function<void(absl::string_view)> log;
  };
  // Removes what is no ingest.
  static absl::StatusOr<std::unique_ptr<Ingests>> Open(Options options);

  // Begins or resumes; as Content::OpenWriter, but `expected` may be a blob that is there.
  absl::StatusOr<std::unique_ptr<Ingest>> Take(const std::string& ref, uint64_t total,
                                               const base::Digest& expected) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<IngestStatus> Status(const std::string& ref) ABSL_LOCKS_EXCLUDED(mutex_);
  // By ref.
  std::vector<IngestStatus> List() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Abort(const std::string& ref) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class Ingest;
  // An ingest that exists.
  struct State {
    std::string directory;
    IngestStatus status;
  };

  explicit Ingests(Options options) : options_(std::move(options)) {}
  std::string DirectoryOf(const std::string& ref) const;
  absl::Status Load(const std::string& directory);
  absl::Status WriteRecord(const State& state, uint64_t synced, bool first) const;
  // Nothing where it was aborted.
  void SetStatus(const std::shared_ptr<State>& state, const IngestStatus& status) ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  std::string boot_id_;
  absl::Mutex mutex_;
  std::map<std::string, std::shared_ptr<State>> states_ ABSL_GUARDED_BY(mutex_);  // by ref
  absl::flat_hash_set<std::string> locked_ ABSL_GUARDED_BY(mutex_);               // refs in somebody's hands
  uint64_t aborted_ ABSL_GUARDED_BY(mutex_) = 0;
};

// One in somebody's hands: nobody else gets its ref. Destroyed, what was written is synced and stays. One
// thread at a time.
class Ingest {
 public:
  ~Ingest();
  Ingest(const Ingest&) = delete;
  Ingest& operator=(const Ingest&) = delete;

  const IngestStatus& status() const { return status_; }
  base::Digest digest() const { return hasher_.Current(); }
  absl::Status Append(absl::Span<const uint8_t> bytes);
  absl::Status Truncate(uint64_t size);

  absl::Status Sync();
  // Renames the data to `path`. NotFound: the ingest was aborted.
  absl::Status MoveTo(const std::string& path);
  // Takes MoveTo back.
  absl::Status MoveBack(const std::string& path);
  // The ingest is no more.
  void Discard();

 private:
  friend class Ingests;
  Ingest(Ingests* all, std::string ref) : all_(all) { status_.ref = std::move(ref); }
  absl::Status Begin(uint64_t total, const base::Digest& expected);
  absl::Status Resume(std::shared_ptr<Ingests::State> state, uint64_t total, const base::Digest& expected);
  absl::Status HashWhatIsThere();
  std::string DataPath() const { return state_->directory + "/data"; }

  Ingests* const all_;
  std::shared_ptr<Ingests::State> state_;
  IngestStatus status_;
  base::Hasher hasher_;
  base::UniqueFd data_;
  bool unsynced_ = false;  // bytes or facts that `ingest.json` does not tell of
};

}  // namespace lazyblob::contentservice
