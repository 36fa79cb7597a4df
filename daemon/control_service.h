#pragma once

// The Control API of proto/control.proto over MountManager: translation only.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "contentstore/content_store.h"
#include "daemon/activity.h"
#include "daemon/mount_manager.h"

namespace lazyblob::daemon {

// Serves until destroyed. Thread-safe.
class ControlServer {
 public:
  // Listens on the unix socket `name` (0600) in `directory`, whatever the length of the path; replaces a
  // socket that a predecessor left. The others outlive the server.
  static absl::StatusOr<std::unique_ptr<ControlServer>> Start(const std::string& directory,
                                                              const std::string& name, MountManager* mounts,
                                                              contentstore::ContentStore* store,
                                                              Activity* activity);
  virtual ~ControlServer() = default;
};

}  // namespace lazyblob::daemon
