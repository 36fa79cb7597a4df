#include "daemon/external_toc.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "layer/index_builder.h"
#include "oci/manifest.h"

namespace lazyblob::daemon {
namespace {

constexpr char kTagSuffix[] = "-esgztoc";
constexpr char kLayerDigest[] = "containerd.io/snapshot/stargz/layer.digest";

class TocImage {
 public:
  TocImage(registry::Client* client, oci::Reference reference)
      : client_(client), reference_(std::move(reference)) {}

  absl::StatusOr<std::string> Fetch(const base::Digest& layer, const registry::CallContext& context)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::StatusOr<std::string> toc = FetchNamed(layer.ToString(), context);
    if (!toc.ok()) return base::Annotate(toc.status(), absl::StrCat("TOC image ", reference_.ToString()));
    return toc;
  }

 private:
  absl::StatusOr<std::string> FetchNamed(const std::string& layer, const registry::CallContext& context)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    ASSIGN_OR_RETURN(oci::Descriptor toc, FindToc(layer, context));
    return client_->GetSmallBlob(reference_, toc, layer::kMaxCompressedTocBytes, context);
  }

  absl::StatusOr<oci::Descriptor> FindToc(const std::string& layer, const registry::CallContext& context)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (!manifest_.has_value()) {
      ASSIGN_OR_RETURN(manifest_, FetchManifest(context));
    }
    auto found = std::find_if(manifest_->layers.begin(), manifest_->layers.end(), [&](const auto& candidate) {
      auto annotation = candidate.annotations.find(kLayerDigest);
      return annotation != candidate.annotations.end() && annotation->second == layer;
    });
    if (found == manifest_->layers.end()) return absl::NotFoundError("it has no TOC for this layer");
    return *found;
  }

  absl::StatusOr<oci::Manifest> FetchManifest(const registry::CallContext& context) const {
    oci::Reference reference = reference_;
    for (int depth = 0; depth < 2; ++depth) {
      ASSIGN_OR_RETURN(registry::FetchedManifest document, client_->GetManifest(reference, context));
      ASSIGN_OR_RETURN(auto parsed, oci::ParseManifestOrIndex(document.raw, document.descriptor.digest,
                                                              document.content_type));
      if (auto* manifest = std::get_if<oci::Manifest>(&parsed)) return std::move(*manifest);
      ASSIGN_OR_RETURN(oci::Descriptor chosen,
                       oci::SelectPlatform(std::get<oci::Index>(parsed), oci::HostPlatform()));
      reference.digest = chosen.digest;
    }
    return absl::InvalidArgumentError("index within index");
  }

  registry::Client* const client_;
  const oci::Reference reference_;
  // Held while the manifest is fetched: the layers of an image ask at the same time, for the same document.
  absl::Mutex mutex_;
  std::optional<oci::Manifest> manifest_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

contentstore::ExternalTocSource MakeExternalTocSource(registry::Client* client, const oci::Reference& image) {
  if (!image.tag.has_value()) return nullptr;
  oci::Reference reference = image;
  reference.tag = absl::StrCat(*image.tag, kTagSuffix);
  reference.digest.reset();
  auto toc_image = std::make_shared<TocImage>(client, std::move(reference));
  return [toc_image](const base::Digest& layer, const registry::CallContext& context) {
    return toc_image->Fetch(layer, context);
  };
}

}  // namespace lazyblob::daemon
