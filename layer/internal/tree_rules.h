#pragma once

// What a single entry of a layer may say, apart from where it lies: limits and the translations that
// unpacking would make. Pure functions.

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "layer/entry.h"
#include "layer/tree.h"

namespace lazyblob::layer::internal {

inline constexpr size_t kMaxNameBytes = 255;
inline constexpr size_t kMaxPathBytes = 4096;
inline constexpr size_t kMaxSymlinkBytes = 4095;
inline constexpr uint32_t kMaxDepth = 1024;

// The components of `path`, cleaned: no "", ".", "..". Empty for the root. InvalidArgument names `path` when
// it leaves the root, holds a NUL or is too long. The views point into `path`.
absl::StatusOr<std::vector<absl::string_view>> CleanPath(absl::string_view path);

// OK when `name` can be a name in a directory: 1–255 bytes, no '/' and no NUL, not "." and "..".
absl::Status CheckName(absl::string_view name);

// The inode that `entry` (not a hard link) describes, children and links aside. Drops what unpacking would
// not set (trusted.*, user.overlay.*, unknown prefixes, user.* on what is neither file nor directory); times
// that containerd clamps become 0. InvalidArgument names the entry.
absl::StatusOr<Inode> InodeOf(Entry entry);

// InvalidArgument unless extents ascend, do not overlap, and lie inside the file and a data area. Removes
// empty ones and joins those that touch.
absl::Status NormalizeExtents(absl::string_view path, uint64_t size, std::vector<Extent>* extents);

}  // namespace lazyblob::layer::internal
