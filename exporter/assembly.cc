#include "exporter/assembly.h"

#include <set>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "exporter/build_cache.h"
#include "exporter/image_builder.h"
#include "exporter/spec.h"
#include "exporter/tree.h"
#include "exporter/unlazy.h"
#include "oci/manifest.h"

namespace lazyblob::exporter {
namespace {

constexpr uint64_t kMaxConfigFile = 4 << 20;

ContentBlob MakingBlob(const MadeLayer& layer) {
  ContentBlob blob;
  blob.blob = layer.blob();
  blob.name = layer.source().source();
  blob.layer = true;
  return blob;
}

// What a document needs that lies in memory.
void AddMemory(const std::string& bytes, const oci::Descriptor& descriptor, Content* content) {
  if (content->Find(descriptor.digest) != nullptr) return;
  ContentBlob blob;
  blob.blob = MakeMemoryBlob(bytes, descriptor.media_type);
  blob.descriptor = descriptor;
  content->blobs.push_back(std::move(blob));
}

absl::StatusOr<std::vector<LayerResult>> WaitAll(const MadeLayers& layers, base::CancelToken* cancel) {
  std::vector<LayerResult> results;
  for (const auto& layer : layers) {
    ASSIGN_OR_RETURN(LayerResult result, layer->Wait(cancel));
    results.push_back(std::move(result));
  }
  return results;
}

void AddMade(const MadeLayers& layers, const std::vector<LayerResult>& results, bool docker,
             Content* content) {
  for (size_t i = 0; i < layers.size(); ++i) {
    if (content->Find(results[i].digest) != nullptr) continue;
    ContentBlob blob = MakingBlob(*layers[i]);
    blob.descriptor = results[i].Descriptor(docker);
    content->blobs.push_back(std::move(blob));
  }
}

void AddDocument(const std::string& raw, const oci::Descriptor& descriptor, bool index,
                 std::vector<base::Digest> blobs, Content* content) {
  Document document;
  document.descriptor = descriptor;
  document.raw = raw;
  document.index = index;
  document.blobs = std::move(blobs);
  content->documents.push_back(std::move(document));
}

std::vector<base::Digest> AllBlobs(const oci::Descriptor& config,
                                   const std::vector<oci::Descriptor>& layers) {
  std::vector<base::Digest> blobs = {config.digest};
  for (const oci::Descriptor& layer : layers) blobs.push_back(layer.digest);
  return blobs;
}

// The config, and those imported layers that are part of the cache.
void AddCacheDocument(const ImportedCache& imported, const std::vector<oci::Descriptor>& layers,
                      const std::string& config, const oci::Descriptor& descriptor, Content* content) {
  for (const oci::Descriptor& layer : layers) {
    if (content->Find(layer.digest) != nullptr) continue;
    if (const ContentBlob* blob = imported.Find(layer.digest)) content->blobs.push_back(*blob);
  }
  AddMemory(config, descriptor, content);
}

NewLayer ForHistory(const v1::LayerSource& source, const LayerResult& result, bool docker) {
  NewLayer layer;
  layer.descriptor = result.Descriptor(docker);
  layer.diff_id = result.diff_id;
  layer.created_by =
      source.description().empty() ? "lazyblob export " + source.source() : source.description();
  return layer;
}

NewCacheRecord RecordOf(const v1::CacheRecord& given) {
  NewCacheRecord record;
  record.digest = given.digest();
  record.created_at = given.created_at();
  record.id = given.id();
  for (const auto& input : given.inputs()) {
    std::vector<NewCacheRecord::Link> links;
    for (const auto& link : input.links()) links.push_back({link.selector(), link.digest()});
    record.inputs.push_back(std::move(links));
  }
  return record;
}

// The one layer of `imported` that is this blob.
absl::StatusOr<int> ImportedLayer(const Cache& imported, const base::Digest& blob) {
  int found = -1;
  for (size_t i = 0; i < imported.layers.size(); ++i) {
    if (imported.layers[i].blob != blob) continue;
    if (found != -1) {
      return absl::InvalidArgumentError(
          absl::StrCat("cache layer parent ", blob.ToString(), ": lies on several chains of the imports"));
    }
    found = static_cast<int>(i);
  }
  if (found != -1) return found;
  return absl::InvalidArgumentError(
      absl::StrCat("cache layer parent ", blob.ToString(), ": no import has such a layer"));
}

absl::StatusOr<Cache> CacheOf(const CacheAssembly& assembly, const std::vector<LayerResult>& results) {
  const v1::Cache& asked = assembly.request->cache();
  const Cache& imported = assembly.imported.build;
  ASSIGN_OR_RETURN(const std::vector<CacheParent> parents, CacheParents(asked));
  std::vector<NewCacheLayer> list;
  for (size_t i = 0; i < results.size(); ++i) {
    NewCacheLayer layer;
    layer.descriptor = results[i].Descriptor(assembly.request->docker_media_types());
    layer.diff_id = results[i].diff_id;
    if (parents[i].imported.has_value()) {
      ASSIGN_OR_RETURN(layer.parent, ImportedLayer(imported, *parents[i].imported));
    } else if (parents[i].layer != -1) {
      layer.parent = static_cast<int>(imported.layers.size()) + parents[i].layer;
    }
    for (const auto& record : asked.layers(static_cast<int>(i)).records()) {
      layer.records.push_back(RecordOf(record));
    }
    list.push_back(std::move(layer));
  }
  std::vector<NewCacheRecord> only_linked;
  for (const v1::CacheRecord& record : asked.records()) only_linked.push_back(RecordOf(record));
  ASSIGN_OR_RETURN(Cache cache, CacheOfLayers(list, only_linked, imported));
  return asked.max() ? std::move(cache) : KeepMin(cache);
}

absl::StatusOr<BaseImage> ReadBase(const Content& base, const contentstore::FetchContext& context) {
  const Document& top = base.top();
  if (top.index) return absl::InvalidArgumentError(absl::StrCat(base.name, ": an index; name a platform"));
  ASSIGN_OR_RETURN(auto parsed,
                   oci::ParseManifestOrIndex(top.raw, top.descriptor.digest, top.descriptor.media_type));
  BaseImage image;
  image.manifest = std::get<oci::Manifest>(std::move(parsed));
  ASSIGN_OR_RETURN(image.config, ReadSmall(base, image.manifest.config, oci::kMaxConfigBytes, context));
  return image;
}

absl::Status AddPlainCache(const CacheAssembly& assembly, const std::vector<LayerResult>& results,
                           Content* whole) {
  const v1::ExportRequest& request = *assembly.request;
  std::vector<PlainCacheLayer> plain = assembly.imported.plain;
  for (size_t i = 0; i < results.size(); ++i) {
    const v1::LayerSource& source = request.cache().layers(static_cast<int>(i));
    plain.push_back({PlainCacheName(source), ForHistory(source, results[i], request.docker_media_types())});
  }
  if (plain.empty()) {
    return absl::FailedPreconditionError("the cache has no layers: there is nothing to export");
  }
  std::optional<int64_t> created;
  if (request.source_date_epoch() != 0) created = request.source_date_epoch();
  ASSIGN_OR_RETURN(BuiltImage built, BuildPlainCache(plain, created, request.docker_media_types()));
  AddCacheDocument(assembly.imported, built.layers, built.config, built.config_descriptor, whole);
  AddDocument(built.manifest, built.manifest_descriptor, false,
              AllBlobs(built.config_descriptor, built.layers), whole);
  return absl::OkStatus();
}

}  // namespace

Content EarlyContent(const ImageAssembly& assembly) {
  Content early;
  if (assembly.base.has_value()) {
    early.name = assembly.base->name;
    for (const ContentBlob& blob : assembly.base->blobs) {
      if (blob.layer) early.blobs.push_back(blob);  // its config stays behind
    }
  }
  for (const auto& layer : assembly.layers) early.blobs.push_back(MakingBlob(*layer));
  return early;
}

absl::StatusOr<Content> WholeContent(const ImageAssembly& assembly,
                                     const contentstore::FetchContext& context) {
  const v1::ExportRequest& request = *assembly.request;
  const bool docker = request.docker_media_types();
  ImageSpec spec;
  spec.docker_media_types = docker;
  if (assembly.base.has_value()) {
    ASSIGN_OR_RETURN(spec.base, ReadBase(*assembly.base, context));
  }
  if (!assembly.image->platform().empty()) {
    ASSIGN_OR_RETURN(spec.platform, oci::ParsePlatform(assembly.image->platform()));
  }
  if (!assembly.image->config_file().empty()) {
    ASSIGN_OR_RETURN(spec.config_patch, base::ReadFile(assembly.image->config_file(), kMaxConfigFile));
  }
  for (const auto& [key, value] : assembly.image->annotations()) spec.annotations[key] = value;
  if (request.source_date_epoch() != 0) spec.created = request.source_date_epoch();
  ASSIGN_OR_RETURN(std::vector<LayerResult> results, WaitAll(assembly.layers, context.cancel.get()));
  for (size_t i = 0; i < results.size(); ++i) {
    spec.layers.push_back(ForHistory(assembly.image->layers(static_cast<int>(i)), results[i], docker));
  }
  if (assembly.cache != nullptr) {
    ASSIGN_OR_RETURN(auto cached, WaitAll(assembly.cache->layers, context.cancel.get()));
    ASSIGN_OR_RETURN(Cache cache, CacheOf(*assembly.cache, cached));
    ASSIGN_OR_RETURN(BuiltImage without, BuildImage(spec));
    ASSIGN_OR_RETURN(spec.inline_cache, InlineCache(cache, without.layers));
  }
  ASSIGN_OR_RETURN(BuiltImage built, BuildImage(spec));
  Content whole;
  if (assembly.base.has_value()) {
    whole.name = assembly.base->name;
    for (const ContentBlob& blob : assembly.base->blobs) {
      if (blob.layer) whole.blobs.push_back(blob);
    }
  }
  AddMade(assembly.layers, results, docker, &whole);
  AddMemory(built.config, built.config_descriptor, &whole);
  AddDocument(built.manifest, built.manifest_descriptor, false,
              AllBlobs(built.config_descriptor, built.layers), &whole);
  return whole;
}

Content EarlyCache(const CacheAssembly& assembly) {
  Content early;
  early.name = "cache";
  for (const auto& layer : assembly.layers) early.blobs.push_back(MakingBlob(*layer));
  const v1::Cache& asked = assembly.request->cache();
  if (asked.max() || asked.format() == v1::PLAIN) {
    for (const ContentBlob& blob : assembly.imported.blobs) early.blobs.push_back(blob);
  }
  return early;
}

absl::StatusOr<Content> WholeCache(const CacheAssembly& assembly, base::CancelToken* cancel) {
  const v1::ExportRequest& request = *assembly.request;
  const bool docker = request.docker_media_types();
  ASSIGN_OR_RETURN(std::vector<LayerResult> results, WaitAll(assembly.layers, cancel));
  Content whole;
  whole.name = "cache";
  AddMade(assembly.layers, results, docker, &whole);
  if (request.cache().format() == v1::PLAIN) {
    RETURN_IF_ERROR(AddPlainCache(assembly, results, &whole));
    return whole;
  }
  ASSIGN_OR_RETURN(Cache cache, CacheOf(assembly, results));
  const bool index = request.cache().format() == v1::BUILDKIT_INDEX;
  ASSIGN_OR_RETURN(BuiltCache built,
                   BuildCache(cache, index ? CacheForm::kIndex : CacheForm::kImageManifest, docker));
  AddCacheDocument(assembly.imported, built.layers, built.config, built.config_descriptor, &whole);
  AddDocument(built.manifest, built.manifest_descriptor, index,
              AllBlobs(built.config_descriptor, built.layers), &whole);
  return whole;
}

std::string PlainCacheName(const v1::LayerSource& layer) {
  auto source = ParseSource(layer.source());
  if (!source.ok()) return layer.source();  // a snapshot
  return source->target.empty() ? source->path : source->target;
}

}  // namespace lazyblob::exporter
