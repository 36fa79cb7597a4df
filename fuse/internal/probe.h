#pragma once

// Which mode works here, found out by doing it (design rule 9).

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "fuse/mounter.h"

namespace lazyblob::fuse::internal {

// FailedPrecondition when `state_root` is on a file system that EROFS images cannot be mounted from, or the
// directory cannot be used. Forks and mounts (detached: nothing becomes visible); blocks.
absl::StatusOr<ProbeResult> ProbeModes(const std::string& state_root);

// FailedPrecondition unless `path` is on ext4, xfs or btrfs.
absl::Status CheckStateFileSystem(const std::string& path);

// Whether uname's `release` ("6.12.2-amd64") is at least major.minor.patch. Text that is no version is not.
bool KernelAtLeast(absl::string_view release, int major, int minor, int patch);

}  // namespace lazyblob::fuse::internal
