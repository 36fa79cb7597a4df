#pragma once

// The keeper: owns the /dev/fuse descriptor, the detached FUSE mount and every mount made for lazyblobd;
// starts lazyblobd and its successors. It parses nothing but its own protocol and never touches the network.
// It is the parent process of lazyblobd and runs in the mount namespace where the mounts must appear. It must
// have its process to itself: one thread, all children its own.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lazyblob::fuse {

struct KeeperOptions {
  // argv of lazyblobd; "--keeper-fd=N" is appended. Started again when it dies without Shutdown, at most
  // `max_restarts` times within a minute.
  std::vector<std::string> daemon;
  int max_restarts = 20;
  // Inherited by the first daemon too, which is told with "--ready-fd=N"; -1: none. The daemon writes one
  // line there when it is ready or has failed; the keeper does ("error: …") when it fails before there is a
  // daemon.
  int ready_fd = -1;
};

// "[--max-restarts=N] [--ready-fd=N] -- DAEMON [ARGUMENT…]"; `words` without the program's name.
absl::StatusOr<KeeperOptions> ParseKeeperArguments(const std::vector<std::string>& words);

// Runs until the daemon has said Shutdown and is gone, or cannot be started any more; then everything that
// was mounted is unmounted (lazily where busy). Returns the exit code for main: the daemon's own if it ended
// by itself.
int RunKeeper(const KeeperOptions& options);

}  // namespace lazyblob::fuse
