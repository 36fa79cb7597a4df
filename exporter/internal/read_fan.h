#pragma once

// Blobs read in pieces, each by a thread of its own, ahead of whoever sends them by one piece. Uploads of one
// blob, or of two with one digest and origin, that begin together share one read: it keeps a window of
// pieces, and who falls behind that goes on with a read of its own. Thread-safe; a cursor belongs to one
// thread.

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "exporter/blob.h"
#include "exporter/host_gate.h"

namespace lazyblob::exporter::internal {

struct Piece {
  uint64_t offset = 0;
  std::vector<uint8_t> bytes;  // as many as a piece has, fewer only at the blob's end
  MemoryBudget::Hold memory;
  uint64_t end() const { return offset + bytes.size(); }
};

class SharedRead;

struct ReadRequest {
  std::shared_ptr<Blob> blob;
  uint64_t offset = 0;
  uint64_t piece_bytes = 8 << 20;
  Priority priority = Priority::kImage;
  contentstore::FetchContext context;           // its cancel token is not used: cursors are cancelled by Next
  std::shared_ptr<std::atomic<uint64_t>> read;  // counts what a read that it begins gets; may be null
};

class ReadFan {
 public:
  explicit ReadFan(uint64_t max_memory_bytes) : memory_(max_memory_bytes) {}

  class Cursor {
   public:
    ~Cursor();  // ends a read that nobody else follows, and waits for that
    Cursor(const Cursor&) = delete;
    Cursor& operator=(const Cursor&) = delete;
    // The next piece, null at the end of the blob. What the read failed with. Cancelled.
    absl::StatusOr<std::shared_ptr<const Piece>> Next(base::CancelToken* cancel);
    // Whether Next would answer at once.
    bool Ready() const;

   private:
    friend class ReadFan;
    Cursor(ReadFan* fan, ReadRequest request) : fan_(*fan), request_(std::move(request)) {}
    ReadFan& fan_;
    ReadRequest request_;               // offset: where the next piece begins
    std::shared_ptr<SharedRead> read_;  // shared with the other cursors that follow it
    uint64_t id_ = 0;
    bool alone_ = false;  // another blob's read has failed
  };
  // Joins a read that still has the bytes at `offset`, or begins one.
  std::unique_ptr<Cursor> Open(const ReadRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);

  // For tests and status: how many reads were begun, and the most memory in use at once.
  uint64_t reads() const ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t peak_memory() const { return memory_.peak(); }

 private:
  friend class SharedRead;
  void Attach(Cursor* cursor) ABSL_LOCKS_EXCLUDED(mutex_);
  void Detach(Cursor* cursor) ABSL_LOCKS_EXCLUDED(mutex_);

  MemoryBudget memory_;
  mutable absl::Mutex mutex_;
  std::multimap<std::string, std::weak_ptr<SharedRead>> reads_ ABSL_GUARDED_BY(mutex_);
  uint64_t begun_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace lazyblob::exporter::internal
