#include "exporter/spec.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/digest.h"
#include "base/json.h"
#include "base/status.h"
#include "exporter/tree.h"
#include "oci/manifest.h"

namespace lazyblob::exporter {
namespace {

constexpr uint64_t kMaxSpecBytes = 16 << 20;
constexpr absl::string_view kLayout = "oci:";
constexpr absl::string_view kArchive = "oci-archive:";
constexpr absl::string_view kDirectory = "dir:";
constexpr absl::string_view kStore = "store:";
constexpr size_t kMaxLeaseName = 128;
constexpr absl::string_view kTar = "tar:";
constexpr absl::string_view kSnapshot = "snapshot:";

absl::Status Bad(absl::string_view what, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(what, ": ", why));
}

absl::Status BadText(absl::string_view text, absl::string_view why) {
  return Bad(base::Printable(text), why);
}

bool IsAbsolute(absl::string_view path) { return absl::StartsWith(path, "/"); }

// The path that starts after `prefix`, made absolute.
std::string Absolute(const std::string& directory, absl::string_view prefix, absl::string_view text) {
  absl::string_view path = text.substr(prefix.size());
  if (path.empty() || IsAbsolute(path)) return std::string(text);
  return absl::StrCat(prefix, directory, directory == "/" ? "" : "/", path);
}

void AbsoluteAfter(const std::string& directory, std::initializer_list<absl::string_view> prefixes,
                   std::string* text) {
  for (absl::string_view prefix : prefixes) {
    if (!absl::StartsWith(*text, prefix)) continue;
    *text = Absolute(directory, prefix, *text);
    return;
  }
}

// The source of a layer. What the directory's name adds is no target: "dir:x" in /a:b is all path.
void AbsoluteSource(const std::string& directory, std::string* text) {
  const bool all_path = absl::StartsWith(*text, kDirectory) && !IsAbsolute(text->substr(kDirectory.size())) &&
                        !absl::StrContains(text->substr(kDirectory.size()), ':');
  AbsoluteAfter(directory, {kDirectory, kTar}, text);
  if (all_path && absl::StrContains(text->substr(kDirectory.size()), ':')) text->push_back(':');
}

absl::Status CheckAbsolute(const Destination& destination) {
  std::string path = "/";
  if (const auto* layout = std::get_if<oci::LayoutReference>(&destination)) path = layout->directory;
  if (const auto* archive = std::get_if<ArchiveDestination>(&destination)) {
    path = archive->file;
    for (absl::string_view own : {"/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/"}) {
      if (!absl::StartsWith(path, own)) continue;
      return BadText(ToString(destination), "would be the daemon's own; name a file or a FIFO");
    }
  }
  if (const auto* directory = std::get_if<DirectoryDestination>(&destination)) path = directory->path;
  if (IsAbsolute(path)) return absl::OkStatus();
  return BadText(ToString(destination), "the path must be absolute");
}

absl::StatusOr<std::vector<Destination>> ParseDestinations(
    const google::protobuf::RepeatedPtrField<std::string>& texts, std::set<std::string>* seen) {
  std::vector<Destination> destinations;
  for (const std::string& text : texts) {
    ASSIGN_OR_RETURN(Destination destination, ParseDestination(text));
    RETURN_IF_ERROR(CheckAbsolute(destination));
    if (!seen->insert(ToString(destination)).second) return BadText(text, "is given twice as a destination");
    destinations.push_back(std::move(destination));
  }
  return destinations;
}

// What records can be linked to: `names` and, if there are `imports`, what these have.
absl::Status CheckLinks(const v1::CacheRecord& record, const std::set<std::string>& names, bool imports) {
  for (const auto& input : record.inputs()) {
    for (const auto& link : input.links()) {
      if (names.contains(link.digest()) || (imports && base::Digest::Parse(link.digest()).ok())) continue;
      return BadText(record.digest(),
                     absl::StrCat("a cache record that links to ", base::Printable(link.digest()),
                                  ", which no record is called"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLayerSource(const v1::LayerSource& layer) {
  const std::string& text = layer.source();
  if (absl::StartsWith(text, kSnapshot)) {
    if (text.size() == kSnapshot.size()) return BadText(text, "names no snapshot: snapshot:KEY");
  } else {
    ASSIGN_OR_RETURN(Source source, ParseSource(text));
    if (!IsAbsolute(source.path)) return BadText(text, "the path must be absolute");
  }
  return absl::OkStatus();
}

absl::Status CheckImage(const v1::Image& image) {
  if (image.base().empty()) return Bad("base", "is missing; name an image, or \"scratch\"");
  if (image.base() != "scratch") {
    ASSIGN_OR_RETURN(ImageSource base, ParseImageSource(image.base()));
    const auto* reference = std::get_if<oci::ImageReference>(&base);
    if (const auto* layout = reference ? std::get_if<oci::LayoutReference>(reference) : nullptr) {
      if (!IsAbsolute(layout->directory)) return BadText(image.base(), "the path must be absolute");
    }
  } else if (image.layers().empty()) {
    return Bad("base scratch", "an image without any layer; give it a layer");
  }
  if (!image.platform().empty()) RETURN_IF_ERROR(oci::ParsePlatform(image.platform()).status());
  if (image.all_platforms()) {
    const bool changed =
        !image.layers().empty() || !image.config_file().empty() || !image.annotations().empty();
    if (image.base() == "scratch" || !image.platform().empty() || changed) {
      return Bad(base::Printable(image.base()),
                 "all its platforms can only be copied as they are: no layers, config or annotations");
    }
  }
  if (image.artifact() && (!image.layers().empty() || image.base() == "scratch")) {
    return Bad(base::Printable(image.base()), "an artifact is unpacked as it is: no layers");
  }
  if (!image.config_file().empty() && !IsAbsolute(image.config_file())) {
    return BadText(image.config_file(), "the path must be absolute");
  }
  for (const v1::LayerSource& layer : image.layers()) {
    RETURN_IF_ERROR(CheckLayerSource(layer));
    if (!layer.records().empty() || !layer.parent().empty()) {
      return BadText(layer.source(), "cache records and parents belong to layers of the cache");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckIndexDestination(const v1::ExportRequest& request, const Destination& destination) {
  if (request.index() == v1::INDEX_UNSPECIFIED) return absl::OkStatus();
  const auto* reference = std::get_if<oci::Reference>(&destination);
  const auto* layout = std::get_if<oci::LayoutReference>(&destination);
  if (reference != nullptr && reference->digest.has_value()) {
    return BadText(ToString(destination), "an index of platforms wants a tag, not a digest");
  }
  if (std::holds_alternative<DirectoryDestination>(destination)) {
    return BadText(ToString(destination), "a directory takes one platform, no index");
  }
  if (request.index() != v1::INDEX_APPEND || reference != nullptr) return absl::OkStatus();
  if (layout == nullptr)
    return BadText(ToString(destination), "only an index in a registry or a layout is added to");
  if (!layout->tag.has_value())
    return BadText(ToString(destination), "adding to an index wants its name: oci:DIR:tag");
  return absl::OkStatus();
}

absl::Status CheckArtifact(const v1::ExportRequest& request, const std::vector<Destination>& destinations) {
  if (!request.images().empty() || request.has_cache() || request.index() != v1::INDEX_UNSPECIFIED) {
    return Bad("artifact", "goes alone, without image, cache and index");
  }
  if (destinations.empty()) return Bad("artifact", "no destination");
  for (const Destination& destination : destinations) {
    if (!std::holds_alternative<DirectoryDestination>(destination)) continue;
    return BadText(ToString(destination), "an artifact is put into a repository, oci: or oci-archive:");
  }
  if (request.artifact().layers().empty())
    return Bad("artifact", "no layer; give it one: --layer PLATFORM=DIR");
  for (const v1::ArtifactLayer& layer : request.artifact().layers()) {
    if (layer.platform() != "any") RETURN_IF_ERROR(oci::ParsePlatform(layer.platform()).status());
    v1::LayerSource source;
    source.set_source(layer.source());
    RETURN_IF_ERROR(CheckLayerSource(source));
  }
  const std::string& subject = request.artifact().subject();
  if (subject.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(oci::ImageReference reference, oci::ParseImageReference(subject));
  const auto* layout = std::get_if<oci::LayoutReference>(&reference);
  if (layout == nullptr || IsAbsolute(layout->directory)) return absl::OkStatus();
  return BadText(subject, "the path must be absolute");
}

absl::Status CheckImages(const v1::ExportRequest& request, const std::vector<Destination>& destinations) {
  std::set<std::string> platforms;
  for (const v1::Image& image : request.images()) {
    RETURN_IF_ERROR(CheckImage(image));
    if (request.images_size() == 1) break;
    if (image.artifact()) return Bad(base::Printable(image.base()), "an artifact is unpacked alone");
    if (request.index() != v1::INDEX_UNSPECIFIED && (image.all_platforms() || image.platform().empty()))
      continue;  // its documents say it
    if (image.all_platforms() || image.platform().empty()) {
      return Bad(base::Printable(image.base()), "of several images each must name its platform");
    }
    ASSIGN_OR_RETURN(oci::Platform platform, oci::ParsePlatform(image.platform()));
    if (!platforms.insert(platform.ToString()).second) {
      return Bad(platform.ToString(), "two images of one platform; an index holds one of each");
    }
  }
  const bool artifact = request.images_size() == 1 && request.images(0).artifact();
  for (const Destination& destination : destinations) {
    RETURN_IF_ERROR(CheckIndexDestination(request, destination));
    if (!std::holds_alternative<DirectoryDestination>(destination)) {
      if (artifact)
        return BadText(ToString(destination), "an artifact is unpacked into a directory: dir:PATH");
      continue;
    }
    if (artifact) continue;
    if (request.images_size() > 1 || (request.images_size() == 1 && request.images(0).all_platforms())) {
      return BadText(ToString(destination), "a directory takes one platform; name it with --platform");
    }
  }
  if (request.images().empty() && request.index() != v1::INDEX_UNSPECIFIED)
    return Bad("index", "of no image");
  if (request.images().empty() && !destinations.empty()) return Bad("image", "destinations, but no image");
  if (!request.images().empty() && destinations.empty() && !request.unlazy()) {
    return Bad("image", "no destination; name one with --image");
  }
  return absl::OkStatus();
}

absl::Status CheckCacheDestinations(const v1::ExportRequest& request,
                                    const std::vector<Destination>& destinations,
                                    std::vector<std::string>* warnings) {
  const v1::Cache& cache = request.cache();
  const bool empty = cache.layers().empty() && cache.imports().empty();
  if (cache.format() == v1::INLINE) {
    if (!destinations.empty()) {
      return Bad("cache", "an inline cache is part of the image and has no destination of its own");
    }
    if (request.images().empty()) return Bad("cache", "an inline cache needs an image");
    if (empty) warnings->push_back("cache has no effect: neither layers nor imports are given");
    return absl::OkStatus();
  }
  if (destinations.empty())
    return Bad("cache", "layers or imports, but no destination; name one with --cache");
  for (const Destination& destination : destinations) {
    if (std::holds_alternative<DirectoryDestination>(destination)) {
      return BadText(ToString(destination),
                     "a cache cannot be unpacked; name a repository, oci: or oci-archive:");
    }
  }
  if (empty) return Bad("cache", "a destination, but neither layers nor imports");
  return absl::OkStatus();
}

absl::Status CheckPlainCache(const v1::Cache& cache, std::vector<std::string>* warnings) {
  for (const v1::LayerSource& layer : cache.layers()) {
    if (layer.records().empty() && layer.parent().empty()) continue;
    warnings->push_back(absl::StrCat(base::Printable(layer.source()),
                                     ": a plain cache image holds no records or parents; ignored"));
  }
  if (!cache.records().empty())
    warnings->push_back("cache records have no effect: the cache is a plain image");
  if (cache.max()) warnings->push_back("cache mode max has no effect: the cache is a plain image");
  return absl::OkStatus();
}

absl::Status CheckBuildCache(const v1::Cache& cache) {
  ASSIGN_OR_RETURN(const std::vector<CacheParent> parents, CacheParents(cache));
  std::vector<bool> used(parents.size(), false);
  for (int i = cache.layers_size() - 1; i >= 0; --i) {
    const size_t place = static_cast<size_t>(i);
    const v1::LayerSource& layer = cache.layers(i);
    if (layer.records().empty() && !used[place]) {
      return BadText(
          layer.source(),
          "a layer of a build cache that neither has records nor lies below one that has is of no use "
          "to anybody; give records, or choose format plain");
    }
    if (parents[place].layer != -1) used[static_cast<size_t>(parents[place].layer)] = true;
  }
  std::vector<const v1::CacheRecord*> records;
  for (const v1::CacheRecord& record : cache.records()) records.push_back(&record);
  for (const v1::LayerSource& layer : cache.layers()) {
    for (const v1::CacheRecord& record : layer.records()) records.push_back(&record);
  }
  std::set<std::string> names;
  for (const v1::CacheRecord* record : records) {
    RETURN_IF_ERROR(base::Annotate(base::Digest::Parse(record->digest()).status(), "cache record"));
    names.insert(record->digest());
    if (!record->id().empty()) names.insert(record->id());
  }
  for (const v1::CacheRecord* record : records) {
    RETURN_IF_ERROR(CheckLinks(*record, names, !cache.imports().empty()));
  }
  return absl::OkStatus();
}

absl::Status CheckCache(const v1::ExportRequest& request, const std::vector<Destination>& destinations,
                        std::vector<std::string>* warnings) {
  const v1::Cache& cache = request.cache();
  RETURN_IF_ERROR(CheckCacheDestinations(request, destinations, warnings));
  std::set<std::string> sources;
  for (const v1::LayerSource& layer : cache.layers()) {
    RETURN_IF_ERROR(CheckLayerSource(layer));
    if (!sources.insert(layer.source()).second) {
      return BadText(layer.source(), "is given twice in the cache; give it once, with all its records");
    }
  }
  std::set<std::string> imports;
  for (const std::string& import : cache.imports()) {
    ASSIGN_OR_RETURN(const oci::ImageReference reference, oci::ParseImageReference(import));
    const auto* layout = std::get_if<oci::LayoutReference>(&reference);
    if (layout != nullptr && !IsAbsolute(layout->directory)) {
      return BadText(import, "the path must be absolute");
    }
    if (!imports.insert(oci::ToString(reference)).second) return BadText(import, "is imported twice");
  }
  return cache.format() == v1::PLAIN ? CheckPlainCache(cache, warnings) : CheckBuildCache(cache);
}

// Numbers that this version does not know arrive over gRPC as they are.
absl::Status CheckChoices(const v1::ExportRequest& request) {
  auto unknown = [](absl::string_view what, int number) {
    return Bad(what, absl::StrCat(number, " is unknown to this version"));
  };
  if (!v1::Compression_IsValid(request.compression())) return unknown("compression", request.compression());
  if (!v1::Parallel_IsValid(request.parallel())) return unknown("parallel", request.parallel());
  if (!v1::OnFailure_IsValid(request.on_failure())) return unknown("on-failure", request.on_failure());
  if (!v1::IndexMode_IsValid(request.index())) return unknown("index", request.index());
  const v1::CacheFormat format = request.cache().format();
  return v1::CacheFormat_IsValid(format) ? absl::OkStatus() : unknown("cache format", format);
}

// What is asked for and changes nothing.
void WarnOfIdle(const v1::ExportRequest& request, std::vector<std::string>* warnings) {
  absl::string_view why;
  if (!request.has_cache()) {
    why = "there is no cache to export beside the image";
  } else if (request.cache().format() == v1::INLINE) {
    why = "an inline cache is part of the image";
  } else if (request.images().empty()) {
    why = "there is no image to export beside the cache";
  }
  if (!why.empty() && request.parallel() == v1::ON) {
    warnings->push_back(absl::StrCat("parallel has no effect: ", why));
  }
  if (!why.empty() && request.on_failure() != v1::ON_FAILURE_UNSPECIFIED) {
    warnings->push_back(absl::StrCat("on-failure has no effect: ", why));
  }
  bool makes = !request.cache().layers().empty() || request.has_artifact();
  for (const v1::Image& image : request.images()) makes = makes || !image.layers().empty();
  const bool compressed =
      request.compression() != v1::COMPRESSION_UNSPECIFIED || request.compression_level() != 0;
  if (!makes && compressed) warnings->push_back("compression has no effect: no layer is made");
}

}  // namespace

absl::StatusOr<Destination> ParseDestination(absl::string_view text) {
  if (absl::StartsWith(text, kArchive)) {
    auto layout = oci::ParseImageReference(absl::StrCat(kLayout, text.substr(kArchive.size())));
    if (!layout.ok()) return BadText(text, "not oci-archive:FILE[:tag]");
    auto& parsed = std::get<oci::LayoutReference>(*layout);
    return ArchiveDestination{std::move(parsed.directory), std::move(parsed.tag)};
  }
  if (absl::StartsWith(text, kDirectory)) {
    if (text.size() == kDirectory.size()) return BadText(text, "names no directory: dir:PATH");
    return DirectoryDestination{std::string(text.substr(kDirectory.size()))};
  }
  ASSIGN_OR_RETURN(ImageSource source, ParseImageSource(text));
  if (auto* store = std::get_if<StoreDestination>(&source)) return std::move(*store);
  return std::visit([](auto&& kind) -> Destination { return std::move(kind); },
                    std::get<oci::ImageReference>(std::move(source)));
}

absl::Status CheckLeaseName(absl::string_view name) {
  const auto fits = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '-';
  };
  const bool good = !name.empty() && name.size() <= kMaxLeaseName &&
                    absl::ascii_isalnum(static_cast<unsigned char>(name[0])) &&
                    std::all_of(name.begin(), name.end(), fits);
  if (good) return absl::OkStatus();
  return Bad(absl::StrCat("lease \"", base::Printable(name.substr(0, 200)), "\""),
             "a name has 1 to 128 letters, digits, \"_\", \".\", \"-\", and begins with a letter or digit");
}

absl::StatusOr<ImageSource> ParseImageSource(absl::string_view text) {
  absl::string_view name = text;
  if (absl::ConsumePrefix(&name, kStore)) {
    RETURN_IF_ERROR(CheckLeaseName(name));
    return StoreDestination{std::string(name)};
  }
  ASSIGN_OR_RETURN(oci::ImageReference reference, oci::ParseImageReference(text));
  return reference;
}

std::string ToString(const Destination& destination) {
  struct Text {
    std::string operator()(const oci::Reference& reference) const { return reference.ToString(); }
    std::string operator()(const oci::LayoutReference& layout) const { return layout.ToString(); }
    std::string operator()(const ArchiveDestination& archive) const {
      return absl::StrCat(kArchive, archive.file, archive.tag.has_value() ? ":" : "",
                          archive.tag.value_or(""));
    }
    std::string operator()(const DirectoryDestination& directory) const {
      return absl::StrCat(kDirectory, directory.path);
    }
    std::string operator()(const StoreDestination& store) const { return absl::StrCat(kStore, store.name); }
  };
  return std::visit(Text(), destination);
}

absl::StatusOr<v1::ExportRequest> ParseSpec(absl::string_view json) {
  // Protobuf's own parser takes duplicate keys and more depth than anybody means.
  RETURN_IF_ERROR(base::Annotate(base::ParseJson(json, kMaxSpecBytes).status(), "export spec"));
  v1::ExportRequest request;
  google::protobuf::util::JsonParseOptions strict;
  strict.ignore_unknown_fields = false;
  auto parsed = google::protobuf::util::JsonStringToMessage(std::string(json), &request, strict);
  if (!parsed.ok()) {
    return Bad("export spec",
               base::Printable(absl::string_view(parsed.message().data(), parsed.message().size())));
  }
  return request;
}

std::string SpecToJson(const v1::ExportRequest& request) {
  std::string json;
  const auto written = google::protobuf::util::MessageToJsonString(request, &json);
  return written.ok() ? json : "";
}

absl::Status MakePathsAbsolute(const std::string& directory, v1::ExportRequest* request) {
  for (v1::Image& image : *request->mutable_images()) {
    AbsoluteAfter(directory, {kLayout}, image.mutable_base());
    if (!image.config_file().empty()) image.set_config_file(Absolute(directory, "", image.config_file()));
    for (auto& layer : *image.mutable_layers()) {
      AbsoluteSource(directory, layer.mutable_source());
    }
  }
  for (std::string& text : *request->mutable_destinations()) {
    AbsoluteAfter(directory, {kLayout, kArchive, kDirectory}, &text);
  }
  if (request->has_cache()) {
    for (std::string& text : *request->mutable_cache()->mutable_destinations()) {
      AbsoluteAfter(directory, {kLayout, kArchive, kDirectory}, &text);
    }
    for (std::string& text : *request->mutable_cache()->mutable_imports()) {
      AbsoluteAfter(directory, {kLayout}, &text);
    }
    for (auto& layer : *request->mutable_cache()->mutable_layers()) {
      AbsoluteSource(directory, layer.mutable_source());
      AbsoluteSource(directory, layer.mutable_parent());
    }
  }
  if (request->has_artifact()) {
    for (auto& layer : *request->mutable_artifact()->mutable_layers()) {
      AbsoluteSource(directory, layer.mutable_source());
    }
    AbsoluteAfter(directory, {kLayout}, request->mutable_artifact()->mutable_subject());
  }
  if (!request->access().docker_config().empty()) {
    std::string* config = request->mutable_access()->mutable_docker_config();
    *config = Absolute(directory, "", *config);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<CacheParent>> CacheParents(const v1::Cache& cache) {
  std::vector<CacheParent> parents;
  std::map<std::string, int> places;
  for (int i = 0; i < cache.layers_size(); ++i) {
    const v1::LayerSource& layer = cache.layers(i);
    CacheParent parent;
    if (layer.parent().empty()) {
      parent.layer = i - 1;
    } else if (const auto found = places.find(layer.parent()); found != places.end()) {
      parent.layer = found->second;
    } else if (layer.parent() != "-") {
      auto digest = base::Digest::Parse(layer.parent());
      if (!digest.ok() || cache.imports().empty()) {
        return BadText(layer.source(), absl::StrCat("its parent ", base::Printable(layer.parent()),
                                                    " is neither the source of a layer before it nor the "
                                                    "digest of one in an import"));
      }
      parent.imported = *std::move(digest);
    }
    parents.push_back(std::move(parent));
    places.emplace(layer.source(), i);
  }
  return parents;
}

absl::StatusOr<CheckedRequest> CheckRequest(const v1::ExportRequest& request) {
  CheckedRequest checked;
  const bool cached = request.has_cache();
  if (request.images().empty() && !cached && !request.has_artifact())
    return Bad("export", "neither an image nor a cache is given");
  RETURN_IF_ERROR(CheckChoices(request));
  std::set<std::string> seen;
  ASSIGN_OR_RETURN(checked.images, ParseDestinations(request.destinations(), &seen));
  ASSIGN_OR_RETURN(checked.caches, ParseDestinations(request.cache().destinations(), &seen));
  RETURN_IF_ERROR(request.has_artifact() ? CheckArtifact(request, checked.images)
                                         : CheckImages(request, checked.images));
  if (cached) RETURN_IF_ERROR(CheckCache(request, checked.caches, &checked.warnings));
  if (request.compression_level() < 0) return Bad("compression level", "must not be negative");
  const std::string& docker_config = request.access().docker_config();
  if (!docker_config.empty() && !IsAbsolute(docker_config)) {
    return BadText(docker_config, "the path must be absolute");
  }
  WarnOfIdle(request, &checked.warnings);
  return checked;
}

}  // namespace lazyblob::exporter
