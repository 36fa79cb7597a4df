#include "exporter/build_cache.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/json.h"
#include "base/status.h"
#include "exporter/internal/cache_graph.h"
#include "oci/manifest_writer.h"

namespace lazyblob::exporter {
namespace {

using internal::ChainOf;
using internal::CheckGraph;
using nlohmann::json;

constexpr char kDiffIdAnnotation[] = "containerd.io/uncompressed";
constexpr char kCreatedAnnotation[] = "buildkit/createdat";
constexpr char kDescriptionAnnotation[] = "buildkit/description";
constexpr char kInlineCacheKey[] = "moby.buildkit.cache.v0";
constexpr char kPlainCacheLabel[] = "io.lazyblob.cache.names";

absl::Status Bad(absl::string_view why) { return absl::InvalidArgumentError(why); }

absl::StatusOr<int> Index(const json& object, const char* key, int absent) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return absent;
  if (!found->is_number_integer()) return Bad(absl::StrCat("\"", key, "\" is not an integer"));
  const bool large = found->is_number_unsigned() && found->get<uint64_t>() > INT32_MAX;
  const int64_t value = large ? INT64_MAX : found->get<int64_t>();
  if (value < -1 || value > INT32_MAX) return Bad(absl::StrCat("\"", key, "\" is out of range"));
  return static_cast<int>(value);
}

// A member that is an array of objects; absent and null are empty.
absl::StatusOr<std::vector<json>> Objects(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return std::vector<json>();
  if (!found->is_array()) return Bad(absl::StrCat("\"", key, "\" is not an array"));
  for (const json& element : *found) {
    if (!element.is_object()) return Bad(absl::StrCat("\"", key, "\" holds something that is no object"));
  }
  return found->get<std::vector<json>>();
}

absl::StatusOr<std::string> Text(const json& object, const char* key) {
  ASSIGN_OR_RETURN(std::optional<std::string> text, base::JsonString(object, key));
  return std::move(text).value_or("");
}

absl::StatusOr<std::vector<std::vector<CacheLink>>> ParseInputs(const json& record) {
  std::vector<std::vector<CacheLink>> inputs;
  const auto found = record.find("inputs");
  if (found == record.end() || found->is_null()) return inputs;
  if (!found->is_array()) return Bad("\"inputs\" is not an array");
  for (const json& alternatives : *found) {
    if (!alternatives.is_array() || alternatives.empty()) {
      return Bad(absl::StrCat("input ", inputs.size(), " has no links"));
    }
    std::vector<CacheLink> links;
    for (const json& link : alternatives) {
      if (!link.is_object()) return Bad("a link is no object");
      CacheLink parsed;
      ASSIGN_OR_RETURN(parsed.selector, Text(link, "selector"));
      ASSIGN_OR_RETURN(parsed.record, Index(link, "link", 0));
      links.push_back(std::move(parsed));
    }
    inputs.push_back(std::move(links));
  }
  return inputs;
}

// A result that names all its layers, as layers on parents.
absl::StatusOr<int> AddChain(const json& chain, Cache* cache) {
  const auto indexes = chain.find("layers");
  if (indexes == chain.end() || !indexes->is_array() || indexes->empty())
    return Bad("a chain without layers");
  int parent = -1;
  for (const json& index : *indexes) {
    ASSIGN_OR_RETURN(const int layer, Index(json{{"layer", index}}, "layer", -1));
    if (layer < 0 || static_cast<size_t>(layer) >= cache->layers.size())
      return Bad("a chain's layer is out of range");
    cache->layers.push_back({cache->layers[static_cast<size_t>(layer)].blob, parent});
    parent = static_cast<int>(cache->layers.size()) - 1;
  }
  return parent;
}

absl::StatusOr<CacheRecord> ParseRecord(const json& object, Cache* cache) {
  CacheRecord record;
  ASSIGN_OR_RETURN(record.digest, Text(object, "digest"));
  if (record.digest.empty()) return Bad("no digest");
  ASSIGN_OR_RETURN(record.inputs, ParseInputs(object));
  ASSIGN_OR_RETURN(const std::vector<json> results, Objects(object, "layers"));
  for (const json& result : results) {
    CacheResult parsed;
    ASSIGN_OR_RETURN(parsed.layer, Index(result, "layer", 0));
    ASSIGN_OR_RETURN(parsed.created_at, Text(result, "createdAt"));
    record.results.push_back(std::move(parsed));
  }
  ASSIGN_OR_RETURN(const std::vector<json> chains, Objects(object, "chains"));
  for (const json& chain : chains) {
    CacheResult parsed;
    ASSIGN_OR_RETURN(parsed.layer, AddChain(chain, cache));
    ASSIGN_OR_RETURN(parsed.created_at, Text(chain, "createdAt"));
    record.results.push_back(std::move(parsed));
  }
  return record;
}

absl::Status ParseRecords(const std::vector<json>& records, Cache* cache) {
  for (const json& object : records) {
    absl::StatusOr<CacheRecord> record = ParseRecord(object, cache);
    if (!record.ok())
      return base::Annotate(record.status(), absl::StrCat("cache record ", cache->records.size()));
    cache->records.push_back(*std::move(record));
  }
  return CheckGraph(*cache);
}

// Results of which a blob is not to be had.
void DropIncomplete(Cache* cache) {
  for (CacheRecord& record : cache->records) {
    std::erase_if(record.results, [&](const CacheResult& result) {
      const std::vector<base::Digest> chain = ChainOf(*cache, result.layer);
      return !std::all_of(chain.begin(), chain.end(),
                          [&](const base::Digest& blob) { return cache->blobs.contains(blob); });
    });
  }
}

json LinksJson(const CacheRecord& record) {
  json inputs = json::array();
  for (const std::vector<CacheLink>& alternatives : record.inputs) {
    json links = json::array();
    for (const CacheLink& link : alternatives) {
      json object = {{"link", link.record}};
      if (!link.selector.empty()) object["selector"] = link.selector;
      links.push_back(std::move(object));
    }
    inputs.push_back(std::move(links));
  }
  return inputs;
}

json RecordJson(const CacheRecord& record) {
  json object = {{"digest", record.digest}};
  if (!record.inputs.empty()) object["inputs"] = LinksJson(record);
  return object;
}

json WithTime(json result, const std::string& created_at) {
  if (!created_at.empty()) result["createdAt"] = created_at;
  return result;
}

absl::Status CheckSize(absl::string_view what, uint64_t size) {
  if (size <= kMaxCacheDocumentBytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the cache's ", what, " would have ", size, " bytes, and BuildKit reads no more than ",
                   kMaxCacheDocumentBytes, "; use mode=min or several caches"));
}

