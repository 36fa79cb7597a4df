#pragma once

// A file system that can lose power: it is stopped without writing what it still holds in memory, and mounted
// again. Root only; the calling process gets a mount namespace of its own, so that nothing stays mounted
// whatever happens. One per program at a time.

#include <string>

#include "absl/status/status.h"

namespace lazyblob::support {

class PowerDisk {
 public:
  PowerDisk() = default;
  ~PowerDisk();
  PowerDisk(const PowerDisk&) = delete;
  PowerDisk& operator=(const PowerDisk&) = delete;

  // `file_system` (ext4, xfs) in a file of `directory`, mounted at path().
  absl::Status Make(const std::string& directory, const std::string& file_system);
  const std::string& path() const { return path_; }
  // From now on every write fails and nothing reaches the disk. Once until Restart.
  absl::Status CutPower();
  // Mounts it again; nobody may have files of it open.
  absl::Status Restart();

 private:
  absl::Status Mount();
  std::string image_;
  std::string path_;
  bool cut_ = false;
};

}  // namespace lazyblob::support
