#pragma once

// Image manifests, indexes and configs, Docker's and OCI's. Callers give the raw bytes with the digest they
// must have: nothing is parsed before it is verified. Pure; thread-safe.

#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "oci/descriptor.h"

namespace lazyblob::oci {

inline constexpr uint64_t kMaxManifestBytes = 4 << 20;
inline constexpr uint64_t kMaxConfigBytes = 8 << 20;
inline constexpr size_t kMaxLayers = 500;

struct Manifest {
  std::string media_type;
  std::string artifact_type;
  Descriptor config;
  std::vector<Descriptor> layers;  // bottom first
  std::map<std::string, std::string> annotations;
  std::optional<Descriptor> subject;
};

struct Index {
  std::string media_type;
  std::vector<Descriptor> manifests;
  std::map<std::string, std::string> annotations;
};

struct ImageConfig {
  Platform platform;
  std::vector<base::Digest> diff_ids;  // of the uncompressed layers, bottom first
  std::vector<std::string> environment;
  std::vector<std::string> entrypoint;
  std::vector<std::string> command;
  std::string working_directory;
};

// Fails unless `raw` has digest `expected` (when given); unless `content_type` (when not empty) and
// "mediaType" (when present) agree; and when a document reads as both manifest and index (CVE-2021-41190). At
// most kMaxManifestBytes and kMaxLayers.
absl::StatusOr<std::variant<Manifest, Index>> ParseManifestOrIndex(
    absl::string_view raw, const std::optional<base::Digest>& expected, absl::string_view content_type);

absl::StatusOr<ImageConfig> ParseImageConfig(absl::string_view raw, const base::Digest& expected);

// The platform this program runs on, and parsing of "os/arch[/variant]".
Platform HostPlatform();
absl::StatusOr<Platform> ParsePlatform(absl::string_view text);

// The manifest of `index` for `wanted`, as containerd chooses it: os and architecture must match, the variant
// as near as possible (arm64 = v8, arm/v7 runs v6 and v5, amd64 without variant first). NotFound lists what
// is there.
absl::StatusOr<Descriptor> SelectPlatform(const Index& index, const Platform& wanted);

}  // namespace lazyblob::oci
