#include "contentstore/internal/store_root.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/status.h"
#include "contentstore/internal/layer_record.h"

namespace lazyblob::contentstore {
namespace {

absl::StatusOr<base::UniqueFd> LockRoot(const std::string& root, absl::Duration patience) {
  ASSIGN_OR_RETURN(base::UniqueFd lock, base::OpenFile(root + "/store.lock", O_RDWR | O_CREAT));
  const absl::Duration give_up = base::SystemClock().Monotonic() + patience;
  while (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return base::ErrnoStatus(errno, absl::StrCat("lock ", root));
    if (base::SystemClock().Monotonic() >= give_up) {
      return absl::FailedPreconditionError(absl::StrCat(
          base::Printable(root), " is in use by another process; stop it or choose another --root"));
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  return lock;
}

// The directory is ours alone, whatever the umask or whoever made it.
absl::Status CheckPrivate(const std::string& directory) {
  struct stat st{};
  if (lstat(directory.c_str(), &st) != 0) return base::ErrnoStatus(errno, absl::StrCat("stat ", directory));
  if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid()) {
    return absl::FailedPreconditionError(absl::StrCat(
        base::Printable(directory), " is not a directory of ours; remove it or choose another --root"));
  }
  if ((st.st_mode & 077) != 0 && chmod(directory.c_str(), 0700) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("chmod ", directory));
  }
  return absl::OkStatus();
}

std::string NextId(const std::string& root) { return root + "/next-id"; }

std::string CleanMark(const std::string& root) { return root + "/clean"; }

}  // namespace

absl::StatusOr<base::UniqueFd> TakeRoot(const std::string& root, absl::Duration patience) {
  RETURN_IF_ERROR(base::MakeDirectories(root + "/layers"));
  RETURN_IF_ERROR(CheckPrivate(root));
  RETURN_IF_ERROR(CheckPrivate(root + "/layers"));
  return LockRoot(root, patience);
}

std::string LayerDirectoryName(const base::Digest& digest) {
  return absl::StrCat(digest.algorithm() == base::DigestAlgorithm::kSha256 ? "sha256-" : "sha512-",
                      digest.hex());
}

uint32_t ReadNextId(const std::string& root) {
  const absl::StatusOr<std::string> text = base::ReadFile(NextId(root), 64);
  uint32_t id = 0;
  const bool valid = text.ok() && absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &id);
  return valid && id >= 1 && id <= kMaxLayerId ? id : 1;
}

absl::Status WriteNextId(const std::string& root, uint32_t id) {
  return base::WriteFileAtomically(NextId(root), absl::StrCat(id, "\n"));
}

absl::StatusOr<absl::Time> TakeCleanMark(const std::string& root) {
  const std::string mark = CleanMark(root);
  struct stat st{};
  if (lstat(mark.c_str(), &st) != 0 || unlink(mark.c_str()) != 0) {
    if (errno == ENOENT) return absl::InfinitePast();
    return base::ErrnoStatus(errno, absl::StrCat("remove ", mark));
  }
  RETURN_IF_ERROR(base::SyncDirectory(root));
  return absl::TimeFromTimespec(st.st_mtim);
}

bool StillClean(const std::string& layer_directory, absl::Time* mark) {
  struct stat st{};
  const bool untouched =
      stat((layer_directory + "/presence").c_str(), &st) == 0 && absl::TimeFromTimespec(st.st_mtim) <= *mark;
  if (!untouched) *mark = absl::InfinitePast();
  return untouched;
}

void PutCleanMark(const std::string& root) {
  // Without it more is compared than need be.
  base::WriteFileAtomically(CleanMark(root), "").IgnoreError();
}

std::function<absl::StatusOr<uint64_t>()> FreeBytesOf(const std::string& root) {
  return [root]() -> absl::StatusOr<uint64_t> {
    struct statvfs disk{};
    if (statvfs(root.c_str(), &disk) != 0) return base::ErrnoStatus(errno, absl::StrCat("statvfs ", root));
    return uint64_t{disk.f_bavail} * disk.f_frsize;
  };
}

}  // namespace lazyblob::contentstore
