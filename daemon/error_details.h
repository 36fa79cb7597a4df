#pragma once

// Errors of lazyblob.v1 on the wire: absl's codes are gRPC's numbers, and what has a type beyond its code
// travels as the bytes of google.rpc.Status (grpc-status-details-bin). Pure; thread-safe.

#include <string>

#include "absl/status/status.h"

namespace lazyblob::daemon {

// Empty where code and message say everything; missing providers are a ProvidersMissing.
std::string ErrorDetailsOf(const absl::Status& status);
// `status` as it was before it travelled with `details`.
absl::Status WithErrorDetails(const absl::Status& status, const std::string& details);

}  // namespace lazyblob::daemon
