#include "daemon/mount_manager.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status.h"
#include "daemon/parallel.h"
#include "layer/chain_image_name.h"
#include "layer/chain_meta.h"
#include "layer/erofs.h"

namespace lazyblob::daemon {
namespace {

constexpr size_t kParallelLayers = 8;
constexpr absl::Duration kResolveDeadline = absl::Seconds(60);

// An existing, empty directory on which nothing is mounted.
absl::Status CheckMountPoint(const std::string& directory) {
  struct stat st;
  struct stat parent;
  if (stat(directory.c_str(), &st) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("mount point ", base::Printable(directory)));
  }
  if (!S_ISDIR(st.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat("mount point ", base::Printable(directory),
                                                      ": not a directory; name an empty directory"));
  }
  if (stat((directory + "/..").c_str(), &parent) == 0 &&
      (parent.st_dev != st.st_dev || parent.st_ino == st.st_ino)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "mount point ", base::Printable(directory), ": busy, something is mounted there; unmount it first"));
  }
  ASSIGN_OR_RETURN(std::vector<std::string> names, base::ListDirectory(directory));
  if (!names.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("mount point ", base::Printable(directory), ": not empty; name an empty directory"));
  }
  return absl::OkStatus();
}

// Whether a layer hides everything below it.
absl::StatusOr<bool> HasOpaqueRoot(const std::string& meta_path) {
  ASSIGN_OR_RETURN(auto image, layer::ErofsImage::Open(meta_path));
  ASSIGN_OR_RETURN(auto xattrs, image->Xattrs(image->root()));
  return std::any_of(xattrs.begin(), xattrs.end(),
                     [](const auto& xattr) { return xattr.first == "trusted.overlay.opaque"; });
}

std::shared_ptr<const registry::CredentialsProvider> CredentialsOf(const std::string& docker_config) {
  return docker_config.empty() ? nullptr : registry::DockerConfigCredentials(docker_config);
}

}  // namespace

MountManager::MountManager(Parts parts)
    : parts_(std::move(parts)), layer_mounts_(parts_.root + "/m", parts_.mounter, parts_.reads) {}

absl::Status MountManager::Save() { return SaveMountTable(parts_.root + "/mounts.json", mounts_); }

void MountManager::LendCredentials(const MountedImage& image) {
  if (auto provider = CredentialsOf(image.docker_config)) {
    lent_[image.directory] = parts_.requesters->Add(std::move(provider));
  }
}

absl::Status MountManager::Restore(const std::set<std::string>& mounted) {
  RETURN_IF_ERROR(base::MakeDirectories(parts_.root + "/m"));
  RETURN_IF_ERROR(base::MakeDirectories(parts_.root + "/empty"));
  ASSIGN_OR_RETURN(std::vector<MountedImage> mounts, LoadMountTable(parts_.root + "/mounts.json"));
  absl::MutexLock lock(&mutex_);
  for (MountedImage& image : mounts) {
    if (mounted.count(image.directory) == 0) continue;  // unmounted since, or gone with another keeper
    for (const MountedLayer& layer : image.layers) layer_mounts_.Adopt(layer, image.mode);
    LendCredentials(image);
    mounts_.push_back(std::move(image));
  }
  return Save();
}

absl::StatusOr<fuse::ProbeResult> MountManager::Probe() {
  absl::MutexLock lock(&probe_mutex_);
  if (!probe_.has_value()) {
    ASSIGN_OR_RETURN(probe_, parts_.mounter->Probe(parts_.root));
  }
  return *probe_;
}

absl::StatusOr<ResolvedImage> MountManager::Resolve(const ImageRequest& request,
                                                    const registry::CallContext& context) {
  ASSIGN_OR_RETURN(oci::ImageReference reference, oci::ParseImageReference(request.reference));
  oci::Platform platform = oci::HostPlatform();
  if (!request.platform.empty()) {
    ASSIGN_OR_RETURN(platform, oci::ParsePlatform(request.platform));
  }
  if (const auto* remote = std::get_if<oci::Reference>(&reference); remote != nullptr && request.plain_http) {
    RETURN_IF_ERROR(parts_.plain_http->Add(remote->host));
  }
  return ResolveImage(parts_.client, reference, platform, context);
}

absl::StatusOr<MountManager::Layers> MountManager::PrepareLayers(const ResolvedImage& image, bool keep_data,
                                                                 const contentstore::FetchContext& context,
                                                                 const LayerProgress& progress) {
  Layers layers(image.layers.size());
  auto prepare = [&](size_t i) -> absl::Status {
    contentstore::DescriptorHandler handler;
    handler.descriptor = image.layers[i];
    handler.diff_id = image.diff_ids[i];
    handler.sources = image.sources;
    ASSIGN_OR_RETURN(layers[i], parts_.store->AddHandler(handler));
    auto report = [&, i](uint64_t received) { progress(image.layers[i], received); };
    absl::Status status = parts_.store->EnsureIndexed(*layers[i], keep_data, context, report);
    // A layer whose index gives no random access (one huge zstd frame) is useful only when it is complete.
    if (status.ok() && keep_data && !layers[i]->index()->info().random_access &&
        layers[i]->state() != contentstore::LayerState::kComplete) {
      status = parts_.store->Unlazy(*layers[i], context, report);
    }
    return base::Annotate(status, absl::StrCat("layer ", image.layers[i].digest.ToString()));
  };
  RETURN_IF_ERROR(base::Annotate(RunParallel(layers.size(), kParallelLayers, prepare), image.reference));
  return layers;
}

