#pragma once

// OCI descriptors, platforms and media types (OCI image-spec 1.1 descriptor.md, media-types.md; Docker image
// manifest v2 schema 2). Values; thread-safe as such.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/digest.h"

namespace lazyblob::oci {

inline constexpr char kMediaTypeOciManifest[] = "application/vnd.oci.image.manifest.v1+json";
inline constexpr char kMediaTypeOciIndex[] = "application/vnd.oci.image.index.v1+json";
inline constexpr char kMediaTypeDockerManifest[] = "application/vnd.docker.distribution.manifest.v2+json";
inline constexpr char kMediaTypeDockerIndex[] = "application/vnd.docker.distribution.manifest.list.v2+json";

struct Platform {
  std::string os;
  std::string architecture;
  std::string variant;
  std::string os_version;

  friend bool operator==(const Platform&, const Platform&) = default;
  // "linux/arm64/v8"
  std::string ToString() const;
};

// What names a blob: enough to fetch and verify it, not how to reach it.
struct Descriptor {
  std::string media_type;
  base::Digest digest;
  uint64_t size = 0;  // bytes of the blob as the registry stores it
  std::map<std::string, std::string> annotations;
  std::optional<Platform> platform;
  std::vector<std::string> urls;
  std::string artifact_type;
};

// How the bytes of a layer's blob are compressed, by media type.
enum class Compression { kNone, kGzip, kZstd };

// nullopt: `media_type` is not a layer that can be mounted (say, an artifact or an encrypted layer). Knows
// the OCI layer types, the non-distributable ones and Docker's.
std::optional<Compression> LayerCompression(absl::string_view media_type);

bool IsManifestMediaType(absl::string_view media_type);
bool IsIndexMediaType(absl::string_view media_type);

}  // namespace lazyblob::oci
