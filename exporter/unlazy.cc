#include "exporter/unlazy.h"

#include <map>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "exporter/internal/at_once.h"
#include "oci/manifest.h"

namespace lazyblob::exporter {
namespace {

constexpr size_t kLayersAtOnce = 8;
constexpr char kLocal[] = "local";

// Every layer of every image in `content` once, with what its config says of it.
absl::StatusOr<std::vector<contentstore::DescriptorHandler>> Layers(
    const Content& content, const contentstore::FetchContext& context) {
  std::map<base::Digest, contentstore::DescriptorHandler> layers;
  for (const Document& document : content.documents) {
    if (document.index) continue;
    ASSIGN_OR_RETURN(auto parsed, oci::ParseManifestOrIndex(document.raw, document.descriptor.digest,
                                                            document.descriptor.media_type));
    const auto& manifest = std::get<oci::Manifest>(parsed);
    bool any = false;
    for (const oci::Descriptor& layer : manifest.layers) {
      any = any || oci::LayerCompression(layer.media_type).has_value();
    }
    if (!any) continue;
    ASSIGN_OR_RETURN(std::string raw, ReadSmall(content, manifest.config, oci::kMaxConfigBytes, context));
    ASSIGN_OR_RETURN(oci::ImageConfig config, oci::ParseImageConfig(raw, manifest.config.digest));
    if (config.diff_ids.size() != manifest.layers.size()) {
      return absl::InvalidArgumentError(absl::StrCat("config ", manifest.config.digest.ToString(), " lists ",
                                                     config.diff_ids.size(), " diff_ids for ",
                                                     manifest.layers.size(), " layers"));
    }
    for (size_t i = 0; i < manifest.layers.size(); ++i) {
      const oci::Descriptor& layer = manifest.layers[i];
      if (!oci::LayerCompression(layer.media_type).has_value()) continue;
      const ContentBlob* const blob = content.Find(layer.digest);
      if (blob == nullptr) {
        return absl::InvalidArgumentError(absl::StrCat("manifest ", document.descriptor.digest.ToString(),
                                                       " names ", layer.digest.ToString(),
                                                       " as a layer, which is a manifest itself"));
      }
      if (blob->blob->local()) continue;
      layers.try_emplace(layer.digest, contentstore::DescriptorHandler{layer, config.diff_ids[i], {}});
    }
  }
  std::vector<contentstore::DescriptorHandler> list;
  for (auto& [digest, layer] : layers) list.push_back(std::move(layer));
  return list;
}

// What Layers reads and lists, and the store does not have.
std::vector<base::Digest> Wanted(const Content& content, contentstore::ContentStore* store) {
  std::vector<base::Digest> wanted;
  for (const Document& document : content.documents) {
    std::vector<base::Digest> layers;
    for (const base::Digest& digest : document.blobs) {
      const ContentBlob* blob = content.Find(digest);
      if (blob != nullptr && blob->layer) layers.push_back(digest);
    }
    if (document.index || layers.empty()) continue;
    wanted.push_back(document.blobs.front());  // the config
    for (const base::Digest& digest : layers) {
      const auto known = store->Find(digest);
      if (known != nullptr && known->state() == contentstore::LayerState::kComplete) continue;
      wanted.push_back(digest);
    }
  }
  return wanted;
}

}  // namespace

absl::StatusOr<std::string> ReadSmall(const Content& content, const oci::Descriptor& descriptor,
                                      uint64_t max_bytes, const contentstore::FetchContext& context) {
  const ContentBlob* blob = content.Find(descriptor.digest);
  if (blob == nullptr) return absl::InternalError(absl::StrCat("no blob ", descriptor.digest.ToString()));
  if (descriptor.size > max_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("blob ", descriptor.digest.ToString(), ": ",
                                                     descriptor.size, " bytes, more than ", max_bytes));
  }
  std::string bytes;
  RETURN_IF_ERROR(blob->blob->Read(
      0,
      [&](absl::Span<const uint8_t> part) -> absl::Status {
        if (part.size() > descriptor.size - bytes.size()) {
          return absl::DataLossError(
              absl::StrCat("blob ", descriptor.digest.ToString(), ": longer than said"));
        }
        bytes.append(reinterpret_cast<const char*>(part.data()), part.size());
        return absl::OkStatus();
      },
      context));
  base::Hasher hasher(descriptor.digest.algorithm());
  hasher.Update(bytes);
  if (hasher.Finish() != descriptor.digest) {
    return absl::DataLossError(absl::StrCat("blob ", descriptor.digest.ToString(), ": other bytes came"));
  }
  return bytes;
}

absl::Status Unlazy(const Content& content, contentstore::ContentStore* store,
                    const contentstore::FetchContext& context,
                    const std::function<void(const v1::Progress&)>& progress) {
  RETURN_IF_ERROR(CheckProvided(content, Wanted(content, store)));
  ASSIGN_OR_RETURN(const std::vector<contentstore::DescriptorHandler> handlers, Layers(content, context));
  std::vector<std::shared_ptr<contentstore::LazyLayer>> layers;
  for (const contentstore::DescriptorHandler& handler : handlers) {
    ASSIGN_OR_RETURN(auto layer, store->AddHandler(handler));
    layers.push_back(std::move(layer));
  }
  return UnlazyLayers(layers, store, context, progress);
}

absl::Status UnlazyLayers(const std::vector<std::shared_ptr<contentstore::LazyLayer>>& layers,
                          contentstore::ContentStore* store, const contentstore::FetchContext& context,
                          const std::function<void(const v1::Progress&)>& progress) {
  auto stop = std::make_shared<base::CancelToken>();
  std::optional<base::CancelToken::Registration> registration;
  if (context.cancel != nullptr) registration.emplace(context.cancel->OnCancel([stop] { stop->Cancel(); }));
  contentstore::FetchContext fetch = context;
  fetch.cancel = stop;
  return AtOnce(layers.size(), kLayersAtOnce, stop.get(), [&](size_t i) -> absl::Status {
    contentstore::LazyLayer& layer = *layers[i];
    v1::Progress told;
    told.set_digest(layer.descriptor().digest.ToString());
    told.set_name(told.digest());
    told.set_destination(kLocal);
    told.set_size(layer.descriptor().size);
    auto tell = [&](const char* state) {
      told.set_state(state);
      if (progress) progress(told);
    };
    auto received = [&](uint64_t bytes) {
      told.set_bytes(bytes);
      tell("fetching");
    };
    tell("queued");
    const bool was_local = layer.state() == contentstore::LayerState::kComplete;
    absl::Status status = store->EnsureIndexed(layer, /*keep_data=*/true, fetch, received);
    if (status.ok()) status = store->Unlazy(layer, fetch, received);
    tell(!status.ok() ? "failed" : was_local ? "exists" : "written");
    return base::Annotate(status, absl::StrCat("layer ", told.digest()));
  });
}

}  // namespace lazyblob::exporter
