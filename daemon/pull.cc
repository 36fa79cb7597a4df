#include "daemon/pull.h"

#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "contentservice/learned_images.h"
#include "oci/manifest.h"
#include "snapshotter/labels.h"

namespace lazyblob::daemon {
namespace {

using Labels = std::map<std::string, std::string>;

constexpr absl::Duration kLeaseLifetime = absl::Hours(24);  // as containerd's client
constexpr int kPrepareAttempts = 3;
constexpr char kInherited[] = "containerd.io/snapshot/";
constexpr char kConfigLabel[] = "containerd.io/gc.ref.content.config";
constexpr char kSourceLabel[] = "containerd.io/distribution.source.";
constexpr char kUncompressedLabel[] = "containerd.io/uncompressed";

bool LabelFits(absl::string_view key, absl::string_view value) {
  return key.size() + value.size() <= snapshotter::kMaxLabelBytes;
}

std::string ChildKey(const oci::Descriptor& child) {
  const std::string& type = child.media_type;
  if (type == "application/vnd.oci.image.config.v1+json" ||
      type == "application/vnd.docker.container.image.v1+json") {
    return kConfigLabel;
  }
  if (oci::IsManifestMediaType(type)) return "containerd.io/gc.ref.content.m.";
  if (oci::LayerCompression(type).has_value() || absl::StartsWith(type, "application/vnd.oci.image.layer.")) {
    return "containerd.io/gc.ref.content.l.";
  }
  return "containerd.io/gc.ref.content.";
}

// Names a transaction of ours in containerd; unique among all that run.
std::string UniqueKey(absl::string_view chain_id) {
  unsigned char random[3] = {};
  if (getrandom(random, sizeof random, 0) < 0) random[0] = static_cast<unsigned char>(getpid());
  return absl::StrCat(
      "extract-", absl::ToUnixNanos(absl::Now()) % 1'000'000'000, "-",
      absl::WebSafeBase64Escape(absl::string_view(reinterpret_cast<const char*>(random), sizeof random)), " ",
      chain_id);
}

std::string RefKey(const oci::Descriptor& blob, bool is_config) {
  absl::string_view kind = is_config                                   ? "config-"
                           : oci::IsIndexMediaType(blob.media_type)    ? "index-"
                           : oci::IsManifestMediaType(blob.media_type) ? "manifest-"
                                                                       : "layer-";
  return absl::StrCat(kind, blob.digest.ToString());
}

// The host without its port, as containerd's client names it.
absl::string_view HostName(absl::string_view host) {
  if (absl::StartsWith(host, "[")) return host.substr(1, host.find(']') - 1);
  return host.substr(0, host.find(':'));
}

class Puller {
 public:
  Puller(const PullOptions& options, const PullParts& parts)
      : options_(options), parts_(parts), containerd_(*parts.containerd) {}

  absl::StatusOr<PulledImage> Run() {
    ASSIGN_OR_RETURN(image_, ResolveImage(parts_.client, options_.reference, options_.platform, parts_.call));
    PulledImage result;
    result.name = options_.reference.ToString();
    result.target = image_.documents.front().descriptor;
    result.manifest = image_.manifest_digest;
    name_ = result.name;
    PrepareInDaemon();

    ASSIGN_OR_RETURN(std::string lease, containerd_.CreateLease(kLeaseLifetime));
    containerd_.UseLease(lease);
    absl::Cleanup release = [&] {
      containerd_.UseLease("");
      absl::Status status = containerd_.DeleteLease(lease);
      if (!status.ok()) Warn(absl::StrCat(status.message(), "; the lease ends by itself within a day"));
    };
    RETURN_IF_ERROR(WriteDocuments());
    std::vector<std::string> chain_ids = ChainIds(image_.diff_ids);
    for (size_t i = 0; i < chain_ids.size(); ++i) {
      ASSIGN_OR_RETURN(bool lazy, PrepareLayer(i, i == 0 ? "" : chain_ids[i - 1], chain_ids[i]));
      result.layers.push_back({image_.layers[i].digest, chain_ids[i], lazy});
    }
    if (!chain_ids.empty()) {
      RETURN_IF_ERROR(containerd_.SetContentLabels(
          image_.documents.back().descriptor.digest,
          {{absl::StrCat("containerd.io/gc.ref.snapshot.", options_.snapshotter), chain_ids.back()}}));
    }
    RETURN_IF_ERROR(containerd_.PutImage(result.name, result.target));
    return result;
  }

