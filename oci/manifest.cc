#include "oci/manifest.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status.h"

namespace lazyblob::oci {
namespace {

using nlohmann::json;

absl::Status Bad(absl::string_view why) { return absl::InvalidArgumentError(why); }

absl::Status CheckDigest(absl::string_view raw, const base::Digest& expected) {
  base::Hasher hasher(expected.algorithm());
  hasher.Update(raw);
  base::Digest actual = hasher.Finish();
  if (actual == expected) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("bytes have digest ", actual.ToString(), ", wanted ", expected.ToString()));
}

absl::StatusOr<std::string> OptionalString(const json& object, const char* key) {
  ASSIGN_OR_RETURN(std::optional<std::string> value, base::JsonString(object, key));
  return value.value_or("");
}

absl::StatusOr<std::map<std::string, std::string>> ParseAnnotations(const json& object) {
  std::map<std::string, std::string> annotations;
  auto member = object.find("annotations");
  if (member == object.end() || member->is_null()) return annotations;
  if (!member->is_object()) return Bad("\"annotations\" is not an object");
  for (const auto& [key, value] : member->items()) {
    if (!value.is_string())
      return Bad(absl::StrCat("annotation \"", base::Printable(key), "\" is not a string"));
    annotations.emplace(key, value.get<std::string>());
  }
  return annotations;
}

absl::StatusOr<std::vector<std::string>> ParseStrings(const json& object, const char* key) {
  std::vector<std::string> values;
  auto member = object.find(key);
  if (member == object.end() || member->is_null()) return values;
  if (!member->is_array()) return Bad(absl::StrCat("\"", key, "\" is not an array"));
  for (const json& value : *member) {
    if (!value.is_string()) return Bad(absl::StrCat("\"", key, "\" holds something that is not a string"));
    values.push_back(value.get<std::string>());
  }
  return values;
}

absl::StatusOr<Platform> ParsePlatformObject(const json& object) {
  Platform platform;
  ASSIGN_OR_RETURN(platform.os, OptionalString(object, "os"));
  ASSIGN_OR_RETURN(platform.architecture, OptionalString(object, "architecture"));
  ASSIGN_OR_RETURN(platform.variant, OptionalString(object, "variant"));
  ASSIGN_OR_RETURN(platform.os_version, OptionalString(object, "os.version"));
  return platform;
}

absl::StatusOr<Descriptor> ParseDescriptor(const json& object) {
  if (!object.is_object()) return Bad("descriptor is not an object");
  Descriptor descriptor;
  ASSIGN_OR_RETURN(std::optional<std::string> media_type, base::JsonString(object, "mediaType"));
  ASSIGN_OR_RETURN(std::optional<std::string> digest, base::JsonString(object, "digest"));
  ASSIGN_OR_RETURN(std::optional<uint64_t> size, base::JsonUint(object, "size"));
  if (!digest) return Bad("descriptor without \"digest\"");
  if (!size) return Bad("descriptor without \"size\"");
  if (*size > static_cast<uint64_t>(INT64_MAX)) return Bad("descriptor with \"size\" over 2^63-1");
  descriptor.media_type = media_type.value_or("");
  ASSIGN_OR_RETURN(descriptor.digest, base::Digest::Parse(*digest));
  descriptor.size = *size;
  ASSIGN_OR_RETURN(descriptor.annotations, ParseAnnotations(object));
  ASSIGN_OR_RETURN(descriptor.urls, ParseStrings(object, "urls"));
  ASSIGN_OR_RETURN(descriptor.artifact_type, OptionalString(object, "artifactType"));
  if (auto platform = object.find("platform"); platform != object.end() && !platform->is_null()) {
    if (!platform->is_object()) return Bad("\"platform\" is not an object");
    ASSIGN_OR_RETURN(descriptor.platform, ParsePlatformObject(*platform));
  }
  return descriptor;
}

absl::StatusOr<std::vector<Descriptor>> ParseDescriptors(const json& object, const char* key) {
  std::vector<Descriptor> descriptors;
  auto member = object.find(key);
  if (member == object.end() || member->is_null()) return descriptors;
  if (!member->is_array()) return Bad(absl::StrCat("\"", key, "\" is not an array"));
  for (const json& value : *member) {
    absl::StatusOr<Descriptor> descriptor = ParseDescriptor(value);
    if (!descriptor.ok()) {
      return base::Annotate(descriptor.status(), absl::StrCat("\"", key, "\"[", descriptors.size(), "]"));
    }
    descriptors.push_back(*std::move(descriptor));
  }
  return descriptors;
}

absl::StatusOr<Manifest> ParseManifest(const json& object, std::string media_type) {
  Manifest manifest;
  manifest.media_type = std::move(media_type);
  ASSIGN_OR_RETURN(manifest.artifact_type, OptionalString(object, "artifactType"));
  auto config = object.find("config");
  if (config == object.end()) return Bad("manifest without \"config\"");
  absl::StatusOr<Descriptor> descriptor = ParseDescriptor(*config);
  if (!descriptor.ok()) return base::Annotate(descriptor.status(), "\"config\"");
  manifest.config = *std::move(descriptor);
  auto layers = object.find("layers");
  if (layers != object.end() && layers->is_array() && layers->size() > kMaxLayers) {
    return Bad(absl::StrCat("manifest with ", layers->size(), " layers, limit is ", kMaxLayers));
  }
  ASSIGN_OR_RETURN(manifest.layers, ParseDescriptors(object, "layers"));
  ASSIGN_OR_RETURN(manifest.annotations, ParseAnnotations(object));
  if (auto subject = object.find("subject"); subject != object.end() && !subject->is_null()) {
    descriptor = ParseDescriptor(*subject);
    if (!descriptor.ok()) return base::Annotate(descriptor.status(), "\"subject\"");
    manifest.subject = *std::move(descriptor);
  }
  return manifest;
}

// Which of the two the document is. Anything that could be read both ways is refused: two readers that choose
// differently would run different images under one digest.
absl::StatusOr<bool> IsIndex(const json& object, const std::string& media_type) {
  bool has_manifests = object.contains("manifests");
  bool has_layers = object.contains("layers") || object.contains("config") || object.contains("fsLayers");
  if (has_manifests && has_layers) return Bad("document reads as both manifest and index");
  if (media_type.empty()) {
    if (!has_manifests && !has_layers) return Bad("neither a manifest nor an index");
    return has_manifests;
  }
  if (IsIndexMediaType(media_type)) {
    if (has_layers) return Bad("media type of an index, contents of a manifest");
    return true;
  }
  if (IsManifestMediaType(media_type)) {
    if (has_manifests) return Bad("media type of a manifest, contents of an index");
    return false;
  }
  return Bad(absl::StrCat(
      "media type \"", base::Printable(media_type.substr(0, 120)),
      "\" is neither an image manifest nor an index; push the image again as OCI or Docker schema 2"));
}

absl::string_view WithoutParameters(absl::string_view content_type) {
  return absl::StripAsciiWhitespace(content_type.substr(0, content_type.find(';')));
}

}  // namespace

