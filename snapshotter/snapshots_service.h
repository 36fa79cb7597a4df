#pragma once

// containerd.services.snapshots.v1 over a Snapshotter: translation only.

#include <memory>

#include "snapshotter/snapshotter.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace lazyblob::snapshotter {

// Calls are worked off by threads of the service's own, not by gRPC's: a Prepare that names an image's layer
// may wait for a registry and has kLayerThreads for itself; all other calls have kCallThreads. What finds no
// thread waits in a queue, so any number of waiting layers delays no Stat. A List waits for its client
// without a thread.
constexpr int kLayerThreads = 64;
constexpr int kCallThreads = 16;

// For containerd::GrpcServer. Requests may name any `snapshotter`: a proxy plugin serves under whatever name
// it was registered. Thread-safe.
class SnapshotsService {
 public:
  // The snapshotter outlives the service.
  static std::unique_ptr<SnapshotsService> Create(Snapshotter* snapshotter);
  virtual ~SnapshotsService() = default;
  virtual grpc::Service* service() = 0;
};

}  // namespace lazyblob::snapshotter
