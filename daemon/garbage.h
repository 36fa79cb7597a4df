#pragma once

// What of a state root nothing needs: layers that no mount, lease, snapshot or held content names, and
// directories of snapshots that are gone.

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/digest.h"
#include "contentservice/content.h"
#include "contentstore/content_store.h"
#include "snapshotter/snapshotter.h"

namespace lazyblob::daemon {

// All outlive the call.
struct GarbageParts {
  std::string root;                             // state root
  contentstore::ContentStore* store = nullptr;  // below it
  // Null where this process does not have them open: then what their databases say counts, and directories
  // of snapshots are left alone.
  snapshotter::Snapshotter* snapshotter = nullptr;
  contentservice::LazyBlobs* content = nullptr;
  std::function<std::set<base::Digest>()> in_use;  // layers that are mounted, or held by leases
};

struct Garbage {
  std::string what;    // "layer sha256:…" or a path
  uint64_t bytes = 0;  // on the disk
};

// Removes it, unless `dry_run`; what somebody has begun to use meanwhile stays, and is not told. In a dry run
// layers count that only a running call holds. An error: not all was looked at, or removed.
absl::StatusOr<std::vector<Garbage>> CollectGarbage(const GarbageParts& parts, bool dry_run);

}  // namespace lazyblob::daemon
