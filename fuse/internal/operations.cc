#include "fuse/internal/operations.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "fuse/internal/keeper_protocol.h"
#include "fuse/internal/loop_device.h"
#include "fuse/internal/mount_syscalls.h"
#include "fuse/internal/probe.h"
#include "fuse/internal/user_namespace.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr size_t kMountIdBytes = 8;

absl::StatusOr<base::UniqueFd> OpenBelow(int mount, const std::string& name, int flags) {
  int fd;
  do {
    fd = openat(mount, name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return base::ErrnoStatus(errno, absl::StrCat("open ", name, " of the FUSE file system"));
  return base::UniqueFd(fd);
}

// The kernel keeps names for ever, also that of a layer which was removed and made anew since: asked for its
// attributes it notices, and asks for the name again. An O_PATH open alone does not.
absl::Status Renew(int mount, const std::string& name) {
  struct statx st;
  if (statx(mount, name.c_str(), AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC, STATX_TYPE, &st) == 0) {
    return absl::OkStatus();
  }
  return base::ErrnoStatus(errno, absl::StrCat("look up ", name, " of the FUSE file system"));
}

absl::StatusOr<base::UniqueFd> OpenData(const LayerMountRequest& request, int fuse_mount, int flags) {
  if (request.data_path.empty()) {
    const std::string name = BlobName(request.layer);
    RETURN_IF_ERROR(Renew(fuse_mount, name));
    return OpenBelow(fuse_mount, name, flags);
  }
  return base::OpenFile(request.data_path, flags | O_NOFOLLOW);
}

// A mount without it is right, only slower.
void WarnReadAhead(const absl::Status& status) {
  if (!status.ok())
    fprintf(stderr, "lazyblob-keeper: read-ahead: %s\n", std::string(status.message()).c_str());
}

absl::StatusOr<base::UniqueFd> MakeErofs(const LayerMountRequest& request, int fuse_mount) {
  ASSIGN_OR_RETURN(base::UniqueFd meta, base::OpenFile(request.meta_path, O_RDONLY | O_NOFOLLOW));
  // O_PATH: the kernel's own open is the only one lazyblobd sees.
  ASSIGN_OR_RETURN(base::UniqueFd data, OpenData(request, fuse_mount, O_PATH));
  std::vector<std::string> before = ListErofsReadAhead();
  ASSIGN_OR_RETURN(base::UniqueFd mount,
                   MakeErofsMount(DescriptorPath(meta.get()), DescriptorPath(data.get())));
  WarnReadAhead(RaiseErofsReadAhead(before));
  return mount;
}

absl::StatusOr<base::UniqueFd> MakeLoop(const LayerMountRequest& request, int fuse_mount) {
  ASSIGN_OR_RETURN(base::UniqueFd meta, base::OpenFile(request.meta_path, O_RDONLY | O_NOFOLLOW));
  ASSIGN_OR_RETURN(base::UniqueFd data, OpenData(request, fuse_mount, O_RDONLY));
  ASSIGN_OR_RETURN(LoopDevice meta_loop, AttachLoop(meta.get(), /*direct=*/false));
  ASSIGN_OR_RETURN(LoopDevice data_loop, AttachLoop(data.get(), /*direct=*/request.data_path.empty()));
  ASSIGN_OR_RETURN(base::UniqueFd mount, MakeErofsMount(meta_loop.path, data_loop.path));
  WarnReadAhead(RaiseReadAhead(meta_loop.bdi));
  WarnReadAhead(RaiseReadAhead(data_loop.bdi));
  return mount;
}

absl::StatusOr<base::UniqueFd> MakeLayer(const LayerMountRequest& request, int fuse_mount, bool confirm) {
  RETURN_IF_ERROR(CheckTarget(request.target));  // before lazyblobd is asked for anything
  if (confirm) {
    ASSIGN_OR_RETURN(base::UniqueFd blobs, OpenBelow(fuse_mount, "blobs", O_PATH | O_DIRECTORY));
  }
  switch (request.mode) {
    case Mode::kErofs:
      return MakeErofs(request, fuse_mount);
    case Mode::kLoop:
      return MakeLoop(request, fuse_mount);
    case Mode::kFuse: {
      const std::string name = TreeName(request.layer, request.meta_path);
      RETURN_IF_ERROR(Renew(fuse_mount, name));
      return MakeSubtreeMount(fuse_mount, name);
    }
  }
  return absl::InvalidArgumentError("unknown mount mode");
}

Outcome Attach(absl::StatusOr<base::UniqueFd> mount, const std::string& target) {
  Outcome outcome;
  if (!mount.ok()) {
    outcome.status = mount.status();
    return outcome;
  }
  absl::StatusOr<uint64_t> id = MountIdOf(mount->get());
  outcome.status = id.ok() ? AttachMount(mount->get(), target) : id.status();
  if (outcome.status.ok()) outcome.mount_id = *id;
  return outcome;
}

absl::StatusOr<base::UniqueFd> MakeOverlay(const OverlayRequest& request, bool lower_is_tree) {
  RETURN_IF_ERROR(CheckTarget(request.target));
  if (request.lowers.size() > 1) return MakeOverlayMount(request.lowers);
  if (!lower_is_tree) return MakeBindMount(request.lowers.at(0));
  RETURN_IF_ERROR(CheckEmptyDirectory(request.target));
  return MakeOverlayMount({request.lowers.at(0), request.target});
}

absl::StatusOr<base::UniqueFd> MakeIdMapped(const IdMappedRequest& request) {
  RETURN_IF_ERROR(CheckTarget(request.target));
  ASSIGN_OR_RETURN(base::UniqueFd user_namespace, MakeUserNamespace(request.mapping));
  return MakeIdMappedMount(request.source, user_namespace.get());
}

}  // namespace

std::string EncodeOutcome(const Outcome& outcome) {
  std::string bytes = BodyWriter().U64(outcome.mount_id).Take();
  return absl::StrCat(bytes, EncodeStatus(outcome.status), outcome.result);
}

Outcome DecodeOutcome(absl::string_view bytes) {
  Outcome outcome;
  if (bytes.size() <= kMountIdBytes) {
    outcome.status = absl::InternalError("a child of the keeper died in the middle of a mount operation");
    return outcome;
  }
  outcome.mount_id = BodyReader(bytes).U64();
  absl::string_view result;
  outcome.status = DecodeStatus(bytes.substr(kMountIdBytes), &result);
  outcome.result = std::string(result);
  return outcome;
}

Outcome MountLayer(const LayerMountRequest& request, int fuse_mount, bool confirm) {
  Outcome outcome = Attach(MakeLayer(request, fuse_mount, confirm), request.target);
  outcome.status = base::Annotate(outcome.status, absl::StrCat("mount layer ", request.layer.ToString(), " (",
                                                               ModeName(request.mode), ")"));
  return outcome;
}

Outcome MountOverlay(const OverlayRequest& request, bool lower_is_tree) {
  return Attach(MakeOverlay(request, lower_is_tree), request.target);
}

Outcome MountIdMapped(const IdMappedRequest& request) {
  Outcome outcome = Attach(MakeIdMapped(request), request.target);
  outcome.status =
      base::Annotate(outcome.status, absl::StrCat("id-mapped mount of ", base::Printable(request.source)));
  return outcome;
}

Outcome Unmount(const std::string& target, uint64_t mount_id, bool lazy) {
  Outcome outcome;
  outcome.status = DetachMount(target, mount_id, lazy);
  return outcome;
}

Outcome UnmountAll(const std::vector<HeldMount>& mounts) {
  Outcome outcome;
  for (auto mount = mounts.rbegin(); mount != mounts.rend(); ++mount) {
    absl::Status status = DetachMount(mount->target, mount->mount_id, /*lazy=*/false);
    if (absl::IsFailedPrecondition(status))
      status = DetachMount(mount->target, mount->mount_id, /*lazy=*/true);
    if (!absl::IsNotFound(status)) outcome.status.Update(status);
  }
  return outcome;
}

Outcome ProbeModesHere(const std::string& state_root) {
  Outcome outcome;
  absl::StatusOr<ProbeResult> probe = ProbeModes(state_root);
  outcome.status = probe.status();
  if (probe.ok()) outcome.result = EncodeProbeResult(*probe);
  return outcome;
}

}  // namespace lazyblob::fuse::internal