absl::StatusOr<std::variant<Manifest, Index>> ParseManifestOrIndex(
    absl::string_view raw, const std::optional<base::Digest>& expected, absl::string_view content_type) {
  if (raw.size() > kMaxManifestBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("manifest of ", raw.size(), " bytes, limit is ", kMaxManifestBytes));
  }
  if (expected) RETURN_IF_ERROR(CheckDigest(raw, *expected));
  ASSIGN_OR_RETURN(json object, base::ParseJson(raw, kMaxManifestBytes));
  if (!object.is_object()) return Bad("manifest is not a JSON object");
  if (auto version = object.find("schemaVersion"); version != object.end() && *version != 2) {
    return Bad("schemaVersion is not 2; push the image again as OCI or Docker schema 2");
  }
  ASSIGN_OR_RETURN(std::string media_type, OptionalString(object, "mediaType"));
  absl::string_view outer = WithoutParameters(content_type);
  if (!outer.empty() && !media_type.empty() && outer != media_type) {
    return Bad(absl::StrCat("Content-Type \"", base::Printable(outer.substr(0, 120)), "\" but mediaType \"",
                            base::Printable(media_type.substr(0, 120)), "\""));
  }
  if (media_type.empty()) media_type = std::string(outer);
  ASSIGN_OR_RETURN(bool is_index, IsIndex(object, media_type));
  if (!is_index) {
    if (media_type.empty()) media_type = kMediaTypeOciManifest;
    ASSIGN_OR_RETURN(Manifest manifest, ParseManifest(object, std::move(media_type)));
    return std::variant<Manifest, Index>(std::move(manifest));
  }
  Index index;
  index.media_type = media_type.empty() ? kMediaTypeOciIndex : std::move(media_type);
  ASSIGN_OR_RETURN(index.manifests, ParseDescriptors(object, "manifests"));
  ASSIGN_OR_RETURN(index.annotations, ParseAnnotations(object));
  return std::variant<Manifest, Index>(std::move(index));
}

absl::StatusOr<ImageConfig> ParseImageConfig(absl::string_view raw, const base::Digest& expected) {
  if (raw.size() > kMaxConfigBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("image config of ", raw.size(), " bytes, limit is ", kMaxConfigBytes));
  }
  RETURN_IF_ERROR(CheckDigest(raw, expected));
  ASSIGN_OR_RETURN(json object, base::ParseJson(raw, kMaxConfigBytes));
  if (!object.is_object()) return Bad("image config is not a JSON object");
  ImageConfig config;
  ASSIGN_OR_RETURN(config.platform, ParsePlatformObject(object));
  if (auto rootfs = object.find("rootfs"); rootfs != object.end() && !rootfs->is_null()) {
    if (!rootfs->is_object()) return Bad("\"rootfs\" is not an object");
    ASSIGN_OR_RETURN(std::vector<std::string> diff_ids, ParseStrings(*rootfs, "diff_ids"));
    if (diff_ids.size() > kMaxLayers) {
      return Bad(absl::StrCat("image config with ", diff_ids.size(), " diff_ids, limit is ", kMaxLayers));
    }
    for (const std::string& text : diff_ids) {
      ASSIGN_OR_RETURN(base::Digest diff_id, base::Digest::Parse(text));
      config.diff_ids.push_back(diff_id);
    }
  }
  if (auto inner = object.find("config"); inner != object.end() && !inner->is_null()) {
    if (!inner->is_object()) return Bad("\"config\" is not an object");
    ASSIGN_OR_RETURN(config.environment, ParseStrings(*inner, "Env"));
    ASSIGN_OR_RETURN(config.entrypoint, ParseStrings(*inner, "Entrypoint"));
    ASSIGN_OR_RETURN(config.command, ParseStrings(*inner, "Cmd"));
    ASSIGN_OR_RETURN(config.working_directory, OptionalString(*inner, "WorkingDir"));
  }
  return config;
}

}  // namespace lazyblob::oci
