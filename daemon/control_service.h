#pragma once

// The Control API of proto/control.proto: translation only.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "containerd/grpc_server.h"
#include "contentstore/content_store.h"
#include "daemon/activity.h"
#include "daemon/background_fill.h"
#include "daemon/image_layers.h"
#include "daemon/mount_manager.h"
#include "daemon/prepared_images.h"
#include "fuse/server.h"
#include "snapshotter/snapshotter.h"

namespace grpc {
class Service;
}

namespace lazyblob::daemon {

// What the API is over; all outlive the server.
struct ControlParts {
  MountManager* mounts = nullptr;
  PreparedImages* prepared = nullptr;
  ImageLayers* layers = nullptr;
  contentstore::ContentStore* store = nullptr;
  snapshotter::Snapshotter* snapshotter = nullptr;  // null: a standalone daemon
  Activity* activity = nullptr;
  const BackgroundFill* fill = nullptr;  // null: there is none
  // Reads of the kernel's that wait for bytes now.
  std::function<std::vector<fuse::FuseServer::LayerReads>()> waiting_reads;
  std::vector<grpc::Service*> beside;  // other services of the socket
  uint64_t generation = 0;             // how many daemons the keeper has started, this one included
  // Has the keeper start `program` (absolute; empty: the same path as now) in place of this daemon.
  std::function<absl::Status(const std::string& program)> replace;
};

// Serves until destroyed. Thread-safe.
class ControlServer {
 public:
  // Listens at `address`, as containerd::GrpcServer does.
  static absl::StatusOr<std::unique_ptr<ControlServer>> Start(const std::string& address,
                                                              const ControlParts& parts,
                                                              const containerd::SocketHolder& holder = {});
  virtual void LeaveSocket() = 0;  // as of GrpcServer
  virtual ~ControlServer() = default;
};

}  // namespace lazyblob::daemon
