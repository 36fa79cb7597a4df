#include "daemon/image_layers.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "daemon/parallel.h"
#include "layer/chain_image_name.h"
#include "layer/chain_meta.h"
#include "layer/erofs.h"

namespace lazyblob::daemon {
namespace {

constexpr size_t kParallelLayers = 8;

bool Exists(const std::string& path) {
  struct stat unused;
  return lstat(path.c_str(), &unused) == 0;
}

// What tells one directory of a snapshot from all others there ever were under its name.
absl::StatusOr<std::string> DirectoryIdentity(const std::string& path) {
  struct statx st;
  if (statx(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &st) != 0) {
    return base::ErrnoStatus(errno, path);
  }
  return absl::StrCat("dir:", path, ":", st.stx_ino, ":", st.stx_btime.tv_sec, ".", st.stx_btime.tv_nsec);
}

}  // namespace

std::shared_ptr<const registry::CredentialsProvider> CredentialsOf(const std::string& docker_config) {
  return docker_config.empty() ? nullptr : registry::DockerConfigCredentials(docker_config);
}

bool MustCompare(const contentstore::LazyLayer& layer, bool always) {
  const contentstore::DiffIdCheck check = layer.diff_id_check();
  return check == contentstore::DiffIdCheck::kDisputed ||
         (always && check == contentstore::DiffIdCheck::kClaimed);
}

absl::StatusOr<bool> HasOpaqueRoot(const std::string& meta_path) {
  ASSIGN_OR_RETURN(auto image, layer::ErofsImage::Open(meta_path));
  ASSIGN_OR_RETURN(auto xattrs, image->Xattrs(image->root()));
  return std::any_of(xattrs.begin(), xattrs.end(),
                     [](const auto& xattr) { return xattr.first == "trusted.overlay.opaque"; });
}

ImageLayers::ImageLayers(Parts parts)
    : parts_(std::move(parts)), mounts_(parts_.root + "/m", parts_.mounter, parts_.reads) {}

absl::StatusOr<fuse::ProbeResult> ImageLayers::Probe() {
  absl::MutexLock lock(&probe_mutex_);
  if (!probe_.has_value()) {
    ASSIGN_OR_RETURN(probe_, parts_.mounter->Probe(parts_.root));
  }
  return *probe_;
}

absl::StatusOr<ResolvedImage> ImageLayers::Resolve(const ImageRequest& request,
                                                   const registry::CallContext& context) {
  ASSIGN_OR_RETURN(oci::ImageReference reference, oci::ParseImageReference(request.reference));
  oci::Platform platform = oci::HostPlatform();
  if (!request.platform.empty()) {
    ASSIGN_OR_RETURN(platform, oci::ParsePlatform(request.platform));
  }
  if (const auto* remote = std::get_if<oci::Reference>(&reference); remote != nullptr && request.plain_http) {
    RETURN_IF_ERROR(parts_.plain_http->Add(remote->host));
  }
  const std::string name = base::Printable(request.reference);
  if (parts_.crashes != nullptr) RETURN_IF_ERROR(parts_.crashes->Check(name));
  const base::CrashSubject subject(name);
  base::FaultPoint(absl::StrCat("daemon.resolve/", name)).IgnoreError();
  return ResolveImage(parts_.client, reference, platform, context);
}

absl::StatusOr<LazyLayerPtr> ImageLayers::Add(const ResolvedImage& image, size_t i) {
  contentstore::DescriptorHandler handler;
  handler.descriptor = image.layers[i];
  handler.diff_id = image.diff_ids[i];
  handler.sources = image.sources;
  handler.external_toc = image.external_toc;
  return parts_.store->AddHandler(handler);
}

absl::StatusOr<LazyLayerPtr> ImageLayers::AddWithUrls(const ResolvedImage& image, size_t i,
                                                      const std::vector<std::string>& urls) {
  contentstore::DescriptorHandler handler;
  handler.descriptor = image.layers[i];
  handler.diff_id = image.diff_ids[i];
  handler.sources = image.sources;
  for (const std::string& url : urls) {
    handler.sources.push_back(contentstore::MakeUrlSource(parts_.client, url));
  }
  return parts_.store->AddHandler(handler);
}

absl::Status ImageLayers::MakeReadable(contentstore::LazyLayer& layer,
                                       const contentstore::FetchContext& context,
                                       const contentstore::Progress& progress) {
  if (layer.index()->info().random_access || layer.state() == contentstore::LayerState::kComplete) {
    return absl::OkStatus();
  }
  return parts_.store->Unlazy(layer, context, progress);
}

absl::Status ImageLayers::CompareDiffId(const ResolvedImage& image, size_t i, bool always,
                                        const contentstore::FetchContext& context,
                                        const contentstore::Progress& progress) {
  ASSIGN_OR_RETURN(const LazyLayerPtr layer, Add(image, i));
  if (!MustCompare(*layer, always)) return absl::OkStatus();
  const absl::Status read = parts_.store->Unlazy(*layer, context, progress);
  // A full cache keeps nobody from comparing.
  if (layer->diff_id_check() != contentstore::DiffIdCheck::kVerified) RETURN_IF_ERROR(read);
  if (MustCompare(*layer, always)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("what it unpacks to cannot be compared with its diffID: ", layer->stats().last_error));
  }
  return Add(image, i).status();
}

