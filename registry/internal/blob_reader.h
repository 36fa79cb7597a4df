#pragma once

// One ranged read of a blob over as many attempts as it takes: knows how far it is, what to ask for next, and
// whether what comes is what was asked for. Belongs to one call on one thread.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "registry/client.h"
#include "registry/internal/transport.h"

namespace lazyblob::registry::internal {

class BlobReader final : public ResponseHandler {
 public:
  // `range` is not empty and lies inside `blob_size`.
  BlobReader(uint64_t blob_size, ByteRange range, BodySink sink)
      : blob_size_(blob_size), next_(range.offset), end_(range.offset + range.length), sink_(sink) {}

  // Starts an attempt. The Range header to send, empty for none.
  std::string BeginAttempt();

  absl::StatusOr<BodyAction> OnResponse(const HttpResponse& response) override;
  absl::StatusOr<BodyAction> OnBody(absl::Span<const uint8_t> data) override;

  // After an attempt: OK when all was delivered; Unavailable when the body ended early.
  absl::Status EndAttempt() const;

  // From now on ask for the whole blob and cut: the host answered 416 to a range that exists.
  void DoNotAskForRanges() { ask_for_ranges_ = false; }
  bool asks_for_ranges() const { return ask_for_ranges_; }
  // The host sent everything although a part was asked for.
  bool range_was_ignored() const { return range_ignored_; }
  bool complete() const { return next_ == end_; }
  // Where the next byte for the sink is.
  uint64_t position() const { return next_; }
  // The error came from the sink: nobody else can help.
  bool sink_failed() const { return sink_failed_; }
  // True once per 64 KiB delivered or more since it was true last: this is worth going on with.
  bool TakeProgress();

 private:
  absl::Status CheckPartial(const HttpResponse& response) const;

  const uint64_t blob_size_;
  uint64_t next_;
  const uint64_t end_;
  BodySink sink_;
  bool ask_for_ranges_ = true;
  bool asked_range_ = false;
  bool partial_ = false;  // this attempt is answered with the part asked for
  bool range_ignored_ = false;
  bool sink_failed_ = false;
  uint64_t skip_ = 0;     // of a whole body, before next_
  uint64_t noticed_ = 0;  // position at the last TakeProgress
  bool noticed_set_ = false;
};

}  // namespace lazyblob::registry::internal
