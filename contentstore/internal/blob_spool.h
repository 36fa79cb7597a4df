#pragma once

// The original bytes of one blob, on their way into a nameless file: one pass over the layer's sources fills
// it in order, any number of readers follow. The pass stays a window ahead of the furthest reader, rests when
// nobody reads, and goes on from where it was. A blob that is kept already is compared with its digest in the
// same way, once per process.

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "base/cond_var.h"
#include "base/digest.h"
#include "base/file.h"
#include "contentstore/content_store.h"
#include "contentstore/internal/layer.h"
#include "contentstore/internal/source_read.h"

namespace lazyblob::contentstore {

// The end of a blob that is given out only when its digest is right.
inline constexpr uint64_t kHeldBackBytes = 32 << 10;

struct BlobSpoolOptions {
  uint64_t window_bytes = 0;
  absl::Duration idle;  // how long a spool outlives its last reader
  uint64_t max_bytes = 0;
  bool keep = false;
  std::shared_ptr<CacheBudget> budget;
  const base::Clock* clock = nullptr;
  std::function<void(absl::string_view)> log;
  layer::BuildLimits limits;
};

// Thread-safe.
class BlobSpool {
 public:
  // A caller inside: while there are any the spool is in use.
  class Reader;

  BlobSpool(const BlobSpoolOptions& options, const oci::Descriptor& blob)
      : options_(options), blob_(blob), hasher_(blob.digest.algorithm()) {}
  ~BlobSpool();  // ends the pass

  // As ContentStore::ReadBlob; `offset` is not beyond the end.
  absl::StatusOr<size_t> Read(Reader& reader, uint64_t offset, absl::Span<uint8_t> out)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // The file, where all of [offset, offset+length) can be given out of it now as by Read; else null.
  std::shared_ptr<const base::UniqueFd> TryGive(uint64_t offset, uint64_t length) ABSL_LOCKS_EXCLUDED(mutex_);
  // As ContentStore::KeepBlob.
  absl::StatusOr<std::string> Keep(Reader& reader, const Progress& progress) ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends everything; callers get Cancelled.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  uint64_t size() const { return blob_.size; }
  // When the last reader left; unset while there is one.
  std::optional<absl::Duration> IdleSince() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Place {
    CredentialsPtr credentials;
    uint64_t begin = UINT64_MAX;  // what is waited for
    uint64_t end = 0;
    bool cancelled = false;
  };
  // Waits for `done`, with the pass running. `progress` is called meanwhile, without the lock.
  absl::Status WaitUntil(Reader& reader, absl::FunctionRef<bool()> done, const Progress& progress)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckReadAgain(uint64_t offset) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint64_t Available() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint64_t Wanted() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartPass(std::shared_ptr<Layer> layer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  CredentialsList Requesters() ABSL_LOCKS_EXCLUDED(mutex_);

  // The rest runs on the thread of the pass.
  void Run(std::shared_ptr<Layer> layer) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Pass(Layer& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  // Opens the kept file, or else a nameless one. True: it is known to be right.
  absl::StatusOr<bool> OpenFile(Layer& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  // One pass over it, or over the sources. Cancelled: the pass shall rest.
  absl::Status ReadKept(Layer& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Fetch(Layer& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status AwaitRoom() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Take(absl::Span<const uint8_t> bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Flush() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status CompareWithGiven(uint64_t at, absl::Span<const uint8_t> bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  void Advance(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);
  // The bytes so far are wrong: from the start, remembering what was given out …
  void BeginAgain() ABSL_LOCKS_EXCLUDED(mutex_);
  // … or not, when it is given up.
  void Forget() ABSL_LOCKS_EXCLUDED(mutex_);
  void Complete(Layer& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status LinkKept(Layer& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  std::string Name() const;

  const BlobSpoolOptions& options_;
  const oci::Descriptor blob_;

  // Of the pass alone, one thread after the other.
  base::Hasher hasher_;
  std::unique_ptr<UnpackedDigest> unpacked_;      // null: nothing is to be learned
  std::vector<uint8_t> block_;                    // came, but is not in the file yet
  absl::Duration flushed_;                        // when it last was
  std::shared_ptr<const base::UniqueFd> before_;  // what wrong bytes were given out from
  size_t attempts_ = 0;                           // passes that ended with a wrong digest
  bool named_ = false;                            // file_ is the kept one
  CacheBudget::Charge charge_{options_.budget};   // for file_ while it is nameless
  absl::Status no_room_;  // why it is above the limit, if it is: such a one is not kept

  mutable absl::Mutex mutex_;
  base::CondVar changed_;  // for readers
  base::CondVar moved_;    // for the pass
  std::thread thread_ ABSL_GUARDED_BY(mutex_);
  std::map<const Reader*, Place> readers_ ABSL_GUARDED_BY(mutex_);
  uint64_t rotation_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Duration last_use_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const base::UniqueFd> file_ ABSL_GUARDED_BY(mutex_);  // shared with those who read it now
  uint64_t frontier_ ABSL_GUARDED_BY(mutex_) = 0;                       // bytes in the file
  uint64_t given_ ABSL_GUARDED_BY(mutex_) = 0;                          // the furthest byte given out
  bool whole_ ABSL_GUARDED_BY(mutex_) = false;                          // its digest is right
  bool again_ ABSL_GUARDED_BY(mutex_) = false;  // nothing is given out before that is known
  // From here on the bytes given out before were others than those that are coming.
  std::optional<uint64_t> differs_ ABSL_GUARDED_BY(mutex_);
  // Wrong bytes were given out: only who has read up to here since, or begins before, may go on.
  std::optional<uint64_t> read_again_ ABSL_GUARDED_BY(mutex_);
  bool keep_ ABSL_GUARDED_BY(mutex_) = false;
  bool keep_failed_ ABSL_GUARDED_BY(mutex_) = false;
  std::string kept_path_ ABSL_GUARDED_BY(mutex_);
  bool running_ ABSL_GUARDED_BY(mutex_) = false;
  bool rest_ ABSL_GUARDED_BY(mutex_) = false;  // the pass shall end for now
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<base::CancelToken> cancel_ ABSL_GUARDED_BY(mutex_);  // of the pass that runs
  uint64_t failures_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);  // the last, for those who waited then
};

class BlobSpool::Reader {
 public:
  // The layer and `context` outlive it.
  Reader(std::shared_ptr<BlobSpool> spool, std::shared_ptr<Layer> layer, const FetchContext& context);
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  BlobSpool& spool() { return *spool_; }

 private:
  friend class BlobSpool;
  const std::shared_ptr<BlobSpool> spool_;  // shared with the table and other readers
  const std::shared_ptr<Layer> layer_;
  const FetchContext& context_;
  std::optional<base::CancelToken::Registration> registration_;
  bool gave_up_ = false;
};

}  // namespace lazyblob::contentstore
