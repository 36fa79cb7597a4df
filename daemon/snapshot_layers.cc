#include "daemon/snapshot_layers.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status.h"
#include "contentservice/learned_images.h"
#include "oci/reference.h"
#include "snapshotter/labels.h"

namespace lazyblob::daemon {
namespace {

constexpr size_t kMaxUrls = 8;  // of one claim: each is asked when all before it have failed

using snapshotter::LayerClaim;
using snapshotter::LayerMount;
using snapshotter::LowerLayer;
using snapshotter::NotLazyError;
using snapshotter::NotLazyReason;

absl::StatusOr<ImageRequest> RequestOf(const LayerClaim& claim) {
  auto reference = oci::ParseReference(claim.reference);
  if (!reference.ok()) return NotLazyError("bad-reference", reference.status());
  if (!claim.manifest.empty()) {
    reference->digest = claim.manifest;
    reference->tag.reset();
  }
  ImageRequest request;
  request.reference = reference->ToString();
  return request;
}

// Which layer of the image the claim is about: the image decides what it is, and what it is called.
absl::StatusOr<size_t> FindLayer(const ResolvedImage& image, const LayerClaim& claim) {
  const auto failed = [&](absl::string_view reason, absl::string_view why) {
    return NotLazyError(reason, absl::FailedPreconditionError(absl::StrCat(
                                    image.reference, ": layer ", claim.layer.ToString(), " ", why)));
  };
  const absl::StatusOr<base::Digest> chain = base::Digest::Parse(claim.chain);
  const std::vector<base::Digest> chains = contentservice::ChainIds(image.diff_ids);
  bool there = false;
  bool same_content = false;
  for (size_t i = 0; i < image.layers.size(); ++i) {
    if (image.layers[i].digest != claim.layer) continue;
    there = true;
    if (!claim.diff_id.empty() && image.diff_ids[i] != claim.diff_id) continue;
    same_content = true;
    if (!chain.ok() || *chain == chains[i]) return i;
  }
  if (!there) {
    return failed("layer-not-in-manifest",
                  absl::StrCat("is not in manifest ", image.manifest_digest.ToString()));
  }
  if (!same_content) {
    return failed("diff-id-mismatch", absl::StrCat("is said to be ", claim.diff_id.ToString(),
                                                   ", which the image's config does not say"));
  }
  return failed("chain-mismatch", absl::StrCat("is said to make ", base::Printable(claim.chain),
                                               ", which the image's config does not say"));
}

MountedLayer ToMounted(const LayerMount& mount) {
  return {mount.layer, mount.meta_path, mount.target, mount.direct};
}

// The files of a layer's directory, and it.
snapshotter::Usage UsageOf(const std::string& directory) {
  snapshotter::Usage usage;
  auto names = base::ListDirectory(directory);
  if (!names.ok()) return usage;
  names->push_back(".");
  for (const std::string& name : *names) {
    struct stat st;
    if (lstat(absl::StrCat(directory, "/", name).c_str(), &st) != 0) continue;
    usage.bytes += static_cast<uint64_t>(st.st_blocks) * 512;
    ++usage.inodes;
  }
  return usage;
}

// A layer's last use is the time of its directory, so that it outlives restarts.
void Touch(const std::string& directory) { utimensat(AT_FDCWD, directory.c_str(), nullptr, 0); }

absl::Time LastUse(const std::string& directory) {
  struct stat st;
  return lstat(directory.c_str(), &st) == 0 ? absl::TimeFromTimespec(st.st_mtim) : absl::InfinitePast();
}

}  // namespace

SnapshotLayers::SnapshotLayers(ImageLayers* layers, PreparedImages* images, Options options)
    : layers_(layers), images_(images), options_(options) {}

std::vector<std::string> SnapshotLayers::UsableUrls(const LayerClaim& claim) const {
  std::vector<std::string> urls;
  for (const std::string& url : claim.urls) {
    if (urls.size() < kMaxUrls && snapshotter::IsAllowedUrl(url, options_.url_hosts)) urls.push_back(url);
  }
  if (const size_t others = claim.urls.size() - urls.size(); others > 0) {
    options_.log(absl::StrCat("layer ", claim.layer.ToString(), ": ", others, " of ", claim.urls.size(),
                              " URLs of label ", snapshotter::kLabelUrls,
                              " are not used: they must be https, without user, query or fragment, and "
                              "their host in snapshotter.url_hosts; at most ",
                              kMaxUrls, " are"));
  }
  return urls;
}

absl::Status SnapshotLayers::Await(PreparedImages::Use& use, size_t i, const LayerClaim& claim) {
  const std::vector<std::string> urls = UsableUrls(claim);
  if (urls.empty() || !CheckLayerType(use.image().layers[i]).ok()) return use.AwaitLayer(i);
  auto added = layers_->AddWithUrls(use.image(), i, urls);
  if (!added.ok()) return NotLazyError("index-failed", added.status());
  absl::Status status = use.AwaitLayer(i);
  // Work on the layer began when the image was resolved: perhaps before its URLs were known.
  if (NotLazyReason(status) == "index-failed") status = use.AwaitLayer(i);
  return status;
}

absl::StatusOr<LayerMount> SnapshotLayers::Mount(const LayerClaim& claim,
                                                 const std::vector<LowerLayer>& lowers,
                                                 std::shared_ptr<base::CancelToken> cancel) {
  ASSIGN_OR_RETURN(const ImageRequest request, RequestOf(claim));
  std::unique_ptr<PreparedImages::Use> use;
  absl::StatusOr<size_t> found;
  // What was remembered of a tag may be out of date.
  for (bool afresh : {false, true}) {
    auto resolved = images_->Resolve(request, afresh, cancel);
    if (!resolved.ok()) return NotLazyError("resolve-failed", resolved.status());
    use = *std::move(resolved);
    found = FindLayer(use->image(), claim);
    if (found.ok() || !claim.manifest.empty() || !use->remembered()) break;
  }
  if (!found.ok()) return found.status();
  RETURN_IF_ERROR(Await(*use, *found, claim));
  const LazyLayerPtr layer = layers_->store().Find(claim.layer);
  if (layer == nullptr || layer->index() == nullptr) {
    return NotLazyError("index-failed", absl::UnavailableError("the layer has just been removed"));
  }
  // It may have been read whole since the image was resolved.
  if (layer->state() == contentstore::LayerState::kQuarantined) {
    return NotLazyError("quarantined", absl::DataLossError(layer->stats().last_error));
  }
  if (const base::Digest known = VerifiedDiffId(claim.layer);
      !known.empty() && known != use->image().diff_ids[*found]) {
    return NotLazyError("diff-id-mismatch",
                        absl::FailedPreconditionError(
                            absl::StrCat("layer ", claim.layer.ToString(), " has diffID ", known.ToString(),
                                         ", the image says ", use->image().diff_ids[*found].ToString())));
  }

  std::vector<ImageLayers::Lower> below;
  for (const LowerLayer& lower : lowers) {
    if (const auto* path = std::get_if<std::string>(&lower)) {
      below.emplace_back(*path);
      continue;
    }
    const auto& lazy = std::get<LayerMount>(lower);
    LazyLayerPtr known = layers_->store().Find(lazy.layer);
    if (known == nullptr || known->index() == nullptr) {
      return NotLazyError("lower-missing", absl::FailedPreconditionError(absl::StrCat(
                                               "layer ", lazy.layer.ToString(), " below it is gone")));
    }
    below.emplace_back(std::move(known));
    if (lazy.opaque_root) break;
  }
  auto probe = layers_->Probe();
  if (!probe.ok()) return NotLazyError("mount-failed", probe.status());
  const fuse::Mode mode = options_.mode.value_or(probe->mode);
  absl::StatusOr<MountedLayer> mounted = layers_->Mount(layer, below, mode);
  if (!mounted.ok()) return NotLazyError("mount-failed", mounted.status());
  LayerMount result;
  result.layer = mounted->digest;
  result.meta_path = mounted->meta_path;
  result.target = mounted->target;
  result.mode = mode;
  result.direct = mounted->direct;
  absl::StatusOr<bool> opaque = HasOpaqueRoot(mounted->meta_path);
  if (!opaque.ok()) {
    layers_->mounts().Release(mounted->target);
    return NotLazyError("mount-failed", opaque.status());
  }
  result.opaque_root = *opaque;
  Touch(layer->directory());
  return result;
}

absl::StatusOr<LayerMount> SnapshotLayers::Restore(const LayerMount& recorded) {
  LayerMount result = recorded;
  ASSIGN_OR_RETURN(MountedLayer mounted, layers_->Restore(ToMounted(recorded), &result.mode));
  result.target = mounted.target;
  result.direct = mounted.direct;
  return result;
}

void SnapshotLayers::Unmount(const LayerMount& mount) {
  if (const LazyLayerPtr layer = layers_->store().Find(mount.layer)) Touch(layer->directory());
  layers_->mounts().Release(mount.target);
}

absl::Status SnapshotLayers::Check(const LayerMount& mount) {
  if (!layers_->mounts().Mounted(mount.target)) {
    return absl::UnavailableError(absl::StrCat("layer ", mount.layer.ToString(),
                                               " is not mounted; remove the image and pull it again"));
  }
  const LazyLayerPtr layer = layers_->store().Find(mount.layer);
  if (layer == nullptr || layer->state() == contentstore::LayerState::kQuarantined) {
    return absl::UnavailableError(
        absl::StrCat("layer ", mount.layer.ToString(),
                     layer == nullptr ? ": it is gone" : ": quarantined, it is not what its image says",
                     "; remove the image and pull it again"));
  }
  return absl::OkStatus();
}

base::Digest SnapshotLayers::VerifiedDiffId(const base::Digest& digest) {
  const LazyLayerPtr layer = layers_->store().Find(digest);
  const bool verified = layer != nullptr && layer->diff_id_check() == contentstore::DiffIdCheck::kVerified;
  return verified ? layer->diff_id() : base::Digest();
}

snapshotter::Usage SnapshotLayers::CacheUsage(const base::Digest& digest) {
  const LazyLayerPtr layer = layers_->store().Find(digest);
  return layer == nullptr ? snapshotter::Usage() : UsageOf(layer->directory());
}

absl::StatusOr<std::string> SnapshotLayers::MapIds(const std::string& source,
                                                   const fuse::IdMapping& mapping) {
  return layers_->mounts().AcquireView(source, mapping);
}

void SnapshotLayers::UnmapIds(const std::string& source, const fuse::IdMapping& mapping) {
  layers_->mounts().ReleaseView(source, mapping);
}

absl::Status SnapshotLayers::Trim() {
  if (options_.max_cache_bytes == 0) return absl::OkStatus();
  struct Unused {
    absl::Time last_use;
    uint64_t bytes = 0;
    base::Digest digest;
  };
  std::vector<Unused> unused;
  uint64_t total = 0;
  std::set<base::Digest> used = layers_->mounts().Layers();
  used.merge(options_.held());
  for (const LazyLayerPtr& layer : layers_->store().Layers()) {
    const base::Digest& digest = layer->descriptor().digest;
    if (used.count(digest) > 0) continue;
    unused.push_back({LastUse(layer->directory()), UsageOf(layer->directory()).bytes, digest});
    total += unused.back().bytes;
  }
  std::sort(unused.begin(), unused.end(),
            [](const Unused& a, const Unused& b) { return a.last_use < b.last_use; });
  absl::Status failure;
  for (const Unused& layer : unused) {
    if (total <= options_.max_cache_bytes) break;
    // FailedPrecondition: somebody has just begun to use it.
    const absl::Status removed = layers_->store().Remove(layer.digest);
    if (removed.ok() || absl::IsNotFound(removed)) {
      total -= layer.bytes;
    } else if (!absl::IsFailedPrecondition(removed)) {
      failure.Update(removed);
    }
  }
  return failure;
}

}  // namespace lazyblob::daemon
