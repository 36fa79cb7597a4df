#include "snapshotter/lazy_layers.h"

#include "absl/strings/cord.h"

namespace lazyblob::snapshotter {
namespace {
constexpr absl::string_view kReasonPayload = "lazyblob/not-lazy-reason";
}  // namespace

absl::Status NotLazyError(absl::string_view reason, const absl::Status& why) {
  absl::Status status = why.ok() ? absl::FailedPreconditionError(reason) : why;
  status.SetPayload(kReasonPayload, absl::Cord(reason));
  return status;
}

std::string NotLazyReason(const absl::Status& status) {
  auto payload = status.GetPayload(kReasonPayload);
  return payload.has_value() ? std::string(*payload) : "";
}

}  // namespace lazyblob::snapshotter
