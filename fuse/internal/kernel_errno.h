#pragma once

// The one place where a status becomes the errno of a FUSE answer.

#include "absl/status/status.h"

namespace lazyblob::fuse::internal {

// 0 for OK. Only what a read-only file system may say; everything else is EIO. Cancelled is EINTR: the
// requester has been killed and nobody sees it.
int KernelErrno(const absl::Status& status);

}  // namespace lazyblob::fuse::internal
