#pragma once

// The command `lazyblob pull`: daemon/pull.h with a real registry, containerd and daemon.

#include <string>

#include "absl/status/status.h"
#include "daemon/cli.h"

namespace lazyblob::daemon {

struct PullArguments {
  std::string root;    // absolute; of the daemon that prepares; empty: the configured one
  std::string config;  // lazyblobd's; a missing file is the defaults
  std::string reference;
  std::string platform;  // empty: the host's
  std::string containerd = "/run/containerd/containerd.sock";
  std::string name_space = "default";
  std::string snapshotter = "lazyblob";
  std::string docker_config;
  std::string progress = "auto";
  bool plain_http = false;
  bool json = false;
};

absl::Status RunPull(const PullArguments& arguments, CliIo io);

}  // namespace lazyblob::daemon
