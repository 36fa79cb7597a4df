#pragma once

// What a registry's error body says (distribution-spec, "Error Codes"), and how it travels with a Status.
// Hostile input; pure; thread-safe.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "registry/pusher.h"

namespace lazyblob::registry::internal {

inline constexpr size_t kMaxErrorBody = 16 << 10;

// Codes and digests of {"errors":[{"code":…,"detail":…}]}. Its messages are left out: what a server writes
// there may repeat what we sent. At most 64 errors; nothing if the body is not of that form.
struct ErrorBody {
  std::vector<std::string> codes;
  std::vector<base::Digest> digests;
};
ErrorBody ParseErrorBody(absl::string_view body);

// `status` with what RefusalOf() reads.
absl::Status WithRefusal(absl::Status status, int http_status, const ErrorBody& body);

}  // namespace lazyblob::registry::internal
