#pragma once

// Writing manifests, indexes and descriptors (OCI image-spec 1.1 manifest.md, image-index.md, descriptor.md).
// Compact JSON, members sorted by name: the same value always gives the same bytes, hence the same digest.
// Pure; thread-safe. Strings must be UTF-8: bytes that are not become U+FFFD.

#include <string>

#include <nlohmann/json.hpp>

#include "absl/strings/string_view.h"
#include "oci/descriptor.h"
#include "oci/manifest.h"

namespace lazyblob::oci {

inline constexpr char kRefNameAnnotation[] = "org.opencontainers.image.ref.name";
inline constexpr char kMediaTypeEmpty[] = "application/vnd.oci.empty.v1+json";  // of the bytes "{}"

nlohmann::json ToJson(const Platform& platform);
nlohmann::json ToJson(const Descriptor& descriptor);
// `value` as bytes to be hashed.
std::string WriteJson(const nlohmann::json& value);
std::string WriteManifest(const Manifest& manifest);
std::string WriteIndex(const Index& index);

// Digest and size of `bytes`, SHA-256.
Descriptor DescriptorOf(absl::string_view bytes, absl::string_view media_type);

}  // namespace lazyblob::oci