 private:
  void Warn(const std::string& line) const {
    if (parts_.warn) parts_.warn(line);
  }

  void PrepareInDaemon() const {
    if (!parts_.prepare) return;
    oci::Reference exact = options_.reference;
    exact.digest = image_.manifest_digest;
    absl::Status status = parts_.prepare(exact.ToString());
    const bool cancelled = parts_.call.cancel != nullptr && parts_.call.cancel->cancelled();
    if (!status.ok() && !cancelled) Warn(absl::StrCat(status.message(), "; going on layer by layer"));
  }

  absl::StatusOr<Labels> SourceLabels(const base::Digest& blob) const {
    std::string key = absl::StrCat(kSourceLabel, HostName(options_.reference.host));
    absl::StatusOr<Labels> present = containerd_.ContentLabels(blob);
    if (!present.ok() && !absl::IsNotFound(present.status())) return present.status();
    std::string value = AppendSource(present.ok() ? (*present)[key] : "", options_.reference.repository);
    if (!LabelFits(key, value)) return Labels{};
    return Labels{{key, value}};
  }

  absl::Status WriteDocuments() const {
    for (const ImageDocument& document : image_.documents) {
      const bool is_config = &document == &image_.documents.back();
      ASSIGN_OR_RETURN(Labels labels, SourceLabels(document.descriptor.digest));
      if (!is_config) {
        ASSIGN_OR_RETURN(Labels children, ChildLabels(document));
        labels.merge(children);
      }
      auto source = [&](uint64_t offset, ContainerdClient::ContentSink sink) {
        return sink(absl::string_view(document.raw).substr(offset));
      };
      RETURN_IF_ERROR(containerd_.WriteContent(RefKey(document.descriptor, is_config), document.descriptor,
                                               labels, source));
    }
    return absl::OkStatus();
  }

  // Whether the layer is lazy; else it has been unpacked.
  absl::StatusOr<bool> PrepareLayer(size_t index, const std::string& parent, const std::string& chain_id) {
    Labels labels = PrepareLabels(image_, name_, index, chain_id);
    absl::Status last;
    for (int attempt = 0; attempt < kPrepareAttempts; ++attempt) {
      std::string key = UniqueKey(chain_id);
      auto mounts = containerd_.PrepareSnapshot(options_.snapshotter, key, parent, labels);
      if (mounts.ok()) {
        absl::Status status = Unpack(index, chain_id, key, labels, *mounts);
        if (status.ok()) return false;
        containerd_.RemoveSnapshot(options_.snapshotter, key).IgnoreError();
        return status;
      }
      if (!absl::IsAlreadyExists(mounts.status())) {
        return base::Annotate(mounts.status(),
                              absl::StrCat("layer ", image_.layers[index].digest.ToString()));
      }
      auto present = containerd_.StatSnapshot(options_.snapshotter, chain_id);
      if (present.ok()) return present->contains(snapshotter::kLabelRemote);
      // Removed in between, or another one's key.
      if (!absl::IsNotFound(present.status())) return present.status();
      last = present.status();
    }
    return last;
  }

  absl::Status Unpack(size_t index, const std::string& chain_id, const std::string& key, const Labels& labels,
                      const std::vector<ContainerdMount>& mounts) {
    const oci::Descriptor& layer = image_.layers[index];
    RETURN_IF_ERROR(Fetch(layer));
    ASSIGN_OR_RETURN(base::Digest applied, containerd_.ApplyDiff(layer, mounts));
    if (applied != image_.diff_ids[index]) {
      return absl::DataLossError(absl::StrCat(
          "layer ", layer.digest.ToString(), " unpacks to ", applied.ToString(), ", but the config says ",
          image_.diff_ids[index].ToString(), ": the image is damaged, build it again"));
    }
    absl::Status committed = containerd_.CommitSnapshot(options_.snapshotter, chain_id, key, labels);
    if (absl::IsAlreadyExists(committed)) {  // another pull was faster
      containerd_.RemoveSnapshot(options_.snapshotter, key).IgnoreError();
      committed = absl::OkStatus();
    }
    RETURN_IF_ERROR(committed);
    return containerd_.SetContentLabels(layer.digest, {{kUncompressedLabel, applied.ToString()}});
  }

