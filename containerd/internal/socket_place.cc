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
  if ((status.st_mode & 07777) != 0700) {
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

absl::StatusOr<SocketPlace> SocketPlace::Take(const std::string& address) {
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

  struct stat status{};
  if (fstatat(fd, place.name_.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return place;
    return base::ErrnoStatus(errno, address);
  }
  if (!S_ISSOCK(status.st_mode)) return Refuse(address, "exists and is not a socket; remove it");
  if (SomebodyAnswers(place.ShortPath())) {
    return absl::AlreadyExistsError(absl::StrCat(
        base::Printable(address), ": another daemon listens there; stop it, or choose another address"));
  }
  if (unlinkat(fd, place.name_.c_str(), 0) != 0 && errno != ENOENT) {
    return base::ErrnoStatus(errno, absl::StrCat("remove ", address));
  }
  return place;
}

std::string SocketPlace::ShortPath() const {
  return absl::StrCat("/proc/self/fd/", directory_.get(), "/", name_);
}

absl::Status SocketPlace::Secure() const {
  if (fchmodat(directory_.get(), name_.c_str(), 0600, 0) == 0) return absl::OkStatus();
  return base::ErrnoStatus(errno, absl::StrCat("chmod ", address_));
}

void SocketPlace::Remove() const { unlinkat(directory_.get(), name_.c_str(), 0); }

}  // namespace lazyblob::containerd::internal
