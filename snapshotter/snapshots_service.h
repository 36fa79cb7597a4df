#pragma once

// containerd.services.snapshots.v1 over a Snapshotter: translation only. Its server may carry further
// services of the same clients.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "snapshotter/snapshotter.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace lazyblob::snapshotter {

// The service; register it with a grpc::ServerBuilder. Thread-safe. `snapshotter` outlives it. The field
// `snapshotter` of requests is not looked at: a proxy plugin serves under any name.
std::unique_ptr<grpc::Service> NewSnapshotsService(Snapshotter* snapshotter);

// Serves until destroyed; the destructor cancels calls that have not ended after two seconds. Thread-safe.
class SnapshotServer {
 public:
  // Listens on the unix socket `address` (a path, of any length) with mode 0600. Its directory is made 0700
  // when missing; FailedPrecondition when it is not owned by the caller, is not 0700, or is a symbolic link.
  // A socket that a dead predecessor left is replaced; AlreadyExists when somebody answers there. The
  // snapshotter and the services outlive the server.
  static absl::StatusOr<std::unique_ptr<SnapshotServer>> Start(
      const std::string& address, Snapshotter* snapshotter, const std::vector<grpc::Service*>& services = {});
  virtual ~SnapshotServer() = default;
};

}  // namespace lazyblob::snapshotter
