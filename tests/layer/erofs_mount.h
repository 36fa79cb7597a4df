#pragma once

// Mounts an image from a file, with a data file as device 1, as the keeper does (fsopen, fsconfig, fsmount,
// move_mount), and overlays of such mounts. For tests that run as root; unmounted by the destructor.

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace lazyblob::layer {

// Whether this kernel is said to mount EROFS from files (Linux 6.12.2 and later) and we are root.
bool MayMountErofs(std::string* why_not);

class TestMount {
 public:
  explicit TestMount(std::string directory) : directory_(std::move(directory)) {}
  ~TestMount();
  TestMount(const TestMount&) = delete;
  TestMount& operator=(const TestMount&) = delete;

  absl::Status MountErofs(const std::string& image, const std::string& data);
  absl::Status MountOverlay(const std::vector<std::string>& lowers_topmost_first);
  const std::string& path() const { return directory_; }

 private:
  absl::Status Attach(int context);
  const std::string directory_;
  bool mounted_ = false;
};

}  // namespace lazyblob::layer