bool HasResults(const Cache& cache) {
  return std::any_of(cache.records.begin(), cache.records.end(),
                     [](const CacheRecord& record) { return !record.results.empty(); });
}

std::string ConfigJson(const Cache& cache) {
  json layers = json::array();
  for (const CacheLayer& layer : cache.layers) {
    json object = {{"blob", layer.blob.ToString()}};
    if (layer.parent != 0) object["parent"] = layer.parent;  // as Go leaves zeros out
    layers.push_back(std::move(object));
  }
  json records = json::array();
  for (const CacheRecord& record : cache.records) {
    json object = RecordJson(record);
    for (const CacheResult& result : record.results) {
      object["layers"].push_back(WithTime({{"layer", result.layer}}, result.created_at));
    }
    records.push_back(std::move(object));
  }
  return oci::WriteJson({{"layers", std::move(layers)}, {"records", std::move(records)}});
}

// Records by digest, new ones and those of a cache that is there already.
class NewRecords {
 public:
  explicit NewRecords(const Cache& imported) : first_(imported.records.size()) {
    for (size_t i = 0; i < first_; ++i) imported_[imported.records[i].digest].push_back(static_cast<int>(i));
  }

  // `layer`: its result; -1: it has none.
  void Add(const NewCacheRecord& record, int layer, Cache* cache) {
    CacheRecord added;
    added.digest = record.digest;
    if (layer >= 0) {
      CacheResult& result = added.results.emplace_back();
      result.layer = layer;
      if (record.created_at != 0) {
        result.created_at = absl::FormatTime("%Y-%m-%dT%H:%M:%E*SZ", absl::FromUnixNanos(record.created_at),
                                             absl::UTCTimeZone());
      }
    }
    new_[record.digest].push_back(cache->records.size() - first_);
    if (!record.id.empty()) new_[record.id].push_back(cache->records.size() - first_);
    cache->records.push_back(std::move(added));
    given_.push_back(&record);
  }

