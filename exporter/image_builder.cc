#include "exporter/image_builder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/json.h"
#include "base/status.h"
#include "oci/manifest_writer.h"

namespace lazyblob::exporter {
namespace {

using nlohmann::json;

constexpr char kDiffIdAnnotation[] = "containerd.io/uncompressed";
constexpr char kInlineCacheKey[] = "moby.buildkit.cache.v0";

absl::Status Bad(absl::string_view why) { return absl::InvalidArgumentError(why); }

std::string Time(int64_t seconds) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixSeconds(seconds), absl::UTCTimeZone());
}

absl::Status CheckSize(absl::string_view what, uint64_t size, uint64_t limit) {
  if (size <= limit) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the ", what, " would have ", size, " bytes, limit is ",
                                                   limit,
                                                   "; use fewer layers, annotations or history entries"));
}

// The base's config, or an empty one; and the base's diffIDs.
absl::StatusOr<json> BaseConfig(const ImageSpec& spec, std::vector<base::Digest>* diff_ids) {
  if (!spec.base) return json::object();
  ASSIGN_OR_RETURN(const oci::ImageConfig parsed,
                   oci::ParseImageConfig(spec.base->config, base::Digest::Of(spec.base->config)));
  if (parsed.diff_ids.size() != spec.base->manifest.layers.size()) {
    return Bad(absl::StrCat("the base's manifest has ", spec.base->manifest.layers.size(),
                            " layers, its config ", parsed.diff_ids.size()));
  }
  *diff_ids = parsed.diff_ids;
  return base::ParseJson(spec.base->config, oci::kMaxConfigBytes);
}

absl::Status ApplyPatch(absl::string_view patch, json* config) {
  if (patch.empty()) return absl::OkStatus();
  absl::StatusOr<json> parsed = base::ParseJson(patch, oci::kMaxConfigBytes);
  if (!parsed.ok()) return base::Annotate(parsed.status(), "changes to the image config");
  if (!parsed->is_object()) return Bad("changes to the image config are not a JSON object");
  for (const char* key : {"rootfs", "history", kInlineCacheKey}) {
    if (parsed->contains(key)) {
      return Bad(
          absl::StrCat("changes to the image config name \"", key, "\", which follows from the layers"));
    }
  }
  config->merge_patch(*parsed);
  return absl::OkStatus();
}

absl::StatusOr<oci::Platform> SetPlatform(const ImageSpec& spec, json* config) {
  oci::Platform platform;
  ASSIGN_OR_RETURN(const std::optional<std::string> os, base::JsonString(*config, "os"));
  ASSIGN_OR_RETURN(const std::optional<std::string> architecture, base::JsonString(*config, "architecture"));
  ASSIGN_OR_RETURN(const std::optional<std::string> variant, base::JsonString(*config, "variant"));
  ASSIGN_OR_RETURN(const std::optional<std::string> version, base::JsonString(*config, "os.version"));
  platform = {os.value_or(""), architecture.value_or(""), variant.value_or(""), version.value_or("")};
  const oci::Platform wanted = spec.platform.value_or(platform.os.empty() ? oci::HostPlatform() : platform);
  const bool differs = (os && *os != wanted.os) || (architecture && *architecture != wanted.architecture);
  if (differs) {
    return Bad(absl::StrCat("the image is for ", wanted.ToString(), ", its base or config says ",
                            platform.ToString()));
  }
  if (!os) (*config)["os"] = wanted.os;
  if (!architecture) (*config)["architecture"] = wanted.architecture;
  if (!variant && !wanted.variant.empty()) (*config)["variant"] = wanted.variant;
  if (!version && !wanted.os_version.empty()) (*config)["os.version"] = wanted.os_version;
  platform = wanted;
  if (variant) platform.variant = *variant;
  if (version) platform.os_version = *version;
  return platform;
}

// A history with exactly one entry that is not empty for each layer: readers pair them by position,
// BuildKit's import of inline caches without looking whether there are enough.
absl::StatusOr<json> History(const ImageSpec& spec, const json& config) {
  json history = json::array();
  size_t unaccounted = spec.base ? spec.base->manifest.layers.size() : 0;
  if (auto found = config.find("history"); found != config.end() && !found->is_null()) {
    if (!found->is_array()) return Bad("\"history\" of the base's config is not an array");
    for (json entry : *found) {
      if (!entry.is_object())
        return Bad("\"history\" of the base's config holds something that is no object");
      const bool empty = entry.contains("empty_layer") && entry["empty_layer"] == true;
      if (!empty && unaccounted == 0) entry["empty_layer"] = true;
      if (!empty && unaccounted > 0) --unaccounted;
      history.push_back(std::move(entry));
    }
  }
  for (; unaccounted > 0; --unaccounted) {
    history.push_back({{"created_by", "unknown"}, {"comment", "layer of the base, without history"}});
  }
  for (const NewLayer& layer : spec.layers) {
    json entry = {{"created_by", layer.created_by}, {"comment", "lazyblob"}};
    if (spec.created) entry["created"] = Time(*spec.created);
    history.push_back(std::move(entry));
  }
  return history;
}

