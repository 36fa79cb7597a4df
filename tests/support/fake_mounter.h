#pragma once

// fuse::Mounter that mounts nothing and remembers everything. A mount may be held at a gate or made to fail.

#include <mutex>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "fuse/mounter.h"

namespace lazyblob::support {

// Thread-safe, except that tests set the knobs while nobody calls.
class FakeMounter final : public fuse::Mounter {
 public:
  absl::Status MountLayer(const fuse::LayerMountRequest& request) override {
    if (gate != nullptr) gate->WaitForNotification();
    std::lock_guard<std::mutex> lock(mutex);
    log.push_back("mount " + request.target);
    layers.push_back(request);
    return fail;
  }
  absl::Status MountOverlay(const fuse::OverlayRequest& request) override {
    std::lock_guard<std::mutex> lock(mutex);
    overlays.push_back(request);
    return fail_overlay;
  }
  absl::Status MountIdMapped(const fuse::IdMappedRequest& request) override {
    std::lock_guard<std::mutex> lock(mutex);
    log.push_back("map " + request.source + " at " + request.target);
    mapped.push_back(request);
    return fail_mapped;
  }
  absl::Status Unmount(const std::string& target, bool lazy) override {
    std::lock_guard<std::mutex> lock(mutex);
    log.push_back((lazy ? "lazy " : "") + std::string("umount ") + target);
    return busy && !lazy ? absl::FailedPreconditionError("busy") : absl::OkStatus();
  }
  absl::StatusOr<fuse::ProbeResult> Probe(const std::string&) override { return probe; }

  std::mutex mutex;
  std::vector<std::string> log;  // "mount PATH", "umount PATH", "lazy umount PATH", in order
  std::vector<fuse::LayerMountRequest> layers;
  std::vector<fuse::OverlayRequest> overlays;
  std::vector<fuse::IdMappedRequest> mapped;
  absl::Notification* gate = nullptr;
  absl::Status fail;
  absl::Status fail_overlay;
  absl::Status fail_mapped;
  bool busy = false;
  fuse::ProbeResult probe{fuse::Mode::kErofs, true, "made up"};
};

}  // namespace lazyblob::support