  absl::Status Link(Cache* cache) const {
    for (size_t i = 0; i < given_.size(); ++i) {
      CacheRecord& record = cache->records[first_ + i];
      for (const std::vector<NewCacheRecord::Link>& alternatives : given_[i]->inputs) {
        std::vector<CacheLink> links;
        for (const NewCacheRecord::Link& link : alternatives) {
          absl::StatusOr<int> found = Find(link.digest);
          if (!found.ok()) {
            return base::Annotate(found.status(), absl::StrCat("cache record ", Short(record.digest)));
          }
          links.push_back({link.selector, *found});
        }
        if (links.empty())
          return Bad(absl::StrCat("cache record ", Short(record.digest), " has an input without links"));
        record.inputs.push_back(std::move(links));
      }
    }
    return absl::OkStatus();
  }

 private:
  static std::string Short(const std::string& digest) { return base::Printable(digest.substr(0, 128)); }

  absl::StatusOr<int> Find(const std::string& name) const {
    if (const auto found = new_.find(name); found != new_.end()) {
      const NewCacheRecord& one = *given_[found->second[0]];
      for (const size_t other : found->second) {
        if (given_[other]->digest == one.digest && given_[other]->inputs == one.inputs) continue;
        return Bad(absl::StrCat("it links to ", Short(name),
                                ", and several different records are called that; "
                                "give them ids"));
      }
      return static_cast<int>(first_ + found->second[0]);
    }
    const auto found = imported_.find(name);
    if (found == imported_.end())
      return Bad(absl::StrCat("it links to ", Short(name), ", which no layer has"));
    if (found->second.size() > 1)
      return Bad(absl::StrCat("it links to ", Short(name), ", and the imports have several such records"));
    return found->second[0];
  }

  const size_t first_;
  std::map<std::string, std::vector<int>> imported_;
  std::map<std::string, std::vector<size_t>> new_;  // by digest and by id
  std::vector<const NewCacheRecord*> given_;
};

// Creation time and command of each layer, from the history of an image config.
void AddHistory(const json& config, std::vector<oci::Descriptor>* layers) {
  const auto history = config.find("history");
  if (history == config.end() || !history->is_array()) return;
  size_t i = 0;
  for (const json& entry : *history) {
    if (!entry.is_object() || entry.value("empty_layer", json()) == true) continue;
    if (i == layers->size()) return;
    std::map<std::string, std::string>& annotations = (*layers)[i++].annotations;
    const json created = entry.value("created", json());
    const json created_by = entry.value("created_by", json());
    if (created.is_string()) annotations[kCreatedAnnotation] = created.get<std::string>();
    if (created_by.is_string() && created_by != "")
      annotations[kDescriptionAnnotation] = created_by.get<std::string>();
  }
}

}  // namespace

