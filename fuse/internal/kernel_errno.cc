#include "fuse/internal/kernel_errno.h"

#include <cerrno>

#include "base/status.h"

namespace lazyblob::fuse::internal {

int KernelErrno(const absl::Status& status) {
  if (status.ok()) return 0;
  if (absl::IsCancelled(status)) return EINTR;
  const int error = base::ErrnoOf(status);
  switch (error) {
    case ENOENT:
    case ESTALE:
    case ENOTDIR:
    case EISDIR:
    case EROFS:
    case ENODATA:
    case ERANGE:
    case EINVAL:
    case ENAMETOOLONG:
    case ENOMEM:
      return error;
    default:
      return EIO;
  }
}

}  // namespace lazyblob::fuse::internal
