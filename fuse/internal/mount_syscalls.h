#pragma once

// The mount system calls the keeper makes. Everything here may wait for an answer of lazyblobd (a LOOKUP, an
// OPEN), so it runs in a child process of the keeper, with the exception of OpenConnection, which asks
// lazyblobd for nothing. Errors carry the errno and what the kernel wrote into the mount context.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/digest.h"
#include "base/file.h"

namespace lazyblob::fuse::internal {

inline constexpr int kReadAheadKib = 1024;  // of EROFS mounts: one EROFS request stays one FUSE request

// One FUSE file system that nobody but the holder of `mount` can reach.
struct FuseConnection {
  base::UniqueFd device;  // /dev/fuse
  base::UniqueFd mount;   // detached: in no mount namespace, so no "umount -f" can abort it
  uint32_t number = 0;    // its name under fusectl
};
absl::StatusOr<FuseConnection> OpenConnection();
// Ends the connection: everything that waits for an answer fails now.
absl::Status AbortConnection(uint32_t number);

// "blobs/sha256-<hex>" and "trees/sha256-<hex>": names of our FUSE file system.
std::string BlobName(const base::Digest& layer);
// `meta_path` tells which image of the layer: its own, or a chain image.
std::string TreeName(const base::Digest& layer, const std::string& meta_path);

// "/proc/self/fd/N"
std::string DescriptorPath(int fd);

// Detached read-only, nodev, nosuid mounts. `source` and `device` are paths of files or block devices.
absl::StatusOr<base::UniqueFd> MakeErofsMount(const std::string& source, const std::string& device);
// A clone of the directory `name` below `mount`.
absl::StatusOr<base::UniqueFd> MakeSubtreeMount(int mount, const std::string& name);
// At least two lowers, topmost first.
absl::StatusOr<base::UniqueFd> MakeOverlayMount(const std::vector<std::string>& lowers);
// Overlay for kernels without "lowerdir+": all lowers in one option of at most 255 bytes.
absl::StatusOr<base::UniqueFd> MakeOverlayMountInOneOption(const std::vector<std::string>& lowers);
// One lower with everything it is: a bind.
absl::StatusOr<base::UniqueFd> MakeBindMount(const std::string& lower);

// A bind in which ids are mapped as in `user_namespace`. Unimplemented: the file system cannot.
absl::StatusOr<base::UniqueFd> MakeIdMappedMount(const std::string& source, int user_namespace);

// A number that names the mount `fd` is on, or the one on top at `path`; for comparing only.
absl::StatusOr<uint64_t> MountIdOf(int fd);
absl::StatusOr<uint64_t> MountIdAt(const std::string& path);

// FailedPrecondition when something is mounted at `target` already; NotFound or FailedPrecondition when it is
// no directory.
absl::Status CheckTarget(const std::string& target);
absl::Status CheckEmptyDirectory(const std::string& path);
absl::Status AttachMount(int mount, const std::string& target);

// NotFound when the mount on top at `target` is not `mount_id`; FailedPrecondition when busy.
absl::Status DetachMount(const std::string& target, uint64_t mount_id, bool lazy);

// EROFS on files has a backing device info of its own, which nothing links to the mount: the ones that
// appeared since `before` was taken get kReadAheadKib. A foreign EROFS mounted at the same moment would get
// it as well.
std::vector<std::string> ListErofsReadAhead();
absl::Status RaiseErofsReadAhead(const std::vector<std::string>& before);
// The one of a block device ("7:3").
absl::Status RaiseReadAhead(const std::string& name);

}  // namespace lazyblob::fuse::internal
