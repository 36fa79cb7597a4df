#pragma once

// Documents of images whose layers are texts.

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "base/digest.h"

namespace lazyblob::contentservice {

inline base::Digest DigestOf(absl::string_view bytes) { return base::Digest::Of(bytes); }

inline std::string Config(const std::vector<std::string>& contents) {
  std::vector<std::string> diff_ids;
  for (const std::string& layer : contents) {
    diff_ids.push_back(absl::StrCat("\"", DigestOf("tar of " + layer).ToString(), "\""));
  }
  return absl::StrCat(R"({"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[)",
                      absl::StrJoin(diff_ids, ","), "]}}");
}
inline std::string Manifest(const std::string& config, const std::vector<std::string>& blobs,
                            const std::string& type = "application/vnd.oci.image.layer.v1.tar+gzip") {
  std::vector<std::string> layers;
  for (const std::string& blob : blobs) {
    layers.push_back(absl::StrCat(R"({"mediaType":")", type, R"(","digest":")", DigestOf(blob).ToString(),
                                  R"(","size":)", blob.size(), R"(,"annotations":{"a":"b"}})"));
  }
  return absl::StrCat(
      R"({"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":)",
      R"({"mediaType":"application/vnd.oci.image.config.v1+json","digest":")", DigestOf(config).ToString(),
      R"(","size":)", config.size(), R"(},"layers":[)", absl::StrJoin(layers, ","), "]}");
}

}  // namespace lazyblob::contentservice