absl::StatusOr<std::vector<oci::Descriptor>> Layers(const ImageSpec& spec) {
  std::vector<oci::Descriptor> layers;
  if (spec.base) layers = spec.base->manifest.layers;
  for (const NewLayer& layer : spec.layers) layers.push_back(layer.descriptor);
  if (layers.size() > oci::kMaxLayers) {
    return Bad(absl::StrCat("an image of ", layers.size(), " layers, limit is ", oci::kMaxLayers));
  }
  for (oci::Descriptor& layer : layers) {
    if (!oci::LayerCompression(layer.media_type)) {
      return Bad(absl::StrCat("layer ", layer.digest.ToString(), " has media type \"",
                              base::Printable(layer.media_type.substr(0, 120)),
                              "\", which no image layer has"));
    }
    layer.media_type = LayerMediaType(layer.media_type, spec.docker_media_types);
    layer.annotations = PublicAnnotations(layer.annotations);
    layer.platform.reset();
  }
  return layers;
}

}  // namespace

std::string LayerMediaType(absl::string_view media_type, bool docker) {
  static constexpr struct {
    const char* oci;
    const char* docker;
  } kTypes[] = {
      {"application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"},
      {"application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"},
      {"application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.docker.image.rootfs.diff.tar.zstd"},
      {"application/vnd.oci.image.layer.nondistributable.v1.tar",
       "application/vnd.docker.image.rootfs.foreign.diff.tar"},
      {"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
       "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
      {"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
       "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd"},
  };
  for (const auto& type : kTypes) {
    if (media_type == (docker ? type.oci : type.docker)) return docker ? type.docker : type.oci;
  }
  return std::string(media_type);
}

std::map<std::string, std::string> PublicAnnotations(const std::map<std::string, std::string>& annotations,
                                                     bool keep_diff_id) {
  std::map<std::string, std::string> kept;
  for (const auto& [key, value] : annotations) {
    if (absl::StartsWith(key, "containerd.io/distribution.source")) continue;
    if (!keep_diff_id && (key == kDiffIdAnnotation || absl::StartsWith(key, "buildkit/"))) continue;
    kept.emplace(key, value);
  }
  return kept;
}

absl::StatusOr<BuiltImage> BuildImage(const ImageSpec& spec) {
  BuiltImage image;
  ASSIGN_OR_RETURN(json config, BaseConfig(spec, &image.diff_ids));
  ASSIGN_OR_RETURN(image.layers, Layers(spec));
  RETURN_IF_ERROR(ApplyPatch(spec.config_patch, &config));
  ASSIGN_OR_RETURN(const oci::Platform platform, SetPlatform(spec, &config));
  ASSIGN_OR_RETURN(config["history"], History(spec, config));
  json diff_ids = json::array();
  for (const NewLayer& layer : spec.layers) {
    if (layer.diff_id.empty())
      return Bad(absl::StrCat("layer ", layer.descriptor.digest.ToString(), " has no diffID"));
    image.diff_ids.push_back(layer.diff_id);
  }
  for (const base::Digest& diff_id : image.diff_ids) diff_ids.push_back(diff_id.ToString());
  config["rootfs"] = {{"type", "layers"}, {"diff_ids", std::move(diff_ids)}};
  if (spec.created) config["created"] = Time(*spec.created);
  config.erase(kInlineCacheKey);
  if (!spec.inline_cache.empty()) config[kInlineCacheKey] = spec.inline_cache;
  image.config = oci::WriteJson(config);
  RETURN_IF_ERROR(CheckSize("image config", image.config.size(), oci::kMaxConfigBytes));
  image.config_descriptor = oci::DescriptorOf(
      image.config, spec.docker_media_types ? "application/vnd.docker.container.image.v1+json"
                                            : "application/vnd.oci.image.config.v1+json");

  oci::Manifest manifest;
  manifest.media_type = spec.docker_media_types ? oci::kMediaTypeDockerManifest : oci::kMediaTypeOciManifest;
  manifest.config = image.config_descriptor;
  manifest.layers = image.layers;
  if (spec.base) manifest.annotations = PublicAnnotations(spec.base->manifest.annotations);
  for (const auto& [key, value] : spec.annotations) manifest.annotations[key] = value;
  image.manifest = oci::WriteManifest(manifest);
  RETURN_IF_ERROR(CheckSize("manifest", image.manifest.size(), oci::kMaxManifestBytes));
  image.manifest_descriptor = oci::DescriptorOf(image.manifest, manifest.media_type);
  image.manifest_descriptor.platform = platform;
  return image;
}

}  // namespace lazyblob::exporter
