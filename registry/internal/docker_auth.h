#pragma once

// The "auths" of Docker's config.json, which Kubernetes' pull secrets hold too. Pure; thread-safe. No error
// repeats a value.

#include <map>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "registry/credentials.h"

namespace lazyblob::registry::internal {

// By key as written; entries without credentials are left out.
absl::StatusOr<std::map<std::string, Credentials>> ParseDockerAuths(const nlohmann::json& auths);

}  // namespace lazyblob::registry::internal
