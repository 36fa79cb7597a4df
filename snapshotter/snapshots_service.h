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
class CallbackGenericService;
class Service;
}  // namespace grpc

namespace lazyblob::snapshotter {

// Calls are worked off by threads of the server's own, not by gRPC's: a Prepare that names an image's layer
// may wait for a registry and has kLayerThreads for itself; all other calls have kCallThreads. What finds no
// thread waits in a queue, so any number of waiting layers delays no Stat. A List waits for its client
// without a thread.
constexpr int kLayerThreads = 64;
constexpr int kCallThreads = 16;
constexpr int kListBatch = 100;                // Infos in one message of List, at most
constexpr size_t kListBatchBytes = 1 << 20;    // a message is sent once it has this many bytes
constexpr int kMaxMessageBytes = 16 << 20;     // both ways, as containerd has it
constexpr size_t kMaxStatusMessage = 2 << 10;  // longer ones are cut: HTTP/2 headers are bounded

// What a client sees of an error: the one table of codes (docs/SNAPSHOTTER.md). Codes of the contract stay;
// an error of a system call, whatever its code, is Internal (ResourceExhausted when the disk is full), so
// that no ENOENT is taken for a missing snapshot, no EEXIST for a layer that is there.
absl::Status WireStatus(const absl::Status& status);

// Serves until destroyed; the destructor cancels calls that have not ended after half a second. Thread-safe.
class SnapshotServer {
 public:
  // Listens on the unix socket `address` (an absolute path, of any length), mode 0600. Its directory is made
  // 0700 when missing; FailedPrecondition when it is not the caller's own, not 0700, or a symbolic link, and
  // when the address is something else than a socket. A socket that a dead predecessor left is replaced;
  // AlreadyExists when somebody answers there. `others` gets the methods that no service has. The snapshotter
  // and the services outlive the server. Requests may name any `snapshotter`: a proxy plugin serves under
  // whatever name it was registered.
  static absl::StatusOr<std::unique_ptr<SnapshotServer>> Start(
      const std::string& address, Snapshotter* snapshotter, const std::vector<grpc::Service*>& services = {},
      grpc::CallbackGenericService* others = nullptr);
  virtual ~SnapshotServer() = default;
};

}  // namespace lazyblob::snapshotter
