#include "containerd/internal/socket_place.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"

namespace lazyblob::containerd::internal {
namespace {

absl::Status Refuse(absl::string_view path, absl::string_view why) {
  return absl::FailedPreconditionError(absl::StrCat(base::Printable(path), ": ", why));
}

absl::Status CheckDirectory(int fd, const std::string& path) {
  struct stat status{};
  if (fstat(fd, &status) != 0) return base::ErrnoStatus(errno, path);
  if (status.st_uid != geteuid()) {
    return Refuse(path, absl::StrCat("owned by user ", status.st_uid, ", not by ", geteuid(),
                                     "; who owns it could put another socket there"));
  }
  if ((status.st_mode & 07777 & ~static_cast<mode_t>(S_ISGID)) != 0700) {
    return Refuse(path, absl::StrFormat("has mode %04o; others must not reach the socket: chmod 0700 it",
                                        status.st_mode & 07777));
  }
  return absl::OkStatus();
}

// Whether somebody listens on the socket at `path`.
bool SomebodyAnswers(const std::string& path) {
  base::UniqueFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  // EAGAIN: its queue of connections is full.
  return connect(probe.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 || errno == EAGAIN;
}

}  // namespace

absl::StatusOr<SocketPlace> SocketPlace::Open(const std::string& address) {
  const size_t slash = address.rfind('/');
  if (address.empty() || address[0] != '/' || slash + 1 == address.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("address \"", base::Printable(address), "\" is not the absolute path of a socket"));
  }
  SocketPlace place;
  place.address_ = address;
  place.name_ = address.substr(slash + 1);
  const std::string directory = slash == 0 ? "/" : address.substr(0, slash);
  const size_t above = directory.rfind('/');
  if (above != 0) RETURN_IF_ERROR(base::MakeDirectories(directory.substr(0, above)));
  const bool made = mkdir(directory.c_str(), 0700) == 0;
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0 && (errno == ELOOP || errno == ENOTDIR)) {
    return Refuse(directory, "not a directory, or a symbolic link; give its real path");
  }
  if (fd < 0) return base::ErrnoStatus(errno, absl::StrCat("open ", directory));
  place.directory_ = base::UniqueFd(fd);
  if (made && fchmod(fd, 0700) != 0) {  // the umask may have taken more away
    return base::ErrnoStatus(errno, absl::StrCat("chmod ", directory));
  }
  RETURN_IF_ERROR(CheckDirectory(fd, directory));
  return place;
}

std::string SocketPlace::ShortPath() const {
  return absl::StrCat("/proc/self/fd/", directory_.get(), "/", name_);
}

absl::StatusOr<std::string> SocketPlace::Identity() const {
  struct stat status{};
  if (fstatat(directory_.get(), name_.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return std::string();
    return base::ErrnoStatus(errno, address_);
  }
  if (!S_ISSOCK(status.st_mode)) return Refuse(address_, "exists and is not a socket; remove it");
  // A socket that is kept keeps its inode from being used again.
  return absl::StrCat(status.st_dev, ":", status.st_ino);
}

absl::StatusOr<base::UniqueFd> SocketPlace::Listen(const SocketHolder& holder) const {
  ASSIGN_OR_RETURN(const std::string there, Identity());
  if (!there.empty()) {
    if (holder.take) {
      absl::StatusOr<base::UniqueFd> kept = holder.take(there);
      if (kept.ok()) return kept;
    }
    if (!holder.replace && SomebodyAnswers(ShortPath())) {
      return absl::AlreadyExistsError(absl::StrCat(
          base::Printable(address_), ": another daemon listens there; stop it, or choose another address"));
    }
    if (unlinkat(directory_.get(), name_.c_str(), 0) != 0 && errno != ENOENT) {
      return base::ErrnoStatus(errno, absl::StrCat("remove ", address_));
    }
  }
  ASSIGN_OR_RETURN(base::UniqueFd listener, Bind());
  if (holder.keep) {
    ASSIGN_OR_RETURN(const std::string place, Identity());
    holder.keep(listener.get(), place).IgnoreError();  // then it ends with this process
  }
  return listener;
}

absl::StatusOr<base::UniqueFd> SocketPlace::Bind() const {
  const std::string path = ShortPath();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(
        absl::StrCat(base::Printable(address_), ": the name of the socket is too long"));
  }
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  base::UniqueFd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.valid()) return base::ErrnoStatus(errno, "socket");
  // Nobody can connect before listen(2), so nobody connects with a mode that the umask made.
  if (bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      fchmodat(directory_.get(), name_.c_str(), 0600, 0) != 0 || listen(listener.get(), SOMAXCONN) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("listen on ", address_));
  }
  return listener;
}

void SocketPlace::Remove() const { unlinkat(directory_.get(), name_.c_str(), 0); }

}  // namespace lazyblob::containerd::internal
