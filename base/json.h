#pragma once

// Strict JSON for documents from outside: one value, no duplicate keys, bounded depth and size, valid UTF-8;
// at most one bracket or comma for each 8 bytes of the size that is allowed (or 100000), for these cost
// memory. nlohmann's exceptions end here. Thread-safe.

#include <cstdint>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lazyblob::base {

// InvalidArgument says what is wrong and where; ResourceExhausted when `text` is longer than `max_bytes`.
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, uint64_t max_bytes, int max_depth = 64);

// Typed access to members. A missing member is nullopt; one of another type is InvalidArgument naming `key`.
absl::StatusOr<std::optional<std::string>> JsonString(const nlohmann::json& object, const char* key);
// Only integral, non-negative numbers that fit.
absl::StatusOr<std::optional<uint64_t>> JsonUint(const nlohmann::json& object, const char* key);

}  // namespace lazyblob::base