absl::StatusOr<std::vector<LazyLayerPtr>> ImageLayers::Prepare(const ResolvedImage& image, bool keep_data,
                                                               const contentstore::FetchContext& context,
                                                               const LayerProgress& progress) {
  for (const oci::Descriptor& layer : image.layers) {
    RETURN_IF_ERROR(base::Annotate(CheckLayerType(layer), image.reference));
  }
  std::vector<LazyLayerPtr> layers(image.layers.size());
  auto prepare = [&](size_t i) -> absl::Status {
    ASSIGN_OR_RETURN(layers[i], Add(image, i));
    auto report = [&, i](uint64_t received) { progress(image.layers[i], received); };
    absl::Status status = parts_.store->EnsureIndexed(*layers[i], keep_data, context, report);
    if (status.ok() && keep_data) status = MakeReadable(*layers[i], context, report);
    if (status.ok()) status = CompareDiffId(image, i, /*always=*/false, context, report);
    return base::Annotate(status, absl::StrCat("layer ", image.layers[i].digest.ToString()));
  };
  RETURN_IF_ERROR(base::Annotate(RunParallel(layers.size(), kParallelLayers, prepare), image.reference));
  return layers;
}

absl::StatusOr<std::string> ImageLayers::MetadataPath(contentstore::LazyLayer& layer,
                                                      absl::Span<const Lower> lowers) {
  const std::string& directory = layer.directory();
  std::string own = directory + "/meta.erofs";
  std::shared_ptr<const layer::LayerIndex> index = layer.index();
  if (index->info().implied_directories.empty()) return own;
  std::vector<layer::LowerLayer> below;  // topmost first
  base::Hasher hasher;
  for (const Lower& lower : lowers) {
    if (const auto* path = std::get_if<std::string>(&lower)) {
      ASSIGN_OR_RETURN(std::string identity, DirectoryIdentity(*path));
      hasher.Update(identity);
      below.push_back({nullptr, nullptr, *path});
      continue;
    }
    const LazyLayerPtr& lazy = std::get<LazyLayerPtr>(lower);
    hasher.Update(lazy->descriptor().digest.ToString());
    ASSIGN_OR_RETURN(auto image, layer::ErofsImage::Open(lazy->directory() + "/meta.erofs"));
    below.push_back({lazy->index(), std::move(image), ""});
  }
  const std::string chain = hasher.Finish().hex().substr(0, 16);
  absl::MutexLock lock(&chain_mutex_);
  ASSIGN_OR_RETURN(std::vector<std::string> names, base::ListDirectory(directory));
  int number = 1;
  for (const std::string& name : names) {
    std::optional<layer::ChainImageName> parsed = layer::ParseChainImageName(name);
    if (!parsed.has_value()) continue;
    if (parsed->chain == chain) return absl::StrCat(directory, "/", name);
    number = std::max(number, parsed->number + 1);
  }
  if (number > layer::kMaxChainImages) {
    return absl::ResourceExhaustedError(absl::StrCat("layer ", index->info().blob_digest.ToString(),
                                                     ": used in more than ", layer::kMaxChainImages,
                                                     " chains"));
  }
  std::string path = absl::StrCat(directory, "/", layer::ChainImageFile({number, chain}));
  // Under another name first: half an image must not be found later.
  const std::string unfinished = directory + "/chain.new";
  unlink(unfinished.c_str());
  ASSIGN_OR_RETURN(bool changed, layer::WriteChainImage(*index, below, unfinished));
  if (!changed) return own;
  if (rename(unfinished.c_str(), path.c_str()) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("rename ", unfinished));
  }
  RETURN_IF_ERROR(base::SyncDirectory(directory));
  return path;
}

