#pragma once

// The spools of all blobs that are read whole: found by digest, bounded together on disk, dropped when nobody
// has read them for a while.

#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/cond_var.h"
#include "contentstore/internal/blob_spool.h"

namespace lazyblob::contentstore {

// Thread-safe.
class BlobSpools {
 public:
  explicit BlobSpools(BlobSpoolOptions options) : options_(std::move(options)) {}
  ~BlobSpools();
  void Start();
  // Ends all passes; who waits gets Cancelled.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  // As ContentStore::ReadBlob, TryReadBlob and KeepBlob.
  absl::StatusOr<size_t> Read(const std::shared_ptr<Layer>& layer, uint64_t offset, absl::Span<uint8_t> out,
                              const FetchContext& context) ABSL_LOCKS_EXCLUDED(mutex_);
  bool TryRead(const Layer& layer, uint64_t offset, absl::Span<uint8_t> out) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::string> Keep(const std::shared_ptr<Layer>& layer, const FetchContext& context,
                                   const Progress& progress) ABSL_LOCKS_EXCLUDED(mutex_);
  // As StreamFromSources: through the blob's spool if there is one, or it is to be kept, and the disk has
  // room; else straight from the sources. Not compared with the digest in the latter case.
  absl::Status Stream(const std::shared_ptr<Layer>& layer, registry::ByteRange range, registry::BodySink sink,
                      const StreamCaller& caller, bool keep) ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether Stream would go through a spool.
  bool Joinable(const Layer& layer, bool keep) const ABSL_LOCKS_EXCLUDED(mutex_);
  // The spool of a layer that nobody reads goes, and what it holds of the layer.
  void Drop(const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);
  // Removes the kept blob of a layer; false while there is a spool of it.
  bool DropKept(Layer& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  // Bytes that spools may have on the disk now; for tests.
  uint64_t reserved() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Entry {
    std::shared_ptr<BlobSpool> spool;  // shared with its readers
    uint64_t reserved = 0;
  };
  using Dropped = std::vector<std::shared_ptr<BlobSpool>>;  // destroyed without the lock: that joins threads

  absl::StatusOr<std::unique_ptr<BlobSpool::Reader>> Enter(const std::shared_ptr<Layer>& layer,
                                                           const FetchContext& context)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Null: there is no room.
  std::shared_ptr<BlobSpool> FindOrMake(const Layer& layer, Dropped* dropped)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void DropIdle(absl::Duration idle, size_t most, Dropped* dropped) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Watch() ABSL_LOCKS_EXCLUDED(mutex_);

  const BlobSpoolOptions options_;
  std::thread thread_;
  mutable absl::Mutex mutex_;  // a spool's own may be taken under it
  base::CondVar changed_;
  std::map<base::Digest, Entry> spools_ ABSL_GUARDED_BY(mutex_);
  uint64_t reserved_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace lazyblob::contentstore
