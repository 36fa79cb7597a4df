#pragma once

// Answers READ requests: at once when the bytes are there, else from the store's callback, so that a few
// threads serve thousands of waiting readers. Every request is answered exactly once, with the length asked
// or an errno.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "base/digest.h"
#include "contentstore/content_store.h"
#include "layer/entry.h"

struct fuse_req;  // libfuse's

namespace lazyblob::fuse::internal {

using LogFunction = std::function<void(absl::string_view)>;

// What is needed to answer a request.
struct ReadTicket {
  fuse_req* request = nullptr;
  uint64_t unique = 0;  // as the kernel sent it
  uint32_t pid = 0;
};

// Bytes [position, position + bytes.length()) of an answer; what no part covers is zeros.
struct AnswerPart {
  uint64_t position = 0;
  contentstore::PinnedRange bytes;
};

// Where a read's bytes are: extents with file_offset counted from the start of the answer.
struct ReadPlan {
  std::shared_ptr<contentstore::LazyLayer> layer;
  uint64_t length = 0;
  std::vector<layer::Extent> extents;
};

// Sends answers. Thread-safe; each ticket is given to exactly one of these, once.
class ReadReplies {
 public:
  virtual ~ReadReplies() = default;
  // An error when something else than `length` bytes would have gone out: then nothing was sent, and the
  // ticket has no `request` any more. Tickets without one are answered, too.
  virtual absl::Status Data(const ReadTicket& ticket, uint64_t length,
                            absl::Span<const AnswerPart> parts) = 0;
  virtual void Error(const ReadTicket& ticket, const absl::Status& status) = 0;
  // Leaves the request unanswered (for a successor, or because it came again).
  virtual void Drop(const ReadTicket& ticket) = 0;
};

// Thread-safe. Shared by the server and the callbacks it has out at the store, which may come after Stop.
class ReadEngine : public std::enable_shared_from_this<ReadEngine> {
 public:
  struct Options {
    ReadReplies* replies = nullptr;  // used until Stop returns
    const base::Clock* clock = nullptr;
    absl::Duration deadline;         // of one request
    absl::Duration resent_deadline;  // of one that a predecessor had
    std::function<bool(uint32_t pid)> kill_pending;
    LogFunction log;
    // Bytes of a layer's cache file went to the kernel.
    std::function<void(uint32_t layer, int fd, uint64_t offset, uint64_t length)> served;
    // A read waits now: call Sweep until it says that none is left.
    std::function<void()> waiting;
  };
  explicit ReadEngine(Options options) : options_(std::move(options)) {}

  void Read(const ReadTicket& ticket, ReadPlan plan);
  // Answers a read that could not even be planned.
  void Refuse(const ReadTicket& ticket, const absl::Status& status);
  // FUSE_INTERRUPT for the request `unique`: ends it with EINTR if its requester is being killed, and only
  // then. It is looked at again by Sweep, because the kernel says it once.
  void Interrupt(uint64_t unique) ABSL_LOCKS_EXCLUDED(mutex_);

  // Ends waiting reads of the layer with EIO and fails new ones until Allow.
  void FailLayer(const base::Digest& digest, contentstore::LazyLayer* layer) ABSL_LOCKS_EXCLUDED(mutex_);
  void AllowLayer(const base::Digest& digest) ABSL_LOCKS_EXCLUDED(mutex_);

  // Ends reads whose store overslept its deadline and interrupted ones whose reader is killed. True while
  // reads wait.
  bool Sweep() ABSL_LOCKS_EXCLUDED(mutex_);
  // Drops all waiting reads unanswered; nothing is answered after it returned. No Read may run or follow.
  void Stop() ABSL_LOCKS_EXCLUDED(mutex_);

  struct Counters {
    uint64_t reads = 0;
    uint64_t hits = 0;
    uint64_t failed = 0;
    uint64_t waiting = 0;
  };
  Counters counters() const ABSL_LOCKS_EXCLUDED(mutex_);

  // The reads of one layer that wait now.
  struct LayerReads {
    base::Digest layer;
    uint64_t reads = 0;
    absl::Duration oldest;  // how long the oldest of them has waited here
  };
  std::vector<LayerReads> waiting() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // A read that waits. What is below the line is guarded by the engine's mutex_.
  struct Waiting {
    ReadTicket ticket;
    ReadPlan plan;
    absl::Duration since;
    absl::Duration deadline;
    std::shared_ptr<base::CancelToken> cancel;
    // ----
    std::vector<AnswerPart> parts;
    size_t missing = 0;
    bool claimed = false;
    bool interrupted = false;
  };
  using WaitingPtr = std::shared_ptr<Waiting>;

  // A part of a data area where a deadline has passed: the kernel's own second and third try fail at once.
  struct Expired {
    uint32_t layer = 0;
    uint64_t begin = 0;
    uint64_t end = 0;
    absl::Duration until;
  };

  absl::Status Admit(const WaitingPtr& waiting) ABSL_LOCKS_EXCLUDED(mutex_);
  void Arrived(const WaitingPtr& waiting, size_t part, absl::StatusOr<contentstore::PinnedRange> bytes)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // True for the first caller, who then answers and calls Answered.
  bool Claim(const WaitingPtr& waiting) ABSL_LOCKS_EXCLUDED(mutex_);
  bool ClaimLocked(const WaitingPtr& waiting) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Answered() ABSL_LOCKS_EXCLUDED(mutex_);
  void EndIfKilled(const WaitingPtr& waiting);
  void RememberExpired(const Waiting& waiting) ABSL_LOCKS_EXCLUDED(mutex_);

  void Answer(const ReadTicket& ticket, const ReadPlan& plan, absl::Span<const AnswerPart> parts);
  // What the disk does not give is fetched, once.
  void ReadAgain(ReadTicket ticket, const ReadPlan& plan, absl::Span<const AnswerPart> parts,
                 const absl::Status& why);
  void Fail(const ReadTicket& ticket, const ReadPlan& plan, const absl::Status& why);
  void LogFailure(const ReadPlan& plan, const absl::Status& why) ABSL_LOCKS_EXCLUDED(log_mutex_);
  bool Failing(const base::Digest& layer) const ABSL_LOCKS_EXCLUDED(mutex_);

  const Options options_;
  std::atomic<uint64_t> reads_{0};
  std::atomic<uint64_t> hits_{0};
  std::atomic<uint64_t> failed_{0};
  std::atomic<bool> any_failing_{false};

  mutable absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_map<uint64_t, WaitingPtr> waiting_ ABSL_GUARDED_BY(mutex_);  // by FirstUnique
  absl::flat_hash_set<base::Digest> failing_ ABSL_GUARDED_BY(mutex_);
  std::vector<Expired> expired_ ABSL_GUARDED_BY(mutex_);
  // Interrupts that overtook their request on another thread; the oldest is overwritten.
  std::vector<uint64_t> early_interrupts_ ABSL_GUARDED_BY(mutex_);
  size_t next_early_interrupt_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t answering_ ABSL_GUARDED_BY(mutex_) = 0;

  absl::Mutex log_mutex_ ABSL_ACQUIRED_AFTER(mutex_);
  struct Logged {
    absl::Duration at = -absl::InfiniteDuration();
    uint64_t silent = 0;
  };
  absl::flat_hash_map<base::Digest, Logged> logged_ ABSL_GUARDED_BY(log_mutex_);
};

}  // namespace lazyblob::fuse::internal
