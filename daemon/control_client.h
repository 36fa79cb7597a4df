#pragma once

// The command line's side of the Control API: finds the daemon of a state root, or starts one for the
// occasion.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/cancel.h"
#include "proto/blobs.pb.h"
#include "proto/control.pb.h"
#include "proto/exporter.pb.h"
#include "proto/maintenance.pb.h"

namespace lazyblob::daemon {

// One thread at a time.
class ControlClient {
 public:
  virtual ~ControlClient() = default;

  // Connects to the daemon that serves `root`; Unavailable when there is none.
  static absl::StatusOr<std::unique_ptr<ControlClient>> Connect(const std::string& root);
  // Connects, or starts `lazyblobd --standalone --root root` (the program beside this one) and connects to
  // that.
  static absl::StatusOr<std::unique_ptr<ControlClient>> ConnectOrStart(const std::string& root);

  using OnProgress = absl::FunctionRef<void(const control::v1::MountEvent::LayerProgress&)>;
  virtual absl::StatusOr<control::v1::MountStatus> Mount(const control::v1::MountRequest& request,
                                                         OnProgress progress) = 0;
  virtual absl::StatusOr<control::v1::MountStatus> Index(const control::v1::IndexRequest& request,
                                                         OnProgress progress) = 0;
  // Cancelled when `cancel` (may be null) is.
  virtual absl::StatusOr<control::v1::MountStatus> Prepare(const control::v1::PrepareRequest& request,
                                                           std::shared_ptr<base::CancelToken> cancel,
                                                           OnProgress progress) = 0;
  // Runs an export; its events come in order, the report as the last one. When `cancel` is cancelled the
  // export is, and its events are read to the end: one that was complete by then is OK. The missing providers
  // of the error are those of contentstore::GetMissingProviders.
  using OnExportEvent = absl::FunctionRef<void(const v1::ExportEvent&)>;
  virtual absl::Status Export(const v1::ExportRequest& request, std::shared_ptr<base::CancelToken> cancel,
                              OnExportEvent on_event) = 0;
  virtual absl::StatusOr<std::vector<v1::Lease>> Leases() = 0;
  virtual absl::Status ReleaseLease(const std::string& name) = 0;
  // What was removed, or, in a dry run, would be.
  virtual absl::StatusOr<std::vector<maintenance::v1::Garbage>> CollectGarbage(bool dry_run) = 0;
  // Asks for `program` to take over; it has not yet when this returns.
  virtual absl::Status Upgrade(const std::string& program) = 0;
  virtual absl::Status Unmount(const std::string& directory) = 0;
  // With `probe` also how layers can be mounted on this machine.
  virtual absl::StatusOr<control::v1::StatusResponse> Status(const std::string& target,
                                                             bool probe = false) = 0;
};

}  // namespace lazyblob::daemon