absl::StatusOr<Cache> CacheOfLayers(const std::vector<NewCacheLayer>& layers,
                                    const std::vector<NewCacheRecord>& only_linked, const Cache& imported) {
  RETURN_IF_ERROR(CheckGraph(imported));
  NewRecords records(imported);
  Cache cache = imported;
  const size_t first = imported.layers.size();
  std::vector<bool> used(first + layers.size(), false);
  for (const NewCacheLayer& layer : layers) {
    const int place = static_cast<int>(cache.layers.size());
    if (layer.parent < -1 || layer.parent >= place) return Bad("a cache layer's parent is not below it");
    cache.layers.push_back({layer.descriptor.digest, layer.parent});
    oci::Descriptor& blob = cache.blobs[layer.descriptor.digest] = layer.descriptor;
    if (!layer.diff_id.empty()) blob.annotations[kDiffIdAnnotation] = layer.diff_id.ToString();
    for (const NewCacheRecord& record : layer.records) records.Add(record, place, &cache);
    if (layer.records.empty()) continue;
    for (int below = place; below >= 0; below = cache.layers[static_cast<size_t>(below)].parent) {
      used[static_cast<size_t>(below)] = true;
    }
  }
  for (size_t i = first; i < used.size(); ++i) {
    if (used[i]) continue;
    return Bad(absl::StrCat("cache layer ", cache.layers[i].blob.ToString(),
                            " has no cache record: nobody could find it; give records or use a plain cache"));
  }
  for (const NewCacheRecord& record : only_linked) records.Add(record, -1, &cache);
  RETURN_IF_ERROR(records.Link(&cache));
  return Normalize(cache);
}

std::optional<oci::Descriptor> CacheConfigOf(const std::variant<oci::Manifest, oci::Index>& document) {
  if (const auto* manifest = std::get_if<oci::Manifest>(&document)) {
    if (manifest->config.media_type == kMediaTypeCacheConfig) return manifest->config;
    return std::nullopt;
  }
  for (const oci::Descriptor& entry : std::get<oci::Index>(document).manifests) {
    if (entry.media_type == kMediaTypeCacheConfig) return entry;
  }
  return std::nullopt;
}

absl::StatusOr<Cache> ReadCache(const std::variant<oci::Manifest, oci::Index>& document,
                                absl::string_view config) {
  absl::StatusOr<json> parsed = base::ParseJson(config, kMaxCacheDocumentBytes);
  if (!parsed.ok()) return base::Annotate(parsed.status(), "cache config");
  if (!parsed->is_object()) return Bad("the cache config is not a JSON object");
  Cache cache;
  const auto* manifest = std::get_if<oci::Manifest>(&document);
  for (const oci::Descriptor& blob :
       manifest != nullptr ? manifest->layers : std::get<oci::Index>(document).manifests) {
    if (blob.media_type != kMediaTypeCacheConfig) cache.blobs.emplace(blob.digest, blob);
  }
  ASSIGN_OR_RETURN(const std::vector<json> layers, Objects(*parsed, "layers"));
  for (const json& object : layers) {
    CacheLayer layer;
    ASSIGN_OR_RETURN(const std::string blob, Text(object, "blob"));
    ASSIGN_OR_RETURN(layer.blob, base::Digest::Parse(blob));
    ASSIGN_OR_RETURN(layer.parent, Index(object, "parent", 0));
    cache.layers.push_back(layer);
  }
  ASSIGN_OR_RETURN(const std::vector<json> records, Objects(*parsed, "records"));
  RETURN_IF_ERROR(ParseRecords(records, &cache));
  DropIncomplete(&cache);
  return Normalize(cache);
}

absl::StatusOr<Cache> ReadCacheRecords(absl::string_view config, size_t layers) {
  ASSIGN_OR_RETURN(const json parsed, base::ParseJson(config, kMaxCacheDocumentBytes));
  if (!parsed.is_object()) return Bad("not a JSON object with \"records\"");
  ASSIGN_OR_RETURN(const std::vector<json> places, Objects(parsed, "layers"));
  if (!places.empty() && places.size() != layers) {
    return Bad(absl::StrCat("\"layers\" has ", places.size(), " entries for ", layers, " layers"));
  }
  Cache cache;
  for (size_t i = 0; i < layers; ++i) {
    CacheLayer layer;
    layer.parent = static_cast<int>(i) - 1;
    if (!places.empty()) {
      ASSIGN_OR_RETURN(layer.parent, Index(places[i], "parent", 0));
    }
    cache.layers.push_back(layer);
  }
  ASSIGN_OR_RETURN(const std::vector<json> records, Objects(parsed, "records"));
  RETURN_IF_ERROR(ParseRecords(records, &cache));
  if (cache.layers.size() != layers) return Bad("\"chains\" belong to inline caches; name layers");
  return cache;
}

