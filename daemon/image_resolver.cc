#include "daemon/image_resolver.h"

#include <optional>
#include <utility>
#include <variant>

#include "absl/functional/function_ref.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "daemon/external_toc.h"
#include "oci/layout.h"

namespace lazyblob::daemon {
namespace {

// Fetches a manifest or index by descriptor.
using FetchManifest = absl::FunctionRef<absl::StatusOr<registry::FetchedManifest>(const oci::Descriptor&)>;
// Fetches a verified small blob.
using FetchBlob = absl::FunctionRef<absl::StatusOr<std::string>(const oci::Descriptor&)>;

struct FoundManifest {
  std::vector<ImageDocument> documents;  // indexes first, the manifest last
  oci::Manifest manifest;
};

// An index may point to another index, as BuildKit writes them; deeper nesting is nobody's honest image.
constexpr int kMaxIndexDepth = 4;

absl::StatusOr<FoundManifest> FindManifest(registry::FetchedManifest document, const oci::Platform& platform,
                                           FetchManifest fetch) {
  FoundManifest found;
  for (int depth = 0; depth < kMaxIndexDepth; ++depth) {
    ASSIGN_OR_RETURN(auto parsed, oci::ParseManifestOrIndex(document.raw, document.descriptor.digest,
                                                            document.content_type));
    found.documents.push_back({std::move(document.descriptor), std::move(document.raw)});
    oci::Descriptor& read = found.documents.back().descriptor;
    read.size = found.documents.back().raw.size();
    if (auto* manifest = std::get_if<oci::Manifest>(&parsed)) {
      read.media_type = manifest->media_type;
      found.manifest = std::move(*manifest);
      return found;
    }
    read.media_type = std::get<oci::Index>(parsed).media_type;
    ASSIGN_OR_RETURN(oci::Descriptor chosen, oci::SelectPlatform(std::get<oci::Index>(parsed), platform));
    ASSIGN_OR_RETURN(document, fetch(chosen));
  }
  return absl::InvalidArgumentError("index within index within index: not an image");
}

// An artifact has no layer at all that is one; told before the config is fetched, which is not an image's
// either.
absl::Status CheckIsImage(const oci::Manifest& manifest) {
  absl::Status first;
  for (const oci::Descriptor& layer : manifest.layers) {
    absl::Status status = CheckLayerType(layer);
    if (status.ok()) return status;
    first.Update(status);
  }
  return first;
}

absl::StatusOr<ResolvedImage> Resolve(registry::FetchedManifest document, const oci::Platform& platform,
                                      FetchManifest fetch_manifest, FetchBlob fetch_blob) {
  ASSIGN_OR_RETURN(FoundManifest found, FindManifest(std::move(document), platform, fetch_manifest));
  if (found.manifest.config.size > oci::kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("config of ", found.manifest.config.size, " bytes is too large"));
  }
  RETURN_IF_ERROR(CheckIsImage(found.manifest));
  ASSIGN_OR_RETURN(std::string raw, fetch_blob(found.manifest.config));
  ASSIGN_OR_RETURN(oci::ImageConfig config, oci::ParseImageConfig(raw, found.manifest.config.digest));
  if (config.diff_ids.size() != found.manifest.layers.size()) {
    const std::string& type = found.manifest.config.media_type;
    const bool image = absl::StrContains(type, "image.config") || absl::StrContains(type, "container.image");
    return absl::InvalidArgumentError(absl::StrCat(
        "config lists ", config.diff_ids.size(), " diff_ids for ", found.manifest.layers.size(), " layers: ",
        image ? "the image is damaged, build it again"
              : absl::StrCat("this is no image but ", base::Printable(type), ", which cannot be mounted")));
  }
  ResolvedImage image;
  image.manifest_digest = found.documents.back().descriptor.digest;
  image.documents = std::move(found.documents);
  image.documents.push_back({found.manifest.config, std::move(raw)});
  image.layers = std::move(found.manifest.layers);
  image.diff_ids = std::move(config.diff_ids);
  return image;
}

absl::StatusOr<ResolvedImage> ResolveFromRegistry(registry::Client* client, const oci::Reference& reference,
                                                  const oci::Platform& platform,
                                                  const registry::CallContext& context) {
  ASSIGN_OR_RETURN(registry::FetchedManifest document, client->GetManifest(reference, context));
  auto fetch_manifest = [&](const oci::Descriptor& descriptor) -> absl::StatusOr<registry::FetchedManifest> {
    oci::Reference by_digest = reference;
    by_digest.tag.reset();
    by_digest.digest = descriptor.digest;
    return client->GetManifest(by_digest, context);
  };
  auto fetch_blob = [&](const oci::Descriptor& descriptor) {
    return client->GetSmallBlob(reference, descriptor, oci::kMaxConfigBytes, context);
  };
  ASSIGN_OR_RETURN(ResolvedImage image, Resolve(std::move(document), platform, fetch_manifest, fetch_blob));
  image.sources.push_back(contentstore::MakeRegistrySource(client, reference));
  image.external_toc = MakeExternalTocSource(client, reference);
  return image;
}

absl::StatusOr<ResolvedImage> ResolveFromLayout(const oci::LayoutReference& reference,
                                                const oci::Platform& platform) {
  ASSIGN_OR_RETURN(oci::Layout layout, oci::Layout::Open(reference.directory));
  auto fetch_manifest = [&](const oci::Descriptor& descriptor) -> absl::StatusOr<registry::FetchedManifest> {
    registry::FetchedManifest document;
    document.descriptor = descriptor;
    document.content_type = descriptor.media_type;
    ASSIGN_OR_RETURN(document.raw, layout.ReadBlob(descriptor.digest, oci::kMaxManifestBytes));
    return document;
  };
  auto fetch_blob = [&](const oci::Descriptor& descriptor) {
    return layout.ReadBlob(descriptor.digest, oci::kMaxConfigBytes);
  };
  ASSIGN_OR_RETURN(oci::Descriptor top, layout.Resolve(reference.tag));
  ASSIGN_OR_RETURN(registry::FetchedManifest document, fetch_manifest(top));
  ASSIGN_OR_RETURN(ResolvedImage image, Resolve(std::move(document), platform, fetch_manifest, fetch_blob));
  image.sources.push_back(contentstore::MakeLayoutSource(reference.directory));
  return image;
}

}  // namespace

absl::Status CheckLayerType(const oci::Descriptor& layer) {
  if (oci::LayerCompression(layer.media_type).has_value()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("layer ", layer.digest.ToString(), ": media type \"", base::Printable(layer.media_type),
                   "\" is not a file system layer; only images can be mounted"));
}

absl::StatusOr<ResolvedImage> ResolveImage(registry::Client* client, const oci::ImageReference& reference,
                                           const oci::Platform& platform,
                                           const registry::CallContext& context) {
  std::string text = oci::ToString(reference);
  absl::StatusOr<ResolvedImage> image =
      std::holds_alternative<oci::Reference>(reference)
          ? ResolveFromRegistry(client, std::get<oci::Reference>(reference), platform, context)
          : ResolveFromLayout(std::get<oci::LayoutReference>(reference), platform);
  if (!image.ok()) return base::Annotate(image.status(), base::Printable(text));
  image->reference = std::move(text);
  return image;
}

}  // namespace lazyblob::daemon
