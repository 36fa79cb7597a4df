#pragma once

// How much memory the control groups of this process leave it.

#include <cstdint>
#include <string>

namespace lazyblob::daemon {

// The smallest limit of the process' groups and those above them, in bytes (memory.max, or version 1's
// memory.limit_in_bytes); UINT64_MAX: none, or none that can be read. `groups` as /proc/PID/cgroup, `mounts`:
// where the file systems of groups are.
uint64_t MemoryLimit(const std::string& groups = "/proc/self/cgroup",
                     const std::string& mounts = "/sys/fs/cgroup");

}  // namespace lazyblob::daemon
