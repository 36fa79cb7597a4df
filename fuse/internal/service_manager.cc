#include "fuse/internal/service_manager.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr int kFirstPassed = 3;  // SD_LISTEN_FDS_START
constexpr int kMaxPassed = 1024;
constexpr time_t kPatienceSeconds = 5;  // with a manager that does not read

std::string Variable(const char* name) {
  const char* value = getenv(name);
  return value == nullptr ? "" : value;
}

// Names and numbers of what the service manager hands to this process.
std::vector<std::pair<std::string, int>> Passed() {
  int number = 0;
  if (Variable("LISTEN_PID") != absl::StrCat(getpid()) ||
      !absl::SimpleAtoi(Variable("LISTEN_FDS"), &number) || number < 1 || number > kMaxPassed) {
    return {};
  }
  const std::vector<std::string> names = absl::StrSplit(Variable("LISTEN_FDNAMES"), ':');
  std::vector<std::pair<std::string, int>> passed;
  for (int i = 0; i < number; ++i) {
    const auto index = static_cast<size_t>(i);
    passed.emplace_back(index < names.size() ? names[index] : absl::StrCat("unknown-", i), kFirstPassed + i);
  }
  return passed;
}

}  // namespace

absl::Status ServiceManager::Store(const std::string& name, int fd) {
  // Without FDPOLL=0 a descriptor on which an error is polled would go, and O_PATH cannot be polled at all.
  return Send(absl::StrCat("FDSTORE=1\nFDNAME=", name, "\nFDPOLL=0"), fd);
}

absl::Status ServiceManager::Remove(const std::string& name) {
  return Send(absl::StrCat("FDSTOREREMOVE=1\nFDNAME=", name), -1);
}

absl::Status ServiceManager::Send(absl::string_view message, int fd) {
  if (!present()) return absl::OkStatus();
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (address_.size() >= sizeof address.sun_path || (address_[0] != '/' && address_[0] != '@')) {
    return absl::InvalidArgumentError(
        absl::StrCat("NOTIFY_SOCKET is no address of a unix socket: ", base::Printable(address_)));
  }
  address_.copy(address.sun_path, address_.size());
  if (address_[0] == '@') address.sun_path[0] = '\0';
  base::UniqueFd out(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const timeval patience{kPatienceSeconds, 0};
  if (!out.valid() || setsockopt(out.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0) {
    return base::ErrnoStatus(errno, "socket to the service manager");
  }
  iovec text{const_cast<char*>(message.data()), message.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr packet{};
  packet.msg_name = &address;
  packet.msg_namelen = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size());
  packet.msg_iov = &text;
  packet.msg_iovlen = 1;
  if (fd >= 0) {
    packet.msg_control = control;
    packet.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&packet);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  while (sendmsg(out.get(), &packet, MSG_NOSIGNAL) < 0) {
    if (errno != EINTR) return base::ErrnoStatus(errno, "tell the service manager");
  }
  return absl::OkStatus();
}

HeldDescriptors TakeListenDescriptors() {
  HeldDescriptors held;
  for (const auto& [name, fd] : Passed()) {
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) == 0) held[name] = base::UniqueFd(fd);
  }
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) unsetenv(name);
  return held;
}

HeldDescriptors CopyListenDescriptors() {
  HeldDescriptors held;
  for (const auto& [name, fd] : Passed()) {
    base::UniqueFd copy(fcntl(fd, F_DUPFD_CLOEXEC, kFirstPassed));
    if (copy.valid()) held[name] = std::move(copy);
  }
  return held;
}

std::string HeldWord(const std::map<std::string, int>& held) {
  std::string word;
  for (const auto& [name, fd] : held) absl::StrAppend(&word, word.empty() ? "" : ",", name, ":", fd);
  return word;
}

absl::Status ParseHeldWord(absl::string_view word, HeldDescriptors* held) {
  for (absl::string_view item : absl::StrSplit(word, ',')) {
    const std::pair<std::string, std::string> named = absl::StrSplit(item, absl::MaxSplits(':', 1));
    int fd = -1;
    if (named.first.empty() || !absl::SimpleAtoi(named.second, &fd) || fd < kFirstPassed ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) {
      return absl::InvalidArgumentError(absl::StrCat("--held: no descriptor: ", base::Printable(item)));
    }
    (*held)[named.first] = base::UniqueFd(fd);
  }
  return absl::OkStatus();
}

}  // namespace lazyblob::fuse::internal
