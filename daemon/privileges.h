#pragma once

// What the programs keep of root's privileges. Children (credential helpers, hooks, the keeper's daemon)
// inherit all of it and cannot regain anything.

#include <cstdint>

#include "absl/status/status.h"

namespace lazyblob::daemon {

enum class Program {
  kKeeper,  // mounts; parent of the daemon, so it denies nothing that the daemon needs
  kDaemon,  // network and parsers: everything that mounts or makes namespaces is denied
};

// One bit per capability, as in "CapEff" of /proc/PID/status.
uint64_t KeptCapabilities(Program program);

// Drops all other capabilities from the permitted, effective, inheritable, ambient and, as far as allowed,
// the bounding set; then no_new_privs, by which no program that is executed gains any; then the system calls
// of docs/SECURITY.md answer EPERM, or end the daemon. To be called while the process has one thread:
// capabilities belong to threads. Everything is tried whatever fails; the status is the first failure's.
// Calling it twice is harmless.
absl::Status DropPrivileges(Program program);

}  // namespace lazyblob::daemon
