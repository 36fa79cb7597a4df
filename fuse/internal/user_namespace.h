#pragma once

// User namespaces as carriers of an id mapping: mount_setattr(2) takes one to make a mount id-mapped.

#include "absl/status/statusor.h"
#include "base/file.h"
#include "fuse/mounter.h"

namespace lazyblob::fuse::internal {

// A user namespace with `mapping` (which CheckIdMapping accepts) and no process in it. Needs CAP_SETUID and
// CAP_SETGID; forks, so the caller has one thread.
absl::StatusOr<base::UniqueFd> MakeUserNamespace(const IdMapping& mapping);

}  // namespace lazyblob::fuse::internal
