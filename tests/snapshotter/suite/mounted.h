#pragma once

// What a client does with the mounts a snapshotter answers: mount(2) with the options as containerd reads
// them. Needs root. For tests only.

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "snapshotter/snapshotter.h"

namespace lazyblob::snapshotter::suite {

// Puts the process into a mount namespace of its own, so that nothing it mounts is left behind. Before any
// thread is started.
absl::Status OwnMountNamespace();

class Mounted {
 public:
  // Mounts at `target`, which is made when missing.
  static absl::StatusOr<Mounted> At(const std::string& target, const std::vector<MountSpec>& mounts);
  ~Mounted();
  Mounted(Mounted&& other) noexcept : target_(std::move(other.target_)) { other.target_.clear(); }
  Mounted& operator=(Mounted&&) = delete;

  const std::string& path() const { return target_; }
  absl::Status Unmount();

 private:
  explicit Mounted(std::string target) : target_(std::move(target)) {}
  std::string target_;  // empty: unmounted
};

}  // namespace lazyblob::snapshotter::suite
