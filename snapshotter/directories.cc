#include "snapshotter/directories.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <tuple>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::snapshotter {
namespace {

constexpr absl::string_view kNew = "new-";

absl::Status Mkdir(const std::string& path, mode_t mode, Owner owner) {
  if (mkdir(path.c_str(), 0700) != 0) return base::ErrnoStatus(errno, absl::StrCat("make ", path));
  if ((owner.uid != geteuid() || owner.gid != getegid()) && lchown(path.c_str(), owner.uid, owner.gid) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("chown ", path));
  }
  // Also clears what a set-group-ID parent left.
  if (chmod(path.c_str(), mode) != 0) return base::ErrnoStatus(errno, absl::StrCat("chmod ", path));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Owner> OwnerOf(const std::string& directory) {
  struct statx st = {};
  if (statx(AT_FDCWD, directory.c_str(), AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT | AT_SYMLINK_NOFOLLOW,
            STATX_UID | STATX_GID | STATX_TYPE, &st) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("stat ", directory));
  }
  if (!S_ISDIR(st.stx_mode)) return absl::FailedPreconditionError(directory + ": not a directory");
  return Owner{st.stx_uid, st.stx_gid};
}

absl::StatusOr<std::unique_ptr<Directories>> Directories::Open(const std::string& root) {
  const std::string top = root + "/s";
  if (mkdir(top.c_str(), 0700) != 0 && errno != EEXIST) {
    return base::ErrnoStatus(errno, absl::StrCat("make ", top));
  }
  struct stat st;
  if (lstat(top.c_str(), &st) != 0) return base::ErrnoStatus(errno, absl::StrCat("stat ", top));
  if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid()) {
    return absl::FailedPreconditionError(absl::StrCat(top, ": not a directory of user ", geteuid(),
                                                      "; move it away, or choose another state directory"));
  }
  if (chmod(top.c_str(), 0700) != 0) return base::ErrnoStatus(errno, absl::StrCat("chmod ", top));
  RETURN_IF_ERROR(base::SyncDirectory(root));
  return std::unique_ptr<Directories>(new Directories(top));
}

std::string Directories::NewName() {
  uint64_t random[2] = {};
  // 16 bytes come whole and at once, once the kernel's pool is up.
  while (getrandom(random, sizeof(random), 0) < 0 && errno == EINTR) {
  }
  return absl::StrFormat("%s%016x%016x", kNew, random[0], random[1]);
}

absl::StatusOr<std::string> Directories::Make(bool work, Owner owner) {
  const std::string name = NewName();
  {
    absl::MutexLock lock(&mutex_);
    in_use_.insert(name);
  }
  const std::string path = Path(name);
  absl::Status status = Mkdir(path, 0700, {geteuid(), getegid()});
  if (status.ok()) status = base::FaultPoint("snapshotter/directory/made");
  if (status.ok()) status = Mkdir(path + "/fs", 0755, owner);
  if (status.ok() && work) status = Mkdir(path + "/work", 0711, {geteuid(), getegid()});
  if (status.ok()) return name;
  Finish(name);
  return status;
}

absl::Status Directories::Adopt(const std::string& name, int64_t id) {
  const std::string from = Path(name);
  const std::string to = Path(absl::StrCat(id));
  if (rename(from.c_str(), to.c_str()) != 0) {
    // Left by a transaction that was undone: its number is given again.
    if ((errno != ENOTEMPTY && errno != EEXIST && errno != ENOTDIR) ||
        rename(to.c_str(), Path(NewName()).c_str()) != 0 || rename(from.c_str(), to.c_str()) != 0) {
      return base::ErrnoStatus(errno, absl::StrCat("rename ", from, " to ", to));
    }
  }
  return base::SyncDirectory(top_);
}

void Directories::Abandon(const std::string& name, int64_t id) {
  // Where this fails, the directory is garbage under its number.
  std::ignore = rename(Path(absl::StrCat(id)).c_str(), Path(name).c_str());
}

void Directories::Finish(const std::string& name) {
  base::RemoveTree(Path(name)).IgnoreError();  // what stays is garbage for the next Cleanup
  absl::MutexLock lock(&mutex_);
  in_use_.erase(name);
}

absl::Status Directories::Remove(int64_t id) { return base::RemoveTree(Path(absl::StrCat(id))); }

absl::Status Directories::MarkGarbage(const std::set<int64_t>& ids) {
  ASSIGN_OR_RETURN(std::vector<std::string> names, base::ListDirectory(top_));
  absl::Status status;
  for (const std::string& name : names) {
    int64_t id = 0;
    const bool number = absl::SimpleAtoi(name, &id) && absl::StrCat(id) == name;
    if (absl::StartsWith(name, kNew) || (number && ids.contains(id))) continue;
    if (rename(Path(name).c_str(), Path(NewName()).c_str()) != 0 && errno != ENOENT) {
      status.Update(base::ErrnoStatus(errno, absl::StrCat("rename ", Path(name))));
    }
  }
  return status;
}

absl::Status Directories::RemoveGarbage() {
  ASSIGN_OR_RETURN(std::vector<std::string> names, base::ListDirectory(top_));
  absl::Status status;
  for (const std::string& name : names) {
    if (!absl::StartsWith(name, kNew)) continue;
    {
      absl::MutexLock lock(&mutex_);
      if (in_use_.contains(name)) continue;
    }
    status.Update(base::RemoveTree(Path(name)));
  }
  return status;
}

bool Directories::Exists(int64_t id) const {
  struct stat st;
  return lstat(Fs(id).c_str(), &st) == 0 && S_ISDIR(st.st_mode);
}

std::string Directories::Fs(int64_t id) const { return absl::StrCat(top_, "/", id, "/fs"); }
std::string Directories::Work(int64_t id) const { return absl::StrCat(top_, "/", id, "/work"); }

}  // namespace lazyblob::snapshotter