absl::StatusOr<std::optional<Cache>> ReadInlineCache(const oci::Manifest& manifest,
                                                     absl::string_view config) {
  ASSIGN_OR_RETURN(const json parsed, base::ParseJson(config, oci::kMaxConfigBytes));
  ASSIGN_OR_RETURN(const std::string encoded, Text(parsed, kInlineCacheKey));
  if (encoded.empty()) return std::nullopt;
  std::string decoded;
  if (!absl::Base64Unescape(encoded, &decoded)) return Bad("the inline cache is not base64");
  absl::StatusOr<json> records = base::ParseJson(decoded, oci::kMaxConfigBytes);
  if (!records.ok()) return base::Annotate(records.status(), "inline cache");
  ASSIGN_OR_RETURN(const oci::ImageConfig image, oci::ParseImageConfig(config, base::Digest::Of(config)));
  if (image.diff_ids.size() != manifest.layers.size())
    return Bad("the image's manifest and config do not agree");
  std::vector<oci::Descriptor> layers = manifest.layers;
  AddHistory(parsed, &layers);
  Cache cache;
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].annotations[kDiffIdAnnotation] = image.diff_ids[i].ToString();
    cache.layers.push_back({layers[i].digest, static_cast<int>(i) - 1});
    cache.blobs.emplace(layers[i].digest, layers[i]);
  }
  ASSIGN_OR_RETURN(const std::vector<json> objects, Objects(json{{"records", *records}}, "records"));
  RETURN_IF_ERROR(ParseRecords(objects, &cache));
  ASSIGN_OR_RETURN(Cache normal, Normalize(cache));
  return std::optional<Cache>(std::move(normal));
}

absl::StatusOr<BuiltCache> BuildCache(const Cache& cache, CacheForm form, bool docker_media_types) {
  ASSIGN_OR_RETURN(const Cache normal, Normalize(cache));
  if (!HasResults(normal))
    return absl::FailedPreconditionError("the cache has no results: there is nothing to export");
  BuiltCache built;
  std::set<base::Digest> seen;
  for (const CacheLayer& layer : normal.layers) {
    if (!seen.insert(layer.blob).second) continue;
    oci::Descriptor blob = normal.blobs.at(layer.blob);
    if (!blob.annotations.contains(kDiffIdAnnotation)) {
      return Bad(
          absl::StrCat("cache layer ", layer.blob.ToString(), " has no diffID (", kDiffIdAnnotation, ")"));
    }
    blob.annotations = PublicAnnotations(blob.annotations, /*keep_diff_id=*/true);
    blob.media_type = LayerMediaType(blob.media_type, docker_media_types);
    blob.platform.reset();
    built.layers.push_back(std::move(blob));
  }
  built.config = ConfigJson(normal);
  RETURN_IF_ERROR(CheckSize("config", built.config.size()));
  built.config_descriptor = oci::DescriptorOf(built.config, kMediaTypeCacheConfig);
  if (form == CacheForm::kImageManifest) {
    oci::Manifest manifest;
    manifest.media_type = docker_media_types ? oci::kMediaTypeDockerManifest : oci::kMediaTypeOciManifest;
    manifest.config = built.config_descriptor;
    manifest.layers = built.layers;
    built.manifest = oci::WriteManifest(manifest);
    built.manifest_descriptor = oci::DescriptorOf(built.manifest, manifest.media_type);
  } else {
    oci::Index index;
    index.media_type = docker_media_types ? oci::kMediaTypeDockerIndex : oci::kMediaTypeOciIndex;
    index.manifests = built.layers;
    index.manifests.push_back(built.config_descriptor);
    built.manifest = oci::WriteIndex(index);
    built.manifest_descriptor = oci::DescriptorOf(built.manifest, index.media_type);
  }
  RETURN_IF_ERROR(CheckSize("manifest", built.manifest.size()));
  return built;
}

