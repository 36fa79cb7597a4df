#pragma once

// lazyblobd as a function: the parts, the order in which they start, and the order in which they stop.

#include <string>

#include "absl/status/status.h"
#include "daemon/config.h"

namespace lazyblob::daemon {

struct DaemonOptions {
  Config config;
  int keeper_fd = -1;       // socket to the keeper, which started this process
  bool standalone = false;  // end with the last mount; containerd is not served
  int ready_fd = -1;        // gets "ready\n" or "error: …\n"; -1: nobody waits
};

// Runs until told to stop: SIGTERM, SIGINT, or idle when standalone: everything is unmounted, lazily where
// busy. SIGHUP: leaves everything mounted to a successor, which the keeper starts. Returns why it could not
// run, or OK.
absl::Status RunDaemon(const DaemonOptions& options);

}  // namespace lazyblob::daemon