  absl::Status Fetch(const oci::Descriptor& layer) const {
    ASSIGN_OR_RETURN(Labels labels, SourceLabels(layer.digest));
    auto source = [&](uint64_t offset, ContainerdClient::ContentSink sink) {
      uint64_t received = offset;
      return parts_.client->ReadBlob(
          options_.reference, layer, {offset, layer.size - offset},
          [&](absl::Span<const uint8_t> bytes) -> absl::Status {
            RETURN_IF_ERROR(sink({reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
            received += bytes.size();
            if (parts_.progress) parts_.progress(layer, received);
            return absl::OkStatus();
          },
          parts_.call);
    };
    return containerd_.WriteContent(RefKey(layer, false), layer, labels, source);
  }

  const PullOptions& options_;
  const PullParts& parts_;
  ContainerdClient& containerd_;
  ResolvedImage image_;
  std::string name_;
};

}  // namespace

absl::StatusOr<Labels> ChildLabels(const ImageDocument& document) {
  ASSIGN_OR_RETURN(auto parsed, oci::ParseManifestOrIndex(document.raw, document.descriptor.digest,
                                                          document.descriptor.media_type));
  std::vector<oci::Descriptor> children;
  if (auto* manifest = std::get_if<oci::Manifest>(&parsed)) {
    children = manifest->layers;
    children.insert(children.begin(), manifest->config);
  } else {
    children = std::get<oci::Index>(parsed).manifests;
  }
  Labels labels;
  std::map<std::string, size_t> used;
  for (const oci::Descriptor& child : children) {
    std::string key = ChildKey(child);
    size_t number = used[key]++;
    if (key != kConfigLabel || number > 0) absl::StrAppend(&key, number);
    labels[key] = child.digest.ToString();
  }
  return labels;
}

std::vector<std::string> ChainIds(const std::vector<base::Digest>& diff_ids) {
  std::vector<std::string> chain_ids;
  for (const base::Digest& chain : contentservice::ChainIds(diff_ids)) chain_ids.push_back(chain.ToString());
  return chain_ids;
}

std::string AppendSource(absl::string_view value, absl::string_view repository) {
  std::vector<std::string> repositories = absl::StrSplit(value, ',', absl::SkipEmpty());
  repositories.emplace_back(repository);
  std::sort(repositories.begin(), repositories.end());
  repositories.erase(std::unique(repositories.begin(), repositories.end()), repositories.end());
  return absl::StrJoin(repositories, ",");
}

Labels PrepareLabels(const ResolvedImage& image, const std::string& name, size_t index,
                     const std::string& chain_id) {
  Labels labels;
  const oci::Descriptor& layer = image.layers[index];
  for (const auto& [key, value] : layer.annotations) {
    if (absl::StartsWith(key, kInherited) && LabelFits(key, value)) labels[key] = value;
  }
  std::string layers;
  for (size_t i = index; i < image.layers.size(); ++i) {
    std::string more = absl::StrCat(layers, layers.empty() ? "" : ",", image.layers[i].digest.ToString());
    if (!LabelFits(snapshotter::kLabelCriImageLayers, more)) break;
    layers = std::move(more);
  }
  // Over what the image's author wrote.
  labels[snapshotter::kLabelCriImageRef] = name;
  labels[snapshotter::kLabelCriManifestDigest] = image.manifest_digest.ToString();
  labels[snapshotter::kLabelCriLayerDigest] = layer.digest.ToString();
  labels[snapshotter::kLabelCriImageLayers] = layers;
  labels[snapshotter::kLabelDiffId] = image.diff_ids[index].ToString();
  labels[snapshotter::kLabelSnapshotRef] = chain_id;
  return labels;
}

absl::StatusOr<PulledImage> Pull(const PullOptions& options, const PullParts& parts) {
  return Puller(options, parts).Run();
}

nlohmann::json ToJson(const PulledImage& image) {
  nlohmann::json layers = nlohmann::json::array();
  for (const PulledLayer& layer : image.layers) {
    layers.push_back(
        {{"digest", layer.digest.ToString()}, {"chain_id", layer.chain_id}, {"lazy", layer.lazy}});
  }
  return {{"name", image.name},
          {"target", image.target.digest.ToString()},
          {"manifest_digest", image.manifest.ToString()},
          {"layers", std::move(layers)}};
}

}  // namespace lazyblob::daemon
