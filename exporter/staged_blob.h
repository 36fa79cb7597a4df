#pragma once

// A blob while it is being made: one writer appends to a private file, any number of readers follow it. The
// file has no name: it is gone when writer and readers are, or when the process dies. Thread-safe.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "base/cancel.h"
#include "base/digest.h"
#include "base/file.h"

namespace lazyblob::exporter {

// Shared by all who read it: the blob must outlive the fastest of them.
class StagedBlob {
 public:
  struct Whole {
    base::Digest digest;
    uint64_t size = 0;
  };

  // Waits until there is at least one byte at `offset`, and reads as many as there are, up to out.size();
  // 0 at the end of a complete blob. OutOfRange beyond that end. Whatever the writer failed with, also if
  // bytes at `offset` are there. Cancelled when `cancel` (may be null) is.
  absl::StatusOr<size_t> ReadAt(uint64_t offset, absl::Span<uint8_t> out, base::CancelToken* cancel)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits for the end: what the blob is, or why there is none.
  absl::StatusOr<Whole> Wait(base::CancelToken* cancel) ABSL_LOCKS_EXCLUDED(mutex_);

  // Bytes so far; never waits.
  uint64_t size() const ABSL_LOCKS_EXCLUDED(mutex_);
  // Not set until the blob is complete; never waits.
  std::optional<Whole> whole() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  friend class StagedBlobWriter;
  explicit StagedBlob(base::UniqueFd file) : file_(std::move(file)) {}
  // Waits until `done` is true (called with the lock held), the blob has failed or `cancel` is cancelled.
  template <typename Done>
  absl::Status WaitUntil(Done done, base::CancelToken* cancel) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const base::UniqueFd file_;
  mutable absl::Mutex mutex_;
  absl::CondVar changed_;
  uint64_t size_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  std::optional<Whole> whole_ ABSL_GUARDED_BY(mutex_);
};

// The one who makes it; one thread at a time. Destroyed before Finish, it fails the blob (Aborted).
class StagedBlobWriter {
 public:
  // A new file on the file system of `directory`, which exists.
  static absl::StatusOr<std::unique_ptr<StagedBlobWriter>> Create(const std::string& directory);
  ~StagedBlobWriter();

  const std::shared_ptr<StagedBlob>& blob() const { return blob_; }
  // Disk full is ResourceExhausted. An error fails the blob: readers get it too.
  absl::Status Append(absl::Span<const uint8_t> bytes);
  // The blob is complete. FailedPrecondition, and the blob fails, when `size` is not what was appended.
  absl::Status Finish(const base::Digest& digest, uint64_t size);
  // Wakes all with `reason` (not OK). Does nothing after Finish or an earlier failure.
  void Fail(const absl::Status& reason);

 private:
  StagedBlobWriter(std::shared_ptr<StagedBlob> blob, std::string directory)
      : blob_(std::move(blob)), directory_(std::move(directory)) {}
  const std::shared_ptr<StagedBlob> blob_;  // shared with its readers
  const std::string directory_;             // for messages
  uint64_t offset_ = 0;
};

}  // namespace lazyblob::exporter
