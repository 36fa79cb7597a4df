// Manifests, indexes, image configs and platform selection. The first line of the input is the Content-Type.

#include <cstdint>
#include <cstdlib>

#include "oci/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  absl::string_view text(reinterpret_cast<const char*>(data), size);
  size_t line = text.find('\n');
  absl::string_view content_type = line == absl::string_view::npos ? "" : text.substr(0, line);
  absl::string_view raw = line == absl::string_view::npos ? text : text.substr(line + 1);
  lazyblob::base::Digest digest = lazyblob::base::Digest::Of(raw);
  auto document = lazyblob::oci::ParseManifestOrIndex(raw, digest, content_type);
  if (document.ok()) {
    if (const auto* index = std::get_if<lazyblob::oci::Index>(&*document)) {
      (void)lazyblob::oci::SelectPlatform(*index, lazyblob::oci::HostPlatform());
    } else if (std::get<lazyblob::oci::Manifest>(*document).layers.size() > lazyblob::oci::kMaxLayers) {
      abort();
    }
  }
  (void)lazyblob::oci::ParseImageConfig(raw, digest);
  (void)lazyblob::oci::ParsePlatform(raw);
  return 0;
}
