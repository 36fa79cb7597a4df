#pragma once

// What the first process of a daemon does about the machine, with the state root locked and before the keeper
// begins: then nobody holds any mount of this root.

#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "daemon/doctor.h"

namespace lazyblob::daemon {

// Mount points that a keeper which was killed has left, those on top first: layers below `root`, overlays of
// them, and of `directories` those that show a layer. `mountinfo` as /proc/PID/mountinfo.
std::vector<std::string> LeftMounts(absl::string_view mountinfo, absl::string_view root,
                                    const std::set<std::string>& directories);

// Detaches those; returns how many.
absl::StatusOr<size_t> DetachLeftMounts(const std::string& root);

// FailedPrecondition when what is mounted below `root` would be seen by nobody but lazyblobd: by containerd
// that listens on `containerd_address`, or, while none does, by the machine (`machine`: of process 1).
absl::Status CheckMountsAreSeen(const absl::StatusOr<MountNamespace>& own,
                                const absl::StatusOr<MountNamespace>& containerd,
                                const absl::StatusOr<MountNamespace>& machine, const std::string& root);
absl::Status CheckMountsAreSeen(const std::string& root, const std::string& containerd_address);

}  // namespace lazyblob::daemon
