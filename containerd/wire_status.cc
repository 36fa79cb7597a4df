#include "containerd/wire_status.h"

#include <string>

#include "absl/strings/match.h"
#include "base/status.h"

namespace lazyblob::containerd {

absl::Status WireStatus(const absl::Status& status) {
  if (status.ok()) return status;
  absl::StatusCode code = status.code();
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kUnavailable:
      if (base::HasErrno(status)) code = absl::StatusCode::kInternal;
      break;
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnimplemented:
      break;
    default:
      code = absl::StatusCode::kInternal;
  }
  std::string message(status.message().substr(0, kMaxStatusMessage));
  for (int i = 0; i < 3 && !base::IsUtf8(message); ++i) message.pop_back();  // cut inside a character
  // Clients tell some errors by how their text ends, and would take this one for another.
  if (absl::EndsWith(message, "conflict") || absl::EndsWith(message, "not modified")) message.push_back('.');
  return absl::Status(code, message);
}

}  // namespace lazyblob::containerd
