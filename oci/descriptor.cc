#include "oci/descriptor.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace lazyblob::oci {

std::string Platform::ToString() const {
  std::string text = absl::StrCat(os, "/", architecture);
  if (!variant.empty()) absl::StrAppend(&text, "/", variant);
  return text;
}

std::optional<Compression> LayerCompression(absl::string_view media_type) {
  absl::string_view rest = media_type;
  if (absl::ConsumePrefix(&rest, "application/vnd.oci.image.layer.")) {
    absl::ConsumePrefix(&rest, "nondistributable.");
    if (rest == "v1.tar") return Compression::kNone;
    if (rest == "v1.tar+gzip") return Compression::kGzip;
    if (rest == "v1.tar+zstd") return Compression::kZstd;
    return std::nullopt;
  }
  if (absl::ConsumePrefix(&rest, "application/vnd.docker.image.rootfs.")) {
    absl::ConsumePrefix(&rest, "foreign.");
    if (rest == "diff.tar") return Compression::kNone;
    if (rest == "diff.tar.gzip") return Compression::kGzip;
    if (rest == "diff.tar.zstd") return Compression::kZstd;
  }
  return std::nullopt;
}

bool IsManifestMediaType(absl::string_view media_type) {
  return media_type == kMediaTypeOciManifest || media_type == kMediaTypeDockerManifest;
}

bool IsIndexMediaType(absl::string_view media_type) {
  return media_type == kMediaTypeOciIndex || media_type == kMediaTypeDockerIndex;
}

}  // namespace lazyblob::oci
