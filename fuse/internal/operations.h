#pragma once

// What a child of the keeper does for one request of lazyblobd: several mount system calls with one outcome.
// May wait for lazyblobd's answers. On error nothing stays mounted.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "fuse/mounter.h"

namespace lazyblob::fuse::internal {

struct Outcome {
  absl::Status status;
  uint64_t mount_id = 0;  // of what was mounted
  std::string result;     // what the answer carries after its status
};
std::string EncodeOutcome(const Outcome& outcome);
Outcome DecodeOutcome(absl::string_view bytes);  // damaged or empty bytes: an Internal error

// `fuse_mount`: the detached mount. `confirm`: nothing was mounted over the connection before; then one
// LOOKUP is sent first, so that success always means that lazyblobd has answered the kernel's INIT.
Outcome MountLayer(const LayerMountRequest& request, int fuse_mount, bool confirm);
// `lower_is_tree`: the only lower is a FUSE tree. Nobody but root may enter one (it is mounted without
// allow_other), but everybody may through an overlay, which reads its lowers as root: so it becomes an
// overlay over the empty target.
Outcome MountOverlay(const OverlayRequest& request, bool lower_is_tree);
Outcome MountIdMapped(const IdMappedRequest& request);
Outcome Unmount(const std::string& target, uint64_t mount_id, bool lazy);

struct HeldMount {
  std::string target;
  uint64_t mount_id = 0;
};
// The last one first, lazily where busy.
Outcome UnmountAll(const std::vector<HeldMount>& mounts);
Outcome ProbeModesHere(const std::string& state_root);

}  // namespace lazyblob::fuse::internal
