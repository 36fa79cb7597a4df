#pragma once

// A second name for a file's bytes. Thread-safe.

#include <string>

#include "absl/status/status.h"

namespace lazyblob::contentservice::internal {

// `to`, which is replaced, becomes a hard link of the regular file `from`, or a copy where that cannot be
// (another file system, too many links), synced before it gets its name. The caller syncs the directory.
// NotFound: no `from`. InvalidArgument: it is no regular file.
absl::Status LinkOrCopy(const std::string& from, const std::string& to);

}  // namespace lazyblob::contentservice::internal
