#pragma once

// The state root: one directory, one daemon. Opened by the first process of a daemon, before the keeper
// starts.

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/file.h"

namespace lazyblob::daemon {

// Creates `root` 0700 if missing; refuses a symbolic link, a foreign owner, wider permissions, or a file
// system that EROFS cannot mount images from (ext4, xfs and btrfs can). Then locks it, waiting at most
// `patience` for a daemon that is just ending. The lock lives as long as any copy of the descriptor, so the
// keeper holds it.
absl::StatusOr<base::UniqueFd> LockStateRoot(const std::string& root, absl::Duration patience);

}  // namespace lazyblob::daemon