absl::StatusOr<std::shared_ptr<const void>> ImageLayers::PinForMount(const LazyLayerPtr& layer,
                                                                     bool mounted) {
  ASSIGN_OR_RETURN(std::shared_ptr<const void> pin, parts_.store->PinForMount(*layer, mounted));
  return std::make_shared<const std::pair<LazyLayerPtr, std::shared_ptr<const void>>>(layer, std::move(pin));
}

absl::StatusOr<WantedLayer> ImageLayers::Wanted(const LazyLayerPtr& layer, const std::string& meta_path,
                                                fuse::Mode mode) {
  ASSIGN_OR_RETURN(fuse::ProbeResult probe, Probe());
  WantedLayer wanted;
  wanted.digest = layer->descriptor().digest;
  wanted.id = layer->id();
  wanted.meta_path = meta_path;
  wanted.mode = mode;
  wanted.pin = layer;
  if (probe.direct && mode != fuse::Mode::kFuse && layer->state() == contentstore::LayerState::kComplete) {
    // Where it may not stay whole it is served by FUSE.
    auto pin = PinForMount(layer, /*mounted=*/false);
    if (pin.ok()) {
      wanted.data_path = layer->directory() + "/data";
      wanted.pin = *std::move(pin);
    }
  }
  return wanted;
}

absl::StatusOr<MountedLayer> ImageLayers::Mount(const LazyLayerPtr& layer, absl::Span<const Lower> lowers,
                                                fuse::Mode mode) {
  MountedLayer mounted;
  mounted.digest = layer->descriptor().digest;
  ASSIGN_OR_RETURN(mounted.meta_path, MetadataPath(*layer, lowers));
  ASSIGN_OR_RETURN(WantedLayer wanted, Wanted(layer, mounted.meta_path, mode));
  mounted.direct = !wanted.data_path.empty();
  ASSIGN_OR_RETURN(mounted.target, mounts_.Acquire(wanted));
  return mounted;
}

absl::StatusOr<MountedLayer> ImageLayers::Restore(const MountedLayer& recorded, fuse::Mode* mode) {
  LazyLayerPtr layer = parts_.store->Find(recorded.digest);
  if (layer == nullptr || layer->index() == nullptr || !Exists(recorded.meta_path)) {
    return absl::NotFoundError(absl::StrCat("layer ", recorded.digest.ToString(),
                                            ": its index is gone; remove the image and pull it again"));
  }
  ASSIGN_OR_RETURN(WantedLayer wanted, Wanted(layer, recorded.meta_path, *mode));
  WantedLayer as_recorded = wanted;
  as_recorded.data_path = recorded.direct ? layer->directory() + "/data" : "";
  as_recorded.pin = layer;
  if (recorded.direct) {
    ASSIGN_OR_RETURN(as_recorded.pin, PinForMount(layer, /*mounted=*/true));
  }
  if (mounts_.Adopt(recorded.target, as_recorded)) return recorded;
  as_recorded.pin.reset();
  wanted.pin.reset();
  // Nothing holds it any more: another kernel may have been started since.
  ASSIGN_OR_RETURN(fuse::ProbeResult probe, Probe());
  *mode = probe.mode;
  ASSIGN_OR_RETURN(wanted, Wanted(layer, recorded.meta_path, *mode));
  MountedLayer mounted = recorded;
  mounted.direct = !wanted.data_path.empty();
  ASSIGN_OR_RETURN(mounted.target, mounts_.Acquire(wanted));
  return mounted;
}

}  // namespace lazyblob::daemon
