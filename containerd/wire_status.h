#pragma once

// What a client of containerd's services sees of an error.

#include <cstddef>

#include "absl/status/status.h"

namespace lazyblob::containerd {

constexpr size_t kMaxStatusMessage = 2 << 10;  // longer ones are cut: HTTP/2 headers are bounded

// The one table of codes (docs/SNAPSHOTTER.md, docs/CONTENT_SERVICE.md). Codes of the contracts stay; an
// error of a system call, whatever its code, is Internal (ResourceExhausted when the disk is full), so that
// no ENOENT is taken for a missing snapshot or blob, no EEXIST for one that is there.
absl::Status WireStatus(const absl::Status& status);

}  // namespace lazyblob::containerd
