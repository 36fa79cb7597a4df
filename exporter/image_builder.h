#pragma once

// Documents of images: a base's manifest and config with layers put on top. Pure and thread-safe; the same
// arguments give the same bytes. Formats: OCI image-spec 1.1 config.md, manifest.md; Docker image manifest v2
// schema 2. docs/EXPORT_FORMATS.md says what is kept of the base.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/digest.h"
#include "oci/descriptor.h"
#include "oci/manifest.h"

namespace lazyblob::exporter {

struct BaseImage {
  oci::Manifest manifest;
  std::string config;  // raw, verified by whoever fetched it
};

struct NewLayer {
  oci::Descriptor descriptor;
  base::Digest diff_id;
  std::string created_by;  // for the history
};

struct ImageSpec {
  std::optional<BaseImage> base;          // absent: from scratch
  std::optional<oci::Platform> platform;  // absent: the base's, or this host's
  std::vector<NewLayer> layers;           // bottom first, on top of the base's
  // JSON merge patch (RFC 7396) for the config; not for "rootfs" and "history". Empty: none.
  std::string config_patch;
  std::map<std::string, std::string> annotations;  // of the manifest, over the base's
  bool docker_media_types = false;
  std::optional<int64_t> created;  // seconds since 1970, for the config and new history; absent: the base's
  // What InlineCache of build_cache.h gives; empty: none. The base's own is always left out.
  std::string inline_cache;
};

struct BuiltImage {
  std::string config;
  oci::Descriptor config_descriptor;
  std::string manifest;
  oci::Descriptor manifest_descriptor;  // with the platform
  std::vector<oci::Descriptor> layers;  // as the manifest names them
  std::vector<base::Digest> diff_ids;
};

// InvalidArgument: a base whose manifest and config do not agree, a layer that is none, a patch that cannot
// be, another platform than the base's. ResourceExhausted: documents larger than readers take.
absl::StatusOr<BuiltImage> BuildImage(const ImageSpec& spec);

// `media_type` of a layer in OCI's or in Docker's words; others come back as they are.
std::string LayerMediaType(absl::string_view media_type, bool docker);

// `annotations` without those that are for the local store only: where a blob came from, when it was made,
// and (`keep_diff_id` unset) its diffID.
std::map<std::string, std::string> PublicAnnotations(const std::map<std::string, std::string>& annotations,
                                                     bool keep_diff_id = false);

}  // namespace lazyblob::exporter
