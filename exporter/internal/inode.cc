#include "exporter/internal/inode.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::exporter::internal {
namespace {

constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kMaxXattrBytes = 64 << 10;  // the kernel's limits of a list and of a value

const uint8_t kZeros[64 << 10] = {};

int OpenBeneath(int root, const std::string& path, int flags) {
  open_how how{};
  how.flags = static_cast<uint64_t>(flags | O_CLOEXEC | O_NOFOLLOW);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  const char* name = path.empty() ? "." : path.c_str();
  for (;;) {
    const long fd = ::syscall(SYS_openat2, root, name, &how, sizeof(how));
    // EAGAIN: a rename or mount elsewhere raced with the check of "..", which we do not use.
    if (fd >= 0 || (errno != EINTR && errno != EAGAIN)) return static_cast<int>(fd);
  }
}

bool SameTime(const timespec& a, const timespec& b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

bool SameInode(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_mode == b.st_mode;
}

bool SameState(const struct stat& a, const struct stat& b) {
  return SameInode(a, b) && a.st_size == b.st_size && SameTime(a.st_mtim, b.st_mtim) &&
         SameTime(a.st_ctim, b.st_ctim);
}

std::string Shown(const std::string& path) { return path.empty() ? "." : base::Printable(path); }

}  // namespace

absl::Status Changed(const std::string& path) {
  return absl::AbortedError(absl::StrCat(Shown(path), " changed while it was read; nothing was made of it"));
}

absl::Status PathError(int error, const std::string& path, const char* what) {
  // All names come from listings: one that is gone, or has another type now, was there a moment ago.
  if (error == ENOENT || error == ENOTDIR || error == ELOOP || error == ESTALE) return Changed(path);
  return base::ErrnoStatus(error, absl::StrCat(what, " ", Shown(path)));
}

absl::StatusOr<InodeReader> InodeReader::Open(int root, const std::string& path) {
  base::UniqueFd fd(OpenBeneath(root, path, O_PATH));
  if (!fd.valid()) return PathError(errno, path, "open");
  struct stat st{};
  if (::fstatat(fd.get(), "", &st, AT_EMPTY_PATH) != 0) return PathError(errno, path, "stat");
  return InodeReader(root, path, std::move(fd), st);
}

absl::StatusOr<base::UniqueFd> InodeReader::Reopen(int flags) const {
  base::UniqueFd fd(OpenBeneath(root_, path_, flags | O_RDONLY | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) return PathError(errno, path_, "open");
  struct stat st{};
  if (::fstat(fd.get(), &st) != 0) return PathError(errno, path_, "stat");
  if (!SameInode(st, stat_)) return Changed(path_);
  return fd;
}

absl::StatusOr<std::string> InodeReader::ReadLink() const {
  std::string target(static_cast<size_t>(stat_.st_size) + 1, '\0');
  const ssize_t size = ::readlinkat(fd_.get(), "", target.data(), target.size());
  if (size < 0) return PathError(errno, path_, "readlink");
  if (static_cast<size_t>(size) == target.size()) return Changed(path_);
  target.resize(static_cast<size_t>(size));
  return target;
}

absl::StatusOr<Xattrs> InodeReader::ReadXattrs() const {
  // There is no flistxattr for O_PATH descriptors; their names in /proc stand for the inode itself.
  const std::string name = absl::StrCat("/proc/self/fd/", fd_.get());
  std::string names(kMaxXattrBytes, '\0');
  ssize_t size = ::listxattr(name.c_str(), names.data(), names.size());
  if (size < 0) {
    if (errno == ENOTSUP) return Xattrs();
    return base::ErrnoStatus(errno, absl::StrCat("list the extended attributes of ", Shown(path_)));
  }
  names.resize(static_cast<size_t>(size));
  Xattrs xattrs;
  for (size_t at = 0; at < names.size();) {
    const std::string key = names.c_str() + at;
    at += key.size() + 1;
    std::string value(kMaxXattrBytes, '\0');
    size = ::getxattr(name.c_str(), key.c_str(), value.data(), value.size());
    if (size < 0) {
      if (errno == ENODATA) return Changed(path_);
      return base::ErrnoStatus(
          errno, absl::StrCat("read the attribute ", base::Printable(key), " of ", Shown(path_)));
    }
    value.resize(static_cast<size_t>(size));
    xattrs.emplace_back(key, std::move(value));
  }
  std::sort(xattrs.begin(), xattrs.end());
  return xattrs;
}

absl::StatusOr<std::vector<std::string>> InodeReader::ReadNames() const {
  ASSIGN_OR_RETURN(base::UniqueFd fd, Reopen(O_DIRECTORY));
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::fdopendir(fd.get()), ::closedir);
  if (dir == nullptr) return PathError(errno, path_, "list");
  fd.Release();
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr) break;
    if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0) {
      names.emplace_back(entry->d_name);
    }
  }
  if (errno != 0) return PathError(errno, path_, "list");
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status InodeReader::ReadData(absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)> sink,
                                   const base::CancelToken* cancel) const {
  if (stat_.st_size == 0) return CheckUnchanged();
  ASSIGN_OR_RETURN(const base::UniqueFd fd, Reopen(0));
  ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  std::vector<uint8_t> buffer(std::min<size_t>(kReadBytes, static_cast<size_t>(stat_.st_size)));
  off_t at = 0;
  off_t data_end = 0;  // [at, data_end) is data
  while (at < stat_.st_size) {
    if (cancel != nullptr && cancel->cancelled()) return absl::CancelledError("the export was cancelled");
    if (at >= data_end) {
      off_t data = ::lseek(fd.get(), at, SEEK_DATA);
      if (data < 0) data = errno == ENXIO ? stat_.st_size : at;
      data = std::min<off_t>(data, stat_.st_size);
      while (at < data) {
        const size_t zeros = std::min<size_t>(sizeof(kZeros), static_cast<size_t>(data - at));
        RETURN_IF_ERROR(sink({kZeros, zeros}));
        at += static_cast<off_t>(zeros);
        if (cancel != nullptr && cancel->cancelled()) return absl::CancelledError("the export was cancelled");
      }
      if (at == stat_.st_size) break;
      data_end = ::lseek(fd.get(), at, SEEK_HOLE);
      if (data_end <= at) data_end = stat_.st_size;
    }
    const off_t wanted =
        std::min<off_t>(std::min<off_t>(data_end, stat_.st_size) - at, static_cast<off_t>(buffer.size()));
    const ssize_t got = ::pread(fd.get(), buffer.data(), static_cast<size_t>(wanted), at);
    if (got < 0) {
      if (errno == EINTR) continue;
      return PathError(errno, path_, "read");
    }
    if (got == 0) return Changed(path_);
    RETURN_IF_ERROR(sink(absl::MakeConstSpan(buffer).first(static_cast<size_t>(got))));
    at += got;
  }
  return CheckUnchanged();
}

absl::Status InodeReader::CheckUnchanged() const {
  struct stat st{};
  if (::fstatat(fd_.get(), "", &st, AT_EMPTY_PATH) != 0) return PathError(errno, path_, "stat");
  return SameState(st, stat_) ? absl::OkStatus() : Changed(path_);
}

}  // namespace lazyblob::exporter::internal