absl::StatusOr<std::string> MountManager::MetadataPath(const Layers& layers, size_t i) {
  const std::string& directory = layers[i]->directory();
  std::string own = directory + "/meta.erofs";
  std::shared_ptr<const layer::LayerIndex> index = layers[i]->index();
  if (index->info().implied_directories.empty()) return own;
  std::vector<layer::LowerLayer> lowers;  // topmost first
  base::Hasher hasher;
  for (size_t k = i; k-- > 0;) {
    hasher.Update(layers[k]->descriptor().digest.ToString());
    ASSIGN_OR_RETURN(auto image, layer::ErofsImage::Open(layers[k]->directory() + "/meta.erofs"));
    lowers.push_back({layers[k]->index(), std::move(image)});
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
  ASSIGN_OR_RETURN(bool changed, layer::WriteChainImage(*index, lowers, path));
  return changed ? path : own;
}

absl::Status MountManager::MountLayers(const Layers& layers, bool direct, MountedImage* image) {
  std::vector<MountedLayer> mounted(layers.size());
  std::vector<char> done(layers.size(), 0);
  auto mount = [&](size_t i) -> absl::Status {
    MountedLayer layer;
    layer.digest = layers[i]->descriptor().digest;
    ASSIGN_OR_RETURN(layer.meta_path, MetadataPath(layers, i));
    layer.direct = direct && image->mode != fuse::Mode::kFuse &&
                   layers[i]->state() == contentstore::LayerState::kComplete;
    ASSIGN_OR_RETURN(mounted[i], layer_mounts_.Acquire(layer, layers[i]->directory() + "/data", image->mode));
    done[i] = 1;
    return absl::OkStatus();
  };
  absl::Status status = RunParallel(layers.size(), kParallelLayers, mount);
  for (size_t i = 0; i < layers.size(); ++i) {
    if (done[i] != 0) image->layers.push_back(mounted[i]);
  }
  return status;
}

absl::Status MountManager::MountRoot(const Layers& layers, const MountedImage& image) {
  fuse::OverlayRequest overlay;
  overlay.target = image.directory;
  bool whiteouts = false;
  for (size_t i = layers.size(); i-- > 0;) {
    whiteouts = whiteouts || layers[i]->index()->info().has_whiteouts;
    // The same layer again below itself shows nothing new, and overlayfs refuses it in some modes.
    const std::string& target = image.layers[i].target;
    if (std::find(overlay.lowers.begin(), overlay.lowers.end(), target) == overlay.lowers.end()) {
      overlay.lowers.push_back(target);
    }
    // Overlayfs does not look whether a layer's root is opaque.
    ASSIGN_OR_RETURN(bool opaque, HasOpaqueRoot(image.layers[i].meta_path));
    if (opaque) break;
  }
  // Overlayfs must hide the whiteouts of an only layer, and an image without layers is an empty directory.
  if (overlay.lowers.empty() || (overlay.lowers.size() == 1 && whiteouts)) {
    overlay.lowers.push_back(parts_.root + "/empty");
  }
  return parts_.mounter->MountOverlay(overlay);
}

void MountManager::ReleaseLayers(const MountedImage& image) {
  for (const MountedLayer& layer : image.layers) layer_mounts_.Release(layer, image.mode);
}

absl::StatusOr<MountedImage> MountManager::Mount(const ImageRequest& request, const std::string& directory,
                                                 const std::string& mode,
                                                 std::shared_ptr<base::CancelToken> cancel,
                                                 const LayerProgress& progress) {
  ASSIGN_OR_RETURN(std::optional<fuse::Mode> wanted, fuse::ParseMode(mode));
  {
    absl::MutexLock lock(&mutex_);
    if (!in_progress_.insert(directory).second) {
      return absl::FailedPreconditionError(
          absl::StrCat("mount point ", base::Printable(directory), ": busy, another mount is under way"));
    }
  }
  absl::Cleanup finished = [&] {
    absl::MutexLock lock(&mutex_);
    in_progress_.erase(directory);
  };
  RETURN_IF_ERROR(CheckMountPoint(directory));

  registry::CallContext call;
  call.deadline = base::SystemClock().Monotonic() + kResolveDeadline;
  call.cancel = cancel;
  call.credentials = CredentialsOf(request.docker_config);
  ASSIGN_OR_RETURN(ResolvedImage resolved, Resolve(request, call));
  ASSIGN_OR_RETURN(fuse::ProbeResult probe, Probe());

  MountedImage image;
  image.reference = resolved.reference;
  image.manifest_digest = resolved.manifest_digest;
  image.directory = directory;
  image.mode = wanted.value_or(probe.mode);
  image.mode_reason = wanted.has_value() ? "asked for" : probe.why;
  image.docker_config = request.docker_config;

  contentstore::FetchContext fetch;
  fetch.cause = contentstore::FetchCause::kStream;
  fetch.cancel = cancel;
  fetch.credentials = call.credentials;
  ASSIGN_OR_RETURN(Layers layers, PrepareLayers(resolved, /*keep_data=*/true, fetch, progress));
  absl::Status status = MountLayers(layers, probe.direct, &image);
  if (status.ok()) status = MountRoot(layers, image);
  if (!status.ok()) {
    ReleaseLayers(image);
    return base::Annotate(status, resolved.reference);
  }
  {
    absl::MutexLock lock(&mutex_);
    mounts_.push_back(image);
    LendCredentials(image);
    status = Save();
  }
  if (!status.ok()) {  // a successor would not know of it
    parts_.mounter->Unmount(directory, /*lazy=*/true).IgnoreError();
    ReleaseLayers(image);
    Forget(directory);
    return status;
  }
  return image;
}

absl::Status MountManager::Unmount(const std::string& directory) {
  MountedImage image;
  {
    absl::MutexLock lock(&mutex_);
    auto found = std::find_if(mounts_.begin(), mounts_.end(),
                              [&](const MountedImage& mount) { return mount.directory == directory; });
    if (found == mounts_.end()) {
      return absl::NotFoundError(
          absl::StrCat(base::Printable(directory), ": nothing of ours is mounted there"));
    }
    if (!in_progress_.insert(directory).second) {
      return absl::FailedPreconditionError(
          absl::StrCat(base::Printable(directory), ": being unmounted already"));
    }
    image = *found;
  }
  absl::Cleanup finished = [&] {
    absl::MutexLock lock(&mutex_);
    in_progress_.erase(directory);
  };
  RETURN_IF_ERROR(parts_.mounter->Unmount(directory, /*lazy=*/false));
  ReleaseLayers(image);
  Forget(directory);
  return absl::OkStatus();
}

void MountManager::Forget(const std::string& directory) {
  absl::MutexLock lock(&mutex_);
  mounts_.erase(std::remove_if(mounts_.begin(), mounts_.end(),
                               [&](const MountedImage& mount) { return mount.directory == directory; }),
                mounts_.end());
  if (auto lent = lent_.find(directory); lent != lent_.end()) {
    parts_.requesters->Remove(lent->second);
    lent_.erase(lent);
  }
  // A disk that is full must not keep anything mounted: a successor asks the keeper what still is.
  if (absl::Status saved = Save(); !saved.ok()) {
    fprintf(stderr, "lazyblobd: %s\n", std::string(saved.message()).c_str());
  }
}

void MountManager::UnmountAll() {
  for (const MountedImage& image : List()) {
    if (Unmount(image.directory).ok()) continue;
    parts_.mounter->Unmount(image.directory, /*lazy=*/true).IgnoreError();
    ReleaseLayers(image);
    Forget(image.directory);
  }
}

absl::StatusOr<MountedImage> MountManager::Index(const ImageRequest& request,
                                                 std::shared_ptr<base::CancelToken> cancel,
                                                 const LayerProgress& progress) {
  registry::CallContext call;
  call.deadline = base::SystemClock().Monotonic() + kResolveDeadline;
  call.cancel = cancel;
  call.credentials = CredentialsOf(request.docker_config);
  ASSIGN_OR_RETURN(ResolvedImage resolved, Resolve(request, call));
  contentstore::FetchContext fetch;
  fetch.cause = contentstore::FetchCause::kIndex;
  fetch.cancel = cancel;
  fetch.credentials = call.credentials;
  ASSIGN_OR_RETURN(Layers layers, PrepareLayers(resolved, /*keep_data=*/false, fetch, progress));
  MountedImage image;
  image.reference = resolved.reference;
  image.manifest_digest = resolved.manifest_digest;
  for (const auto& layer : layers) {
    image.layers.push_back({layer->descriptor().digest, "", "", false});
  }
  return image;
}

std::vector<std::string> MountManager::DirectFiles() const {
  std::set<std::string> files;
  for (const MountedImage& image : List()) {
    for (const MountedLayer& layer : image.layers) {
      if (layer.direct) files.insert(layer.meta_path.substr(0, layer.meta_path.rfind('/')) + "/data");
    }
  }
  return {files.begin(), files.end()};
}

std::vector<MountedImage> MountManager::List() const {
  absl::MutexLock lock(&mutex_);
  return mounts_;
}

}  // namespace lazyblob::daemon
