#include "tests/fuse/fake_service_manager.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "tests/support/gate.h"

namespace lazyblob::fuse {
namespace {

constexpr int kFirstPassed = 3;
constexpr int kOutOfTheWay = 200;
constexpr size_t kStoreMax = 16;  // FileDescriptorStoreMax= of deploy/lazyblob.service

}  // namespace

FakeServiceManager::FakeServiceManager() : stop_(eventfd(0, EFD_CLOEXEC)) {
  static int count = 0;
  const std::string name = absl::StrCat("lazyblob-notify-", getpid(), "-", ++count);
  address_ = "@" + name;
  socket_ = base::UniqueFd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  name.copy(address.sun_path + 1, name.size());
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  EXPECT_EQ(bind(socket_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  const int on = 1;
  EXPECT_EQ(setsockopt(socket_.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof on), 0);
  thread_ = std::thread([this] { Run(); });
}

FakeServiceManager::~FakeServiceManager() {
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

void FakeServiceManager::Run() {
  for (;;) {
    pollfd wait[] = {{stop_.get(), POLLIN, 0}, {socket_.get(), POLLIN, 0}};
    if (poll(wait, 2, -1) < 0 && errno != EINTR) return;
    if (wait[0].revents != 0) return;
    if (wait[1].revents == 0) continue;
    char text[4096];
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(ucred))];
    iovec part{text, sizeof text};
    msghdr packet{};
    packet.msg_iov = &part;
    packet.msg_iovlen = 1;
    packet.msg_control = control;
    packet.msg_controllen = sizeof control;
    const ssize_t size = recvmsg(socket_.get(), &packet, MSG_CMSG_CLOEXEC);
    if (size < 0) continue;
    base::UniqueFd fd;
    ucred sender{};
    for (cmsghdr* header = CMSG_FIRSTHDR(&packet); header != nullptr; header = CMSG_NXTHDR(&packet, header)) {
      if (header->cmsg_type == SCM_RIGHTS) {
        int passed = -1;
        memcpy(&passed, CMSG_DATA(header), sizeof passed);
        fd = base::UniqueFd(passed);
      } else if (header->cmsg_type == SCM_CREDENTIALS) {
        memcpy(&sender, CMSG_DATA(header), sizeof sender);
      }
    }
    Handle(std::string(text, static_cast<size_t>(size)), sender.pid, std::move(fd));
  }
}

void FakeServiceManager::Handle(const std::string& message, pid_t sender, base::UniqueFd fd) {
  std::map<std::string, std::string> assignments;
  absl::MutexLock lock(&mutex_);
  if (main_ > 0 && sender != main_) return;  // NotifyAccess=main
  for (absl::string_view line : absl::StrSplit(message, '\n', absl::SkipEmpty())) {
    assignments.insert(std::pair<std::string, std::string>(absl::StrSplit(line, absl::MaxSplits('=', 1))));
    lines_.emplace_back(line);
  }
  const std::string& name = assignments["FDNAME"];
  const auto same = [&](const auto& stored) { return stored.first == name; };
  if (assignments["FDSTORE"] == "1") {
    if (!fd.valid() || name.empty() || assignments["FDPOLL"] != "0" || store_.size() == kStoreMax ||
        absl::StrContains(name, ':') || std::any_of(store_.begin(), store_.end(), same)) {
      ++refused_;
    } else {
      store_.emplace_back(name, std::move(fd));
    }
  } else if (assignments["FDSTOREREMOVE"] == "1") {
    store_.erase(std::remove_if(store_.begin(), store_.end(), same), store_.end());
  }
}

std::unique_ptr<FakeServiceManager::Launch> FakeServiceManager::Prepare() {
  auto launch = std::make_unique<Launch>();
  absl::MutexLock lock(&mutex_);
  main_ = -1;
  for (char** variable = environ; *variable != nullptr; ++variable)
    launch->environment_.emplace_back(*variable);
  launch->environment_.push_back("NOTIFY_SOCKET=" + address_);
  if (store_.empty()) return launch;
  std::vector<std::string> names;
  for (const auto& [name, fd] : store_) {
    names.push_back(name);
    launch->fds_.push_back(fd.get());
  }
  launch->environment_.push_back(absl::StrCat("LISTEN_FDS=", names.size()));
  launch->environment_.push_back("LISTEN_FDNAMES=" + absl::StrJoin(names, ":"));
  return launch;
}

void FakeServiceManager::Launch::Execute(char** argv) {
  for (int& fd : fds_) fd = fcntl(fd, F_DUPFD, kOutOfTheWay);
  for (size_t i = 0; i < fds_.size(); ++i) {
    dup2(fds_[i], kFirstPassed + static_cast<int>(i));
    close(fds_[i]);
  }
  snprintf(pid_.data(), pid_.size() + 1, "LISTEN_PID=%d", getpid());
  std::vector<char*> environment;
  for (std::string& variable : environment_) environment.push_back(variable.data());
  environment.push_back(pid_.data());
  environment.push_back(nullptr);
  execve(argv[0], argv, environment.data());
  _exit(126);
}

void FakeServiceManager::Launched(pid_t pid) {
  absl::MutexLock lock(&mutex_);
  main_ = pid;
}

bool FakeServiceManager::AwaitLine(const std::string& line) {
  auto said = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return std::find(lines_.begin(), lines_.end(), line) != lines_.end();
  };
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&said), support::kPatience);
}

void FakeServiceManager::ForgetLines() {
  absl::MutexLock lock(&mutex_);
  lines_.clear();
}

std::vector<std::string> FakeServiceManager::Stored() {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> kinds;
  for (const auto& [name, fd] : store_) kinds.push_back(name.substr(0, name.find('-')));
  return kinds;
}

int FakeServiceManager::refused() {
  absl::MutexLock lock(&mutex_);
  return refused_;
}

void FakeServiceManager::DropStored(const std::string& kind) {
  absl::MutexLock lock(&mutex_);
  store_.erase(std::remove_if(store_.begin(), store_.end(),
                              [&](const auto& stored) { return absl::StartsWith(stored.first, kind); }),
               store_.end());
}

}  // namespace lazyblob::fuse
