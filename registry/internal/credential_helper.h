#pragma once

// Runs docker-credential-<name> programs. Thread-safe.

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "registry/credentials.h"

namespace lazyblob::registry::internal {

// `docker-credential-<name> get` with `server` on its standard input. nullopt: the helper knows nothing of
// it. At most 64 KiB of output and `timeout`, after which the helper and what it started are killed. Errors
// name the helper and never repeat its output.
absl::StatusOr<std::optional<Credentials>> RunCredentialHelper(const std::string& name,
                                                               const std::string& server,
                                                               absl::Duration timeout = absl::Seconds(30));

// What a helper printed.
absl::StatusOr<Credentials> ParseHelperOutput(absl::string_view output);

}  // namespace lazyblob::registry::internal
