#pragma once

// `lazyblob doctor`: one finding per check, with the fix. Each check is a function of what it looks at, so
// that tests give it other machines. None changes anything.

#include <sys/types.h>

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "daemon/config.h"
#include "daemon/containerd_client.h"
#include "proto/control.pb.h"

namespace lazyblob::daemon {

enum class Severity { kOk, kWarning, kFail };

struct Finding {
  Severity severity = Severity::kOk;
  std::string check;
  std::string text;  // one line: what is so
  std::string fix;   // one line; empty if kOk
};
using Findings = std::vector<Finding>;

Findings CheckUser(uid_t user);
Findings CheckConfig(const absl::StatusOr<Config>& config);
// `release` as uname -r; `filesystems` as /proc/filesystems; `modules`: what modules.dep and modules.builtin
// of this kernel say, empty if unknown.
Findings CheckKernel(absl::string_view release, absl::string_view filesystems, absl::string_view modules);
// fuse.read_deadline against `limit`, fuse::KernelRequestLimit; nothing where there is no limit.
Findings CheckRequestLimit(uint64_t limit, absl::Duration read_deadline);
// Type of file system, owner and mode of the state root, without making it.
Findings CheckStateRoot(const std::string& root, uid_t owner);
// What the daemon that serves the state root says of itself; Unavailable: there is none.
Findings CheckDaemon(const absl::StatusOr<control::v1::StatusResponse>& status, const std::string& root);
// The socket of the snapshotter: there, 0600, in a directory that is closed to others.
Findings CheckSocket(const std::string& address, uid_t owner);

struct MountNamespace {
  uint64_t id = 0;        // inode of /proc/PID/ns/mnt
  std::string mountinfo;  // /proc/PID/mountinfo
};
// Whether what the daemon mounts below `root` appears where containerd mounts: the same namespace, or one
// that receives the mounts of the other.
Findings CheckPropagation(const absl::StatusOr<MountNamespace>& daemon,
                          const absl::StatusOr<MountNamespace>& containerd, const std::string& root);

struct ContainerdFacts {
  std::string version;
  std::vector<ContainerdPlugin> plugins;
  std::string config;  // text of its configuration file; empty: not readable
};
// Version, registration under `snapshotter`, address, capabilities, and what CRI and Transfer need.
Findings CheckContainerd(const absl::StatusOr<ContainerdFacts>& facts, const std::string& snapshotter,
                         const std::string& address);

// Whether containerd's content store is ours if and only if the configuration says so (`enabled`), alone, and
// shared by its namespaces. Nothing where neither knows of the other.
Findings CheckContentStore(const absl::StatusOr<ContainerdFacts>& facts, bool enabled,
                           const std::string& address);

// The mount namespace of a process, given as its directory in /proc.
absl::StatusOr<MountNamespace> NamespaceOf(const std::string& process);
// Of the process that listens on a unix socket.
absl::StatusOr<MountNamespace> NamespaceBehind(const std::string& socket);

bool HasFailure(const Findings& findings);
// A line each: "ok       kernel       6.18: …", "FAIL     … FIX: …".
void PrintFindings(const Findings& findings, std::ostream& out);
// {"healthy": bool, "checks": [{"check", "result": "ok"|"warning"|"FAIL", "text", "fix"}]}
nlohmann::json ToJson(const Findings& findings);

}  // namespace lazyblob::daemon
