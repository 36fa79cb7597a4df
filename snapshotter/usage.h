#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "snapshotter/lazy_layers.h"

namespace lazyblob::snapshotter {

// What the tree at `directory` occupies: st_blocks of 512 bytes and inodes, each inode once, the directory
// itself included, other file systems mounted in it not. The tree may change meanwhile: what vanishes is not
// counted. NotFound: no such directory. Aborted: directories moved about all the time. Thread-safe.
absl::StatusOr<Usage> ScanUsage(const std::string& directory);

}  // namespace lazyblob::snapshotter
