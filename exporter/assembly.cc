#include "exporter/assembly.h"

#include <set>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "exporter/build_cache.h"
#include "exporter/image_builder.h"
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

NewLayer ForHistory(const MadeLayer& made, const LayerResult& result, bool docker) {
  NewLayer layer;
  layer.descriptor = result.Descriptor(docker);
  layer.diff_id = result.diff_id;
  const v1::LayerSource& source = made.source();
  layer.created_by =
      source.description().empty() ? "lazyblob export " + source.source() : source.description();
  return layer;
}

absl::StatusOr<Cache> CacheOf(const v1::ExportRequest& request, const MadeLayers& layers,
                              const std::vector<LayerResult>& results) {
  std::vector<NewCacheLayer> list;
  for (size_t i = 0; i < layers.size(); ++i) {
    NewCacheLayer layer;
    layer.descriptor = results[i].Descriptor(request.docker_media_types());
    layer.diff_id = results[i].diff_id;
    layer.parent = static_cast<int>(i) - 1;
    for (const v1::CacheRecord& given : layers[i]->source().records()) {
      NewCacheRecord record;
      record.digest = given.digest();
      record.created_at = given.created_at();
      for (const auto& input : given.inputs()) {
        std::vector<NewCacheRecord::Link> links;
        for (const auto& link : input.links()) links.push_back({link.selector(), link.digest()});
        record.inputs.push_back(std::move(links));
      }
      layer.records.push_back(std::move(record));
    }
    list.push_back(std::move(layer));
  }
  ASSIGN_OR_RETURN(Cache cache, CacheOfLayers(list));
  if (!request.cache().max()) {
    ASSIGN_OR_RETURN(cache, KeepMin(cache));
  }
  return cache;
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

// The name of a directory in a plain cache: where it belongs, or what it is called.
absl::StatusOr<std::string> PlainName(const std::string& text) {
  auto source = ParseSource(text);
  if (!source.ok()) return text;  // a snapshot
  return source->target.empty() ? source->path : source->target;
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
    spec.layers.push_back(ForHistory(*assembly.layers[i], results[i], docker));
  }
  if (!assembly.cache_layers.empty()) {
    ASSIGN_OR_RETURN(auto cached, WaitAll(assembly.cache_layers, context.cancel.get()));
    ASSIGN_OR_RETURN(Cache cache, CacheOf(request, assembly.cache_layers, cached));
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
  std::vector<base::Digest> blobs = {built.config_descriptor.digest};
  for (const oci::Descriptor& layer : built.layers) blobs.push_back(layer.digest);
  AddDocument(built.manifest, built.manifest_descriptor, false, std::move(blobs), &whole);
  return whole;
}

Content EarlyCache(const MadeLayers& layers) {
  Content early;
  early.name = "cache";
  for (const auto& layer : layers) early.blobs.push_back(MakingBlob(*layer));
  return early;
}

absl::StatusOr<Content> WholeCache(const v1::ExportRequest& request, const MadeLayers& layers,
                                   base::CancelToken* cancel) {
  const bool docker = request.docker_media_types();
  ASSIGN_OR_RETURN(std::vector<LayerResult> results, WaitAll(layers, cancel));
  Content whole;
  whole.name = "cache";
  AddMade(layers, results, docker, &whole);
  std::vector<base::Digest> blobs;
  if (request.cache().format() == v1::PLAIN) {
    std::vector<PlainCacheLayer> plain;
    for (size_t i = 0; i < layers.size(); ++i) {
      ASSIGN_OR_RETURN(std::string name, PlainName(layers[i]->source().source()));
      plain.push_back({std::move(name), ForHistory(*layers[i], results[i], docker)});
    }
    std::optional<int64_t> created;
    if (request.source_date_epoch() != 0) created = request.source_date_epoch();
    ASSIGN_OR_RETURN(BuiltImage built, BuildPlainCache(plain, created, docker));
    AddMemory(built.config, built.config_descriptor, &whole);
    for (const ContentBlob& blob : whole.blobs) blobs.push_back(blob.descriptor.digest);
    AddDocument(built.manifest, built.manifest_descriptor, false, std::move(blobs), &whole);
    return whole;
  }
  ASSIGN_OR_RETURN(Cache cache, CacheOf(request, layers, results));
  const bool index = request.cache().format() == v1::BUILDKIT_INDEX;
  ASSIGN_OR_RETURN(BuiltCache built,
                   BuildCache(cache, index ? CacheForm::kIndex : CacheForm::kImageManifest, docker));
  AddMemory(built.config, built.config_descriptor, &whole);
  blobs.push_back(built.config_descriptor.digest);
  for (const oci::Descriptor& layer : built.layers) blobs.push_back(layer.digest);
  AddDocument(built.manifest, built.manifest_descriptor, index, std::move(blobs), &whole);
  return whole;
}

absl::StatusOr<Content> JoinPlatforms(std::vector<Content> contents, const v1::ExportRequest& request) {
  if (contents.size() == 1) return std::move(contents[0]);
  Content whole;
  std::vector<oci::Descriptor> manifests;
  for (size_t i = 0; i < contents.size(); ++i) {
    oci::Descriptor top = contents[i].top().descriptor;
    ASSIGN_OR_RETURN(top.platform, oci::ParsePlatform(request.images(static_cast<int>(i)).platform()));
    manifests.push_back(std::move(top));
    absl::StrAppend(&whole.name, i == 0 ? "" : ", ", contents[i].name);
    for (Document& document : contents[i].documents) {
      if (whole.FindDocument(document.descriptor.digest) == nullptr) {
        whole.documents.push_back(std::move(document));
      }
    }
    for (ContentBlob& blob : contents[i].blobs) {
      if (whole.Find(blob.descriptor.digest) == nullptr) whole.blobs.push_back(std::move(blob));
    }
  }
  ASSIGN_OR_RETURN(BuiltIndex built, BuildIndex(std::move(manifests), {}, request.docker_media_types()));
  AddDocument(built.raw, built.descriptor, true, {}, &whole);
  return whole;
}

}  // namespace lazyblob::exporter
