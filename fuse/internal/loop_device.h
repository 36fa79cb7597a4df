#pragma once

// Read-only loop devices that go away with their last user.

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "base/file.h"

namespace lazyblob::fuse::internal {

struct LoopDevice {
  base::UniqueFd fd;  // while open, or mounted, the device lives
  std::string path;   // "/dev/loop3"
  std::string bdi;    // "7:3"
};

// `backing` must be open for reading (not O_PATH). 512-byte sectors, so that any data area fits. `direct`:
// bypass the page cache of the backing file where it can (FUSE blobs), else it would hold every byte twice.
absl::StatusOr<LoopDevice> AttachLoop(int backing, bool direct);

}  // namespace lazyblob::fuse::internal
