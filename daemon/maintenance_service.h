#pragma once

// The Maintenance API of proto/maintenance.proto: translation only.

#include <cstddef>
#include <functional>
#include <memory>

#include "daemon/activity.h"
#include "daemon/garbage.h"

namespace grpc {
class Service;
}

namespace lazyblob::daemon {

// All outlive the service.
struct MaintenanceParts {
  GarbageParts garbage;
  Activity* activity = nullptr;
  std::function<size_t()> mounts;  // how many images are mounted: what keeps a standalone daemon
};

// Thread-safe. Outlives the servers that it is part of.
class MaintenanceService {
 public:
  static std::unique_ptr<MaintenanceService> Create(MaintenanceParts parts);
  virtual ~MaintenanceService() = default;
  virtual grpc::Service* service() = 0;
};

}  // namespace lazyblob::daemon
