#pragma once

// The command `lazyblob doctor`: daemon/doctor.h on this machine.

#include <string>

#include "absl/status/status.h"
#include "daemon/cli.h"

namespace lazyblob::daemon {

struct DoctorArguments {
  std::string root;  // absolute; empty: the configured one
  std::string config;
  std::string containerd = "/run/containerd/containerd.sock";
  std::string containerd_config = "/etc/containerd/config.toml";
  std::string snapshotter = "lazyblob";
  bool json = false;
};

// FailedPrecondition when a check failed.
absl::Status RunDoctor(const DoctorArguments& arguments, CliIo io);

}  // namespace lazyblob::daemon
