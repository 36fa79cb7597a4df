#include "daemon/socket_address.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace lazyblob::daemon {
namespace {

constexpr uint64_t kMaxAddress = 4096;

void RemoveDeadSocket(const std::string& address) {
  const size_t slash = address.rfind('/');
  if (slash == std::string::npos) return;
  const std::string name = address.substr(slash + 1);
  auto directory = base::OpenFile(address.substr(0, slash + 1), O_PATH | O_DIRECTORY | O_NOFOLLOW);
  if (!directory.ok()) return;
  struct stat status{};
  if (fstatat(directory->get(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISSOCK(status.st_mode))
    return;
  const std::string path = absl::StrCat("/proc/self/fd/", directory->get(), "/", name);
  sockaddr_un there{};
  there.sun_family = AF_UNIX;
  if (path.size() >= sizeof there.sun_path) return;
  path.copy(there.sun_path, path.size());
  base::UniqueFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const bool answers = connect(probe.get(), reinterpret_cast<sockaddr*>(&there), sizeof there) == 0;
  if (!answers && errno == ECONNREFUSED) unlinkat(directory->get(), name.c_str(), 0);
}

}  // namespace

void NoteAddress(const std::string& root, const std::string& address) {
  const std::string note = root + "/address";
  absl::StatusOr<std::string> before = base::ReadFile(note, kMaxAddress);
  if (before.ok() && *before == address) return;
  if (before.ok()) RemoveDeadSocket(*before);
  base::WriteFileAtomically(note, address).IgnoreError();
}

}  // namespace lazyblob::daemon
