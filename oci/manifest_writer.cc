#include "oci/manifest_writer.h"

namespace lazyblob::oci {

using nlohmann::json;

json ToJson(const Platform& platform) {
  json object = {{"os", platform.os}, {"architecture", platform.architecture}};
  if (!platform.variant.empty()) object["variant"] = platform.variant;
  if (!platform.os_version.empty()) object["os.version"] = platform.os_version;
  return object;
}

json ToJson(const Descriptor& descriptor) {
  json object = {{"mediaType", descriptor.media_type},
                 {"digest", descriptor.digest.ToString()},
                 {"size", descriptor.size}};
  if (!descriptor.annotations.empty()) object["annotations"] = descriptor.annotations;
  if (descriptor.platform) object["platform"] = ToJson(*descriptor.platform);
  if (!descriptor.urls.empty()) object["urls"] = descriptor.urls;
  if (!descriptor.artifact_type.empty()) object["artifactType"] = descriptor.artifact_type;
  return object;
}

std::string WriteJson(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string WriteManifest(const Manifest& manifest) {
  json object = {{"schemaVersion", 2},
                 {"mediaType", manifest.media_type},
                 {"config", ToJson(manifest.config)},
                 {"layers", json::array()}};
  for (const Descriptor& layer : manifest.layers) object["layers"].push_back(ToJson(layer));
  if (!manifest.artifact_type.empty()) object["artifactType"] = manifest.artifact_type;
  if (!manifest.annotations.empty()) object["annotations"] = manifest.annotations;
  if (manifest.subject) object["subject"] = ToJson(*manifest.subject);
  return WriteJson(object);
}

std::string WriteIndex(const Index& index) {
  json object = {{"schemaVersion", 2}, {"mediaType", index.media_type}, {"manifests", json::array()}};
  for (const Descriptor& manifest : index.manifests) object["manifests"].push_back(ToJson(manifest));
  if (!index.annotations.empty()) object["annotations"] = index.annotations;
  return WriteJson(object);
}

Descriptor DescriptorOf(absl::string_view bytes, absl::string_view media_type) {
  Descriptor descriptor;
  descriptor.media_type = std::string(media_type);
  descriptor.digest = base::Digest::Of(bytes);
  descriptor.size = bytes.size();
  return descriptor;
}

}  // namespace lazyblob::oci
