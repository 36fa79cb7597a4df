#pragma once

// The keeper: owns the /dev/fuse descriptor, the detached FUSE mount and every mount made for lazyblobd; starts
// lazyblobd and its successors. It parses nothing but its own protocol and never touches the network. It is the
// parent process of lazyblobd and runs in the mount namespace where the mounts must appear.

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace lazyblob::fuse {

struct KeeperOptions {
  // argv of lazyblobd; "--keeper-fd=N" is appended. Started again when it dies without Shutdown, at most
  // `max_restarts` times within a minute.
  std::vector<std::string> daemon;
  int max_restarts = 20;
  // Inherited by the first daemon too; -1: none. The daemon writes one line there when it is ready or has failed.
  int ready_fd = -1;
};

// Runs until the daemon has said Shutdown and is gone, or cannot be started any more; then everything that was
// mounted is unmounted (lazily where busy). Returns the exit code for main.
int RunKeeper(const KeeperOptions& options);

}  // namespace lazyblob::fuse
