#include "exporter/artifact.h"

#include <set>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "exporter/image_builder.h"
#include "oci/layout.h"
#include "oci/manifest_writer.h"
#include "oci/reference.h"

namespace lazyblob::exporter {
namespace {

constexpr char kPlatformAnnotation[] = "io.lazyblob.platform";
constexpr char kTitleAnnotation[] = "org.opencontainers.image.title";
constexpr char kDiffIdAnnotation[] = "containerd.io/uncompressed";
constexpr char kAny[] = "any";

absl::Status Bad(absl::string_view why) { return absl::InvalidArgumentError(why); }

std::string Name(const std::optional<oci::Platform>& platform) {
  return platform ? platform->ToString() : kAny;
}

std::string Suffix(absl::string_view media_type) {
  const std::optional<oci::Compression> compression = oci::LayerCompression(media_type);
  if (compression == oci::Compression::kGzip) return ".tar.gz";
  if (compression == oci::Compression::kZstd) return ".tar.zst";
  return ".tar";
}

}  // namespace

absl::StatusOr<ArtifactSource> ParseArtifactSource(absl::string_view text) {
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(text, absl::MaxSplits('=', 1));
  if (parts.second.empty()) {
    return Bad(absl::StrCat("\"", base::Printable(text.substr(0, 256)), "\" is not PLATFORM=DIR or any=DIR"));
  }
  ArtifactSource source;
  source.path = std::string(parts.second);
  if (parts.first == kAny) return source;
  ASSIGN_OR_RETURN(source.platform, oci::ParsePlatform(parts.first));
  return source;
}

absl::StatusOr<BuiltArtifact> BuildArtifact(const ArtifactSpec& spec) {
  if (spec.layers.empty()) return Bad("an artifact without layers");
  if (spec.layers.size() > oci::kMaxLayers) {
    return Bad(absl::StrCat("an artifact of ", spec.layers.size(), " layers, limit is ", oci::kMaxLayers));
  }
  BuiltArtifact built;
  std::map<std::string, int> used;
  for (const ArtifactLayer& layer : spec.layers) {
    if (layer.diff_id.empty())
      return Bad(absl::StrCat("layer ", layer.descriptor.digest.ToString(), " has no diffID"));
    oci::Descriptor descriptor = layer.descriptor;
    descriptor.annotations = PublicAnnotations(descriptor.annotations, /*keep_diff_id=*/true);
    descriptor.annotations[kDiffIdAnnotation] = layer.diff_id.ToString();
    descriptor.annotations[kPlatformAnnotation] = Name(layer.platform);
    // What tools that fetch artifacts as files name them by.
    std::string title = absl::StrReplaceAll(Name(layer.platform), {{"/", "-"}});
    if (const int times = used[title]++; times > 0) absl::StrAppend(&title, "-", times + 1);
    descriptor.annotations[kTitleAnnotation] = absl::StrCat(title, Suffix(descriptor.media_type));
    descriptor.platform.reset();
    built.layers.push_back(std::move(descriptor));
  }
  built.config = "{}";
  built.config_descriptor = oci::DescriptorOf(built.config, oci::kMediaTypeEmpty);
  oci::Manifest manifest;
  manifest.media_type = oci::kMediaTypeOciManifest;
  manifest.artifact_type = spec.artifact_type;
  manifest.config = built.config_descriptor;
  manifest.layers = built.layers;
  manifest.annotations = spec.annotations;
  manifest.subject = spec.subject;
  built.manifest = oci::WriteManifest(manifest);
  if (built.manifest.size() > oci::kMaxManifestBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("the artifact's manifest would have ",
                                                     built.manifest.size(), " bytes, limit is ",
                                                     oci::kMaxManifestBytes));
  }
  built.manifest_descriptor = oci::DescriptorOf(built.manifest, manifest.media_type);
  built.manifest_descriptor.artifact_type = spec.artifact_type;
  return built;
}

absl::StatusOr<std::vector<ArtifactLayer>> ReadArtifact(const oci::Manifest& manifest) {
  std::vector<ArtifactLayer> layers;
  for (const oci::Descriptor& descriptor : manifest.layers) {
    ArtifactLayer layer;
    layer.descriptor = descriptor;
    const auto platform = descriptor.annotations.find(kPlatformAnnotation);
    const auto diff_id = descriptor.annotations.find(kDiffIdAnnotation);
    if (platform == descriptor.annotations.end() || diff_id == descriptor.annotations.end()) {
      return Bad(absl::StrCat("no artifact of platforms: layer ", descriptor.digest.ToString(), " has no ",
                              kPlatformAnnotation, " or no ", kDiffIdAnnotation));
    }
    if (platform->second != kAny) {
      ASSIGN_OR_RETURN(layer.platform, oci::ParsePlatform(platform->second));
    }
    ASSIGN_OR_RETURN(layer.diff_id, base::Digest::Parse(diff_id->second));
    layers.push_back(std::move(layer));
  }
  if (layers.empty()) return Bad("no artifact of platforms: it has no layers");
  return layers;
}

