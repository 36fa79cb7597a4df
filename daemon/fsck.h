#pragma once

// Whether a state root is what its databases and records claim: layers (contentstore/check.h), snapshots.db
// and directories of snapshots, content.db and blobs. docs/MAINTENANCE.md lists what is looked at.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "contentstore/check.h"

namespace lazyblob::daemon {

struct FsckTotals {
  contentstore::CheckTotals layers;
  uint64_t snapshots = 0;
  uint64_t blobs = 0;  // of containerd's content
};

// The root may be in use, unless `options` say that it is not. Errors: the check could not go on.
absl::Status Fsck(const std::string& root, const contentstore::CheckOptions& options,
                  contentstore::OnFinding found, FsckTotals* totals);

}  // namespace lazyblob::daemon
