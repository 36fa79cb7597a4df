#pragma once

// The Control API of proto/control.proto: translation only.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "contentstore/content_store.h"
#include "daemon/activity.h"
#include "daemon/image_layers.h"
#include "daemon/mount_manager.h"
#include "daemon/prepared_images.h"
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
  std::vector<grpc::Service*> beside;  // other services of the socket
};

// Serves until destroyed. Thread-safe.
class ControlServer {
 public:
  // Listens on the unix socket `name` (0600) in `directory`, whatever the length of the path; replaces a
  // socket that a predecessor left.
  static absl::StatusOr<std::unique_ptr<ControlServer>> Start(const std::string& directory,
                                                              const std::string& name,
                                                              const ControlParts& parts);
  virtual ~ControlServer() = default;
};

}  // namespace lazyblob::daemon