absl::StatusOr<std::vector<ArtifactLayer>> SelectArtifactLayers(
    const std::vector<ArtifactLayer>& layers, const std::optional<oci::Platform>& platform) {
  if (!platform) return layers;
  oci::Index index;
  std::set<std::string> known;
  for (const ArtifactLayer& layer : layers) {
    known.insert(Name(layer.platform));
    if (!layer.platform) continue;
    oci::Descriptor entry = layer.descriptor;
    entry.media_type = oci::kMediaTypeOciManifest;
    entry.platform = layer.platform;
    index.manifests.push_back(std::move(entry));
  }
  // The same choice among variants as for images.
  std::optional<oci::Platform> chosen;
  if (absl::StatusOr<oci::Descriptor> best = oci::SelectPlatform(index, *platform); best.ok())
    chosen = best->platform;
  std::vector<ArtifactLayer> selected;
  for (const ArtifactLayer& layer : layers) {
    if (!layer.platform || layer.platform == chosen) selected.push_back(layer);
  }
  if (!selected.empty()) return selected;
  return absl::NotFoundError(absl::StrCat("the artifact has nothing for ", platform->ToString(), "; it has ",
                                          absl::StrJoin(known, ", ")));
}

absl::StatusOr<std::optional<oci::Descriptor>> SubjectOf(const v1::Artifact& artifact,
                                                         registry::Client* client,
                                                         const registry::CallContext& context) {
  if (artifact.subject().empty()) return std::nullopt;
  auto find = [&]() -> absl::StatusOr<oci::Descriptor> {
    ASSIGN_OR_RETURN(oci::ImageReference reference, oci::ParseImageReference(artifact.subject()));
    if (const auto* remote = std::get_if<oci::Reference>(&reference)) {
      auto there = client->HeadManifest(*remote, context);
      if (!absl::IsNotFound(there.status())) return there;
      return absl::NotFoundError(absl::StrCat(there.status().message(),
                                              "; if it is still to be pushed, name the layout that has it: "
                                              "oci:DIR[:tag]"));
    }
    const auto& local = std::get<oci::LayoutReference>(reference);
    ASSIGN_OR_RETURN(oci::Layout layout, oci::Layout::Open(local.directory));
    return layout.Resolve(local.tag);
  };
  absl::StatusOr<oci::Descriptor> found = find();
  if (!found.ok()) return base::Annotate(found.status(), "subject");
  oci::Descriptor subject;
  subject.media_type = found->media_type;
  subject.digest = found->digest;
  subject.size = found->size;
  return subject;
}

absl::StatusOr<Content> WholeArtifact(const v1::Artifact& artifact, const MadeLayers& layers,
                                      std::optional<oci::Descriptor> subject, base::CancelToken* cancel) {
  ArtifactSpec spec;
  Content whole;
  whole.name = "artifact";
  for (size_t i = 0; i < layers.size(); ++i) {
    ASSIGN_OR_RETURN(const LayerResult result, layers[i]->Wait(cancel));
    ArtifactLayer layer;
    layer.descriptor = result.Descriptor(/*docker=*/false);
    layer.diff_id = result.diff_id;
    if (const std::string& platform = artifact.layers(static_cast<int>(i)).platform(); platform != kAny) {
      ASSIGN_OR_RETURN(layer.platform, oci::ParsePlatform(platform));
    }
    if (whole.Find(result.digest) == nullptr) {
      ContentBlob blob;
      blob.blob = layers[i]->blob();
      blob.descriptor = layer.descriptor;
      blob.name = layers[i]->source().source();
      blob.layer = true;
      whole.blobs.push_back(std::move(blob));
    }
    spec.layers.push_back(std::move(layer));
  }
  if (!artifact.type().empty()) spec.artifact_type = artifact.type();
  for (const auto& [key, value] : artifact.annotations()) spec.annotations[key] = value;
  spec.subject = std::move(subject);
  ASSIGN_OR_RETURN(BuiltArtifact built, BuildArtifact(spec));
  ContentBlob config;
  config.blob = MakeMemoryBlob(built.config, built.config_descriptor.media_type);
  config.descriptor = built.config_descriptor;
  whole.blobs.push_back(std::move(config));
  Document document;
  document.descriptor = built.manifest_descriptor;
  document.raw = built.manifest;
  for (const ContentBlob& blob : whole.blobs) document.blobs.push_back(blob.descriptor.digest);
  whole.documents.push_back(std::move(document));
  return whole;
}

}  // namespace lazyblob::exporter
