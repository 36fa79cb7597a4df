#include "daemon/maintenance_service.h"

#include <grpcpp/grpcpp.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "proto/maintenance.grpc.pb.h"

namespace lazyblob::daemon {
namespace {

namespace api = ::lazyblob::maintenance::v1;

class Service final : public MaintenanceService, public api::Maintenance::Service {
 public:
  explicit Service(MaintenanceParts parts) : parts_(std::move(parts)) {}
  grpc::Service* service() override { return this; }

  grpc::Status Collect(grpc::ServerContext*, const api::CollectRequest* request,
                       api::CollectResponse* response) override {
    if (!parts_.activity->Begin()) {
      return {grpc::StatusCode::ABORTED, "the daemon is ending; try again"};
    }
    absl::Cleanup end = [this] { parts_.activity->End(parts_.mounts()); };
    absl::MutexLock lock(&turn_);
    const absl::StatusOr<std::vector<Garbage>> garbage = CollectGarbage(parts_.garbage, request->dry_run());
    if (!garbage.ok()) {
      return grpc::Status(static_cast<grpc::StatusCode>(garbage.status().code()),
                          std::string(garbage.status().message()));
    }
    for (const Garbage& one : *garbage) {
      api::Garbage* out = response->add_garbage();
      out->set_what(one.what);
      out->set_bytes(one.bytes);
    }
    return grpc::Status::OK;
  }

 private:
  const MaintenanceParts parts_;
  absl::Mutex turn_;  // one collection at a time
};

}  // namespace

std::unique_ptr<MaintenanceService> MaintenanceService::Create(MaintenanceParts parts) {
  return std::make_unique<Service>(std::move(parts));
}

}  // namespace lazyblob::daemon
