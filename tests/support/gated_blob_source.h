#pragma once

// A BlobSource in memory for concurrency tests: it counts what it is asked, can hold reads at a gate, and
// ends each as the test says. Thread-safe. A held read also ends when its context is cancelled or its
// deadline passes, and when the source is destroyed.

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "contentstore/blob_source.h"

namespace lazyblob::support {

class GatedBlobSource final : public contentstore::BlobSource {
 public:
  // How a read ends.
  struct Outcome {
    absl::Status status;            // given back after the bytes; an error with `bytes` unset gives no bytes
    std::optional<uint64_t> bytes;  // how many bytes are given; unset: all (of an OK outcome)
    std::optional<uint64_t> flip_bit_of_byte;  // blob offset of a byte that arrives wrong
  };
  static Outcome Succeed() { return {}; }
  static Outcome Fail(absl::Status status) { return {std::move(status), std::nullopt, std::nullopt}; }
  // `bytes` right ones, then the connection breaks.
  static Outcome BreakAfter(uint64_t bytes) {
    return {absl::UnavailableError("connection broken by the test"), bytes, std::nullopt};
  }
  // A source that lies: OK, but fewer (or more) bytes than asked.
  static Outcome Lie(uint64_t bytes) { return {absl::OkStatus(), bytes, std::nullopt}; }
  static Outcome Corrupt(uint64_t blob_offset) { return {absl::OkStatus(), std::nullopt, blob_offset}; }

  struct Request {
    base::Digest digest;
    registry::ByteRange range;
    // The provider that came with the call (compare pointers), and what it answered for the host "test".
    std::shared_ptr<const registry::CredentialsProvider> credentials;
    std::string username;
    absl::Duration deadline;
    bool finished = false;
    absl::Status result;
    bool distrust_mirrors = false;
  };

  explicit GatedBlobSource(std::string name = "test:gated", const base::Clock* clock = &base::SystemClock());
  // Ends held reads with kCancelled and waits for them.
  ~GatedBlobSource() override;

  // `bytes` can be read from now on, under their digest, which is returned.
  base::Digest PutBlob(std::string bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  // Reads that start from now on wait …
  void Hold() ABSL_LOCKS_EXCLUDED(mutex_);
  // … until all are let go, those to come included, …
  void Release() ABSL_LOCKS_EXCLUDED(mutex_);
  // … or the oldest held read alone, with this outcome. Waits for one to be held; false after kPatience.
  bool ReleaseOne(Outcome outcome = Succeed()) ABSL_LOCKS_EXCLUDED(mutex_);
  // The next reads to pass end with these outcomes, in order; then the default outcome again.
  void Enqueue(Outcome outcome, int times = 1) ABSL_LOCKS_EXCLUDED(mutex_);
  void SetDefault(Outcome outcome) ABSL_LOCKS_EXCLUDED(mutex_);

  // Waits until `count` requests have ever been made, or are held right now; false after kPatience.
  bool AwaitRequests(size_t count) ABSL_LOCKS_EXCLUDED(mutex_);
  bool AwaitHeld(size_t count) ABSL_LOCKS_EXCLUDED(mutex_);
  size_t held() const ABSL_LOCKS_EXCLUDED(mutex_);

  std::vector<Request> requests() const ABSL_LOCKS_EXCLUDED(mutex_);
  size_t request_count() const ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t bytes_given() const ABSL_LOCKS_EXCLUDED(mutex_);
  // How many requests covered this byte of the blob: 1 proves single flight.
  size_t TimesRequested(const base::Digest& digest, uint64_t blob_offset) const ABSL_LOCKS_EXCLUDED(mutex_);

  void set_link(registry::Client::LinkEstimate link) ABSL_LOCKS_EXCLUDED(mutex_);
  void set_local(bool local) ABSL_LOCKS_EXCLUDED(mutex_);
  // Bytes per call of the sink; default 64 KiB.
  void set_piece_size(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

  std::string name() const override { return name_; }
  absl::Status Read(const oci::Descriptor& blob, registry::ByteRange range, registry::BodySink sink,
                    const registry::CallContext& context) override ABSL_LOCKS_EXCLUDED(mutex_);
  registry::Client::LinkEstimate link() const override ABSL_LOCKS_EXCLUDED(mutex_);
  bool local() const override ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Waiter {
    std::optional<Outcome> outcome;  // set by ReleaseOne
    bool cancelled = false;
  };

  absl::StatusOr<Outcome> AwaitTurn(const registry::CallContext& context) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Outcome> AwaitTurnOf(const std::shared_ptr<Waiter>& waiter,
                                      const registry::CallContext& context) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Give(const std::string& bytes, registry::ByteRange range, const Outcome& outcome,
                    registry::BodySink sink, const registry::CallContext& context)
      ABSL_LOCKS_EXCLUDED(mutex_);

  const std::string name_;
  const base::Clock* const clock_;

  mutable absl::Mutex mutex_;
  std::map<base::Digest, std::shared_ptr<const std::string>> blobs_ ABSL_GUARDED_BY(mutex_);
  std::vector<Request> requests_ ABSL_GUARDED_BY(mutex_);
  std::deque<std::shared_ptr<Waiter>> waiters_ ABSL_GUARDED_BY(mutex_);  // oldest first
  std::deque<Outcome> queued_ ABSL_GUARDED_BY(mutex_);
  Outcome default_ ABSL_GUARDED_BY(mutex_);
  registry::Client::LinkEstimate link_ ABSL_GUARDED_BY(mutex_);
  uint64_t piece_size_ ABSL_GUARDED_BY(mutex_) = 64 << 10;
  uint64_t bytes_given_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t running_ ABSL_GUARDED_BY(mutex_) = 0;
  bool holding_ ABSL_GUARDED_BY(mutex_) = false;
  bool local_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace lazyblob::support
