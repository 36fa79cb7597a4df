#include "daemon/state_root.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/status.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

namespace lazyblob::daemon {
namespace {

absl::Status CheckRoot(const std::string& root) {
  struct stat st;
  if (lstat(root.c_str(), &st) != 0) return base::ErrnoStatus(errno, absl::StrCat("state root ", root));
  if (!S_ISDIR(st.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat("state root ", root, ": not a directory"));
  }
  if (st.st_uid != geteuid()) {
    return absl::FailedPreconditionError(absl::StrCat("state root ", root, ": belongs to another user"));
  }
  if ((st.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("state root ", root, ": others have access to it; chmod it to 0700"));
  }
  struct statfs fs;
  if (statfs(root.c_str(), &fs) != 0) return base::ErrnoStatus(errno, absl::StrCat("state root ", root));
  auto magic = static_cast<unsigned long>(fs.f_type);
  if (magic != EXT4_SUPER_MAGIC && magic != XFS_SUPER_MAGIC && magic != BTRFS_SUPER_MAGIC) {
    return absl::FailedPreconditionError(
        absl::StrCat("state root ", root, ": must be on ext4, xfs or btrfs; name another with --root"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<base::UniqueFd> LockStateRoot(const std::string& root, absl::Duration patience) {
  RETURN_IF_ERROR(base::MakeDirectories(root));
  RETURN_IF_ERROR(CheckRoot(root));
  ASSIGN_OR_RETURN(base::UniqueFd lock, base::OpenFile(root + "/lock", O_RDWR | O_CREAT | O_NOFOLLOW, 0600));
  const absl::Duration give_up = base::SystemClock().Monotonic() + patience;
  while (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return base::ErrnoStatus(errno, absl::StrCat("lock ", root));
    if (base::SystemClock().Monotonic() >= give_up) {
      return absl::FailedPreconditionError(absl::StrCat("state root ", root, ": another daemon uses it"));
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
  return lock;
}

}  // namespace lazyblob::daemon
