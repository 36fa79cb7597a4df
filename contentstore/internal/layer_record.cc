#include "contentstore/internal/layer_record.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

constexpr uint64_t kMaxRecordBytes = 8 << 20;  // annotations come from a manifest, which is at most 4 MiB
constexpr uint64_t kRecordVersion = 1;

absl::Status Bad(absl::string_view what) { return absl::DataLossError(absl::StrCat("layer.json: ", what)); }

absl::StatusOr<std::string> NeededString(const nlohmann::json& object, const char* key) {
  ASSIGN_OR_RETURN(std::optional<std::string> value, base::JsonString(object, key));
  if (!value.has_value()) return Bad(absl::StrCat("no \"", key, "\""));
  return *std::move(value);
}

absl::StatusOr<uint64_t> NeededUint(const nlohmann::json& object, const char* key) {
  ASSIGN_OR_RETURN(const std::optional<uint64_t> value, base::JsonUint(object, key));
  if (!value.has_value()) return Bad(absl::StrCat("no \"", key, "\""));
  return *value;
}

absl::StatusOr<std::vector<base::Digest>> Digests(const nlohmann::json& object, const char* key) {
  std::vector<base::Digest> digests;
  const auto list = object.find(key);
  if (list == object.end()) return digests;
  if (!list->is_array()) return Bad(absl::StrCat(key, " is not an array"));
  for (const nlohmann::json& one : *list) {
    if (!one.is_string()) return Bad(absl::StrCat(key, " holds something else than strings"));
    ASSIGN_OR_RETURN(base::Digest digest, base::Digest::Parse(one.get<std::string>()));
    digests.push_back(std::move(digest));
  }
  return digests;
}

void Put(const char* key, const std::vector<base::Digest>& digests, nlohmann::json* object) {
  for (const base::Digest& digest : digests) (*object)[key].push_back(digest.ToString());
}

absl::StatusOr<oci::Descriptor> DecodeDescriptor(const nlohmann::json& json) {
  if (!json.is_object()) return Bad("descriptor is not an object");
  oci::Descriptor descriptor;
  ASSIGN_OR_RETURN(descriptor.media_type, NeededString(json, "mediaType"));
  ASSIGN_OR_RETURN(const std::string digest, NeededString(json, "digest"));
  ASSIGN_OR_RETURN(descriptor.digest, base::Digest::Parse(digest));
  ASSIGN_OR_RETURN(descriptor.size, NeededUint(json, "size"));
  const auto annotations = json.find("annotations");
  if (annotations == json.end()) return descriptor;
  if (!annotations->is_object()) return Bad("annotations are not an object");
  for (const auto& [key, value] : annotations->items()) {
    if (!value.is_string()) return Bad("an annotation is not a string");
    descriptor.annotations[key] = value.get<std::string>();
  }
  return descriptor;
}

absl::StatusOr<LayerRecord> DecodeJson(const nlohmann::json& json) {
  if (!json.is_object()) return Bad("not an object");
  ASSIGN_OR_RETURN(const uint64_t version, NeededUint(json, "version"));
  if (version != kRecordVersion) return Bad(absl::StrCat("unknown version ", version));
  LayerRecord record;
  ASSIGN_OR_RETURN(const uint64_t id, NeededUint(json, "id"));
  if (id == 0 || id > kMaxLayerId) return Bad(absl::StrCat("id ", id, " is out of range"));
  record.id = static_cast<uint32_t>(id);
  const auto descriptor = json.find("descriptor");
  if (descriptor == json.end()) return Bad("no descriptor");
  ASSIGN_OR_RETURN(record.descriptor, DecodeDescriptor(*descriptor));
  ASSIGN_OR_RETURN(const std::optional<std::string> diff_id, base::JsonString(json, "diffID"));
  if (diff_id.has_value()) {
    ASSIGN_OR_RETURN(record.diff_id, base::Digest::Parse(*diff_id));
  }
  ASSIGN_OR_RETURN(record.claims, Digests(json, "claims"));
  ASSIGN_OR_RETURN(record.unpacked, Digests(json, "unpacked"));
  const auto sources = json.find("sources");
  if (sources != json.end()) {
    if (!sources->is_array()) return Bad("sources are not an array");
    for (const nlohmann::json& source : *sources) {
      if (!source.is_string()) return Bad("a source is not a string");
      record.sources.push_back(source.get<std::string>());
    }
  }
  ASSIGN_OR_RETURN(std::optional<std::string> reason, base::JsonString(json, "notLazy"));
  ASSIGN_OR_RETURN(std::optional<std::string> quarantine, base::JsonString(json, "quarantine"));
  record.not_lazy_reason = std::move(reason).value_or("");
  record.quarantine = std::move(quarantine).value_or("");
  return record;
}

}  // namespace

std::string EncodeLayerRecord(const LayerRecord& record) {
  nlohmann::json descriptor = {{"mediaType", record.descriptor.media_type},
                               {"digest", record.descriptor.digest.ToString()},
                               {"size", record.descriptor.size}};
  if (!record.descriptor.annotations.empty()) descriptor["annotations"] = record.descriptor.annotations;
  nlohmann::json json = {{"version", kRecordVersion},
                         {"id", record.id},
                         {"descriptor", std::move(descriptor)},
                         {"sources", record.sources}};
  if (!record.diff_id.empty()) json["diffID"] = record.diff_id.ToString();
  Put("claims", record.claims, &json);
  Put("unpacked", record.unpacked, &json);
  if (!record.not_lazy_reason.empty()) json["notLazy"] = record.not_lazy_reason;
  if (!record.quarantine.empty()) json["quarantine"] = record.quarantine;
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

absl::StatusOr<LayerRecord> DecodeLayerRecord(absl::string_view text) {
  absl::StatusOr<nlohmann::json> json = base::ParseJson(text, kMaxRecordBytes);
  if (!json.ok()) return Bad(json.status().message());
  absl::StatusOr<LayerRecord> record = DecodeJson(*json);
  if (!record.ok()) return absl::DataLossError(record.status().message());
  return record;
}

absl::Status WriteLayerRecord(const std::string& directory, const LayerRecord& record) {
  RETURN_IF_ERROR(base::FaultPoint("contentstore.record.write"));
  return base::WriteFileAtomically(directory + "/layer.json", EncodeLayerRecord(record));
}

absl::StatusOr<LayerRecord> ReadLayerRecord(const std::string& directory) {
  const absl::StatusOr<std::string> text = base::ReadFile(directory + "/layer.json", kMaxRecordBytes);
  if (absl::IsResourceExhausted(text.status())) return Bad("too large");
  RETURN_IF_ERROR(text.status());
  return DecodeLayerRecord(*text);
}

}  // namespace lazyblob::contentstore
