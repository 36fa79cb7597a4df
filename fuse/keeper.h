#pragma once

// The keeper: owns the /dev/fuse descriptor, the detached FUSE mount and every mount made for lazyblobd;
// starts lazyblobd and its successors. It parses nothing but its own protocol and never touches the network.
// It is the parent process of lazyblobd and runs in the mount namespace where the mounts must appear. It must
// have its process to itself: one thread, all children its own.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace lazyblob::fuse {

struct KeeperOptions {
  // argv of lazyblobd; "--keeper-fd=N" is appended. Started again when it dies without Shutdown.
  std::vector<std::string> daemon;
  // While no daemon has been ready for so long, requests end with EIO instead of waiting.
  absl::Duration error_after = absl::Minutes(1);
  // Inherited by the first daemon too, which is told with "--ready-fd=N"; -1: none. The daemon writes one
  // line there when it is ready or has failed; the keeper does ("error: …") when it fails before there is a
  // daemon.
  int ready_fd = -1;
  // For the keeper's own successor in the same process: "NAME:FD,…", what it goes on with.
  std::string held;
  // Only say, by exit code 99, that one could go on with it.
  bool check_state = false;
};

// "[--error-after=SECONDS] [--ready-fd=N] [--held=…] [--check-state] -- DAEMON [ARGUMENT…]"; `words` without
// the program's name.
absl::StatusOr<KeeperOptions> ParseKeeperArguments(const std::vector<std::string>& words);

// Whether the service manager has given this process what a keeper that died has left with it, and it can be
// used: then RunKeeper goes on with it, also that of a program of the same release that this process
// executes. Else RunKeeper starts afresh.
bool KeeperGoesOn();
// The daemon's arguments (without the program) as that keeper had them; empty when there is none, or when it
// was of a release that did not leave them.
std::vector<std::string> KeptDaemonArguments();

// Runs until the daemon has said Shutdown and is gone, or cannot be started while nothing is mounted; then
// everything that was mounted is unmounted (lazily where busy). Returns the exit code for main: the daemon's
// own if it ended by itself. With $NOTIFY_SOCKET the service manager is told, and keeps what a keeper that is
// started after a crash goes on with ($LISTEN_FDS).
int RunKeeper(const KeeperOptions& options);

}  // namespace lazyblob::fuse