absl::StatusOr<std::string> InlineCache(const Cache& cache, const std::vector<oci::Descriptor>& layers) {
  std::map<base::Digest, int> position;
  for (size_t i = 0; i < layers.size(); ++i) position.emplace(layers[i].digest, static_cast<int>(i));
  Cache kept = cache;
  RETURN_IF_ERROR(CheckGraph(kept));
  for (CacheRecord& record : kept.records) {
    std::erase_if(record.results, [&](const CacheResult& result) {
      const std::vector<base::Digest> chain = ChainOf(kept, result.layer);
      return !std::all_of(chain.begin(), chain.end(),
                          [&](const base::Digest& d) { return position.contains(d); });
    });
  }
  ASSIGN_OR_RETURN(const Cache normal, Normalize(kept));
  if (!HasResults(normal)) return std::string();
  json records = json::array();
  for (const CacheRecord& record : normal.records) {
    json object = RecordJson(record);
    for (const CacheResult& result : record.results) {
      const std::vector<base::Digest> chain = ChainOf(normal, result.layer);
      json indexes = json::array();
      bool prefix = chain.size() <= layers.size();
      for (size_t i = 0; i < chain.size(); ++i) {
        prefix = prefix && layers[i].digest == chain[i];
        indexes.push_back(position[chain[i]]);
      }
      if (prefix) {
        object["layers"].push_back(WithTime({{"layer", chain.size() - 1}}, result.created_at));
      } else {
        object["chains"].push_back(WithTime({{"layers", std::move(indexes)}}, result.created_at));
      }
    }
    records.push_back(std::move(object));
  }
  return absl::Base64Escape(oci::WriteJson(records));
}

absl::StatusOr<BuiltImage> BuildPlainCache(const std::vector<PlainCacheLayer>& layers,
                                           std::optional<int64_t> created, bool docker_media_types) {
  ImageSpec spec;
  spec.created = created;
  spec.docker_media_types = docker_media_types;
  json names = json::array();
  std::set<std::string> seen;
  for (const PlainCacheLayer& layer : layers) {
    if (layer.name.empty() || !base::IsUtf8(layer.name) || !seen.insert(layer.name).second) {
      return Bad(absl::StrCat("cache layer name \"", base::Printable(layer.name.substr(0, 128)),
                              "\": names are not empty, UTF-8, and used once"));
    }
    names.push_back(layer.name);
    spec.layers.push_back(layer.layer);
  }
  spec.config_patch = oci::WriteJson({{"config", {{"Labels", {{kPlainCacheLabel, oci::WriteJson(names)}}}}}});
  return BuildImage(spec);
}

absl::StatusOr<std::optional<std::vector<PlainCacheLayer>>> ReadPlainCache(const oci::Manifest& manifest,
                                                                           absl::string_view config) {
  ASSIGN_OR_RETURN(const json parsed, base::ParseJson(config, oci::kMaxConfigBytes));
  if (!parsed.is_object()) return Bad("the image's config is not a JSON object");
  const json inner = parsed.value("config", json::object());
  const json labels = inner.is_object() ? inner.value("Labels", json()) : json();
  if (!labels.is_object() || !labels.contains(kPlainCacheLabel)) return std::nullopt;
  ASSIGN_OR_RETURN(const oci::ImageConfig image, oci::ParseImageConfig(config, base::Digest::Of(config)));
  ASSIGN_OR_RETURN(const std::string text, Text(labels, kPlainCacheLabel));
  ASSIGN_OR_RETURN(const json names, base::ParseJson(text, oci::kMaxConfigBytes));
  if (!names.is_array() || names.size() != manifest.layers.size() || names.size() != image.diff_ids.size()) {
    return Bad("the cache image's names, layers and diffIDs are not equally many");
  }
  std::vector<PlainCacheLayer> layers;
  for (size_t i = 0; i < names.size(); ++i) {
    if (!names[i].is_string()) return Bad("a name in the cache image is not a string");
    layers.push_back({names[i].get<std::string>(), {manifest.layers[i], image.diff_ids[i], ""}});
  }
  return layers;
}

}  // namespace lazyblob::exporter
