#include "daemon/mount_table.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"

namespace lazyblob::daemon {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxTableBytes = 64 << 20;

absl::StatusOr<std::string> Text(const json& object, const char* key) {
  ASSIGN_OR_RETURN(auto value, base::JsonString(object, key));
  if (!value.has_value()) return absl::DataLossError(absl::StrCat("\"", key, "\" is missing"));
  return *std::move(value);
}

absl::StatusOr<MountedLayer> ParseLayer(const json& object) {
  MountedLayer layer;
  ASSIGN_OR_RETURN(std::string digest, Text(object, "digest"));
  ASSIGN_OR_RETURN(layer.digest, base::Digest::Parse(digest));
  ASSIGN_OR_RETURN(layer.meta_path, Text(object, "meta"));
  ASSIGN_OR_RETURN(layer.target, Text(object, "target"));
  layer.direct = object.value("direct", false);
  return layer;
}

absl::StatusOr<MountedImage> ParseImage(const json& object) {
  MountedImage image;
  ASSIGN_OR_RETURN(image.reference, Text(object, "reference"));
  ASSIGN_OR_RETURN(std::string manifest, Text(object, "manifest"));
  ASSIGN_OR_RETURN(image.manifest_digest, base::Digest::Parse(manifest));
  ASSIGN_OR_RETURN(image.directory, Text(object, "directory"));
  ASSIGN_OR_RETURN(std::string mode, Text(object, "mode"));
  ASSIGN_OR_RETURN(auto parsed, fuse::ParseMode(mode));
  image.mode = parsed.value_or(fuse::Mode::kErofs);
  ASSIGN_OR_RETURN(image.mode_reason, Text(object, "mode_reason"));
  ASSIGN_OR_RETURN(image.docker_config, Text(object, "docker_config"));
  auto layers = object.find("layers");
  if (layers == object.end() || !layers->is_array()) return absl::DataLossError("\"layers\" is missing");
  for (const json& layer : *layers) {
    ASSIGN_OR_RETURN(MountedLayer parsed_layer, ParseLayer(layer));
    image.layers.push_back(std::move(parsed_layer));
  }
  return image;
}

}  // namespace

absl::StatusOr<std::vector<MountedImage>> LoadMountTable(const std::string& path) {
  auto text = base::ReadFile(path, kMaxTableBytes);
  if (absl::IsNotFound(text.status())) return std::vector<MountedImage>();
  if (!text.ok()) return text.status();
  ASSIGN_OR_RETURN(json table, base::ParseJson(*text, kMaxTableBytes));
  if (!table.is_array()) return absl::DataLossError(absl::StrCat(path, ": not a list"));
  std::vector<MountedImage> mounts;
  for (const json& object : table) {
    auto image = ParseImage(object);
    if (!image.ok()) return base::Annotate(image.status(), path);
    mounts.push_back(*std::move(image));
  }
  return mounts;
}

absl::Status SaveMountTable(const std::string& path, const std::vector<MountedImage>& mounts) {
  json table = json::array();
  for (const MountedImage& image : mounts) {
    json layers = json::array();
    for (const MountedLayer& layer : image.layers) {
      layers.push_back({{"digest", layer.digest.ToString()},
                        {"meta", layer.meta_path},
                        {"target", layer.target},
                        {"direct", layer.direct}});
    }
    table.push_back({{"reference", image.reference},
                     {"manifest", image.manifest_digest.ToString()},
                     {"directory", image.directory},
                     {"mode", std::string(fuse::ModeName(image.mode))},
                     {"mode_reason", image.mode_reason},
                     {"docker_config", image.docker_config},
                     {"layers", std::move(layers)}});
  }
  return base::WriteFileAtomically(path, table.dump(1, ' ', false, json::error_handler_t::replace));
}

}  // namespace lazyblob::daemon
