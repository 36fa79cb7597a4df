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

}  // namespace

MountManager::MountManager(Parts parts) : parts_(std::move(parts)) {}

absl::Status MountManager::Save() { return SaveMountTable(parts_.layers->root() + "/mounts.json", mounts_); }

void MountManager::LendCredentials(const MountedImage& image) {
  if (auto provider = CredentialsOf(image.docker_config)) {
    lent_[image.directory] = parts_.requesters->Add(std::move(provider));
  }
}

absl::Status MountManager::Restore(const std::set<std::string>& mounted) {
  const std::string& root = parts_.layers->root();
  RETURN_IF_ERROR(base::MakeDirectories(root + "/m"));
  RETURN_IF_ERROR(base::MakeDirectories(root + "/empty"));
  ASSIGN_OR_RETURN(std::vector<MountedImage> mounts, LoadMountTable(root + "/mounts.json"));
  absl::MutexLock lock(&mutex_);
  for (MountedImage& image : mounts) {
    if (mounted.count(image.directory) == 0) continue;  // unmounted since, or gone with another keeper
    for (const MountedLayer& layer : image.layers) {
      WantedLayer as;
      as.digest = layer.digest;
      const LazyLayerPtr known = parts_.layers->store().Find(layer.digest);
      as.pin = known;
      if (layer.direct) {
        as.data_path = layer.meta_path.substr(0, layer.meta_path.rfind('/')) + "/data";
        if (known != nullptr) {
          if (auto pin = parts_.layers->PinForMount(known, /*mounted=*/true); pin.ok())
            as.pin = *std::move(pin);
        }
      }
      parts_.layers->mounts().Adopt(layer.target, as);
    }
    LendCredentials(image);
    mounts_.push_back(std::move(image));
  }
  return Save();
}

absl::Status MountManager::MountLayers(const Layers& layers, MountedImage* image) {
  std::vector<MountedLayer> mounted(layers.size());
  std::vector<char> done(layers.size(), 0);
  auto mount = [&](size_t i) -> absl::Status {
    std::vector<ImageLayers::Lower> lowers(layers.rend() - static_cast<ptrdiff_t>(i), layers.rend());
    ASSIGN_OR_RETURN(mounted[i], parts_.layers->Mount(layers[i], lowers, image->mode));
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
    overlay.lowers.push_back(parts_.layers->root() + "/empty");
  }
  return parts_.mounter->MountOverlay(overlay);
}

void MountManager::ReleaseLayers(const MountedImage& image) {
  for (const MountedLayer& layer : image.layers) parts_.layers->mounts().Release(layer.target);
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
  ASSIGN_OR_RETURN(ResolvedImage resolved, parts_.layers->Resolve(request, call));
  ASSIGN_OR_RETURN(fuse::ProbeResult probe, parts_.layers->Probe());

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
  ASSIGN_OR_RETURN(Layers layers, parts_.layers->Prepare(resolved, /*keep_data=*/true, fetch, progress));
  absl::Status status = MountLayers(layers, &image);
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
  ASSIGN_OR_RETURN(ResolvedImage resolved, parts_.layers->Resolve(request, call));
  contentstore::FetchContext fetch;
  fetch.cause = contentstore::FetchCause::kIndex;
  fetch.cancel = cancel;
  fetch.credentials = call.credentials;
  ASSIGN_OR_RETURN(Layers layers, parts_.layers->Prepare(resolved, /*keep_data=*/false, fetch, progress));
  MountedImage image;
  image.reference = resolved.reference;
  image.manifest_digest = resolved.manifest_digest;
  for (const auto& layer : layers) {
    image.layers.push_back({layer->descriptor().digest, "", "", false});
  }
  return image;
}

std::vector<MountedImage> MountManager::List() const {
  absl::MutexLock lock(&mutex_);
  return mounts_;
}

}  // namespace lazyblob::daemon
