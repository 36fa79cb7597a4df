#pragma once

// Debian's docker-registry as a child process on loopback. Belongs to one test.

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <sstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "tests/support/gate.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::registry {

class RealRegistry {
 public:
  RealRegistry() = default;
  ~RealRegistry() { Stop(); }
  RealRegistry(const RealRegistry&) = delete;
  RealRegistry& operator=(const RealRegistry&) = delete;

  static bool Installed(const std::string& program) {
    return system(absl::StrCat("command -v ", program, " >/dev/null").c_str()) == 0;
  }

  // Listens on return; false: it does not, see Log(). `http` and `more` are lines for its configuration, of
  // the section "http" (two spaces before each) and after it. A second start keeps contents and port.
  bool Start(const std::string& http = "", const std::string& more = "") {
    if (port_ == 0) TakePort();
    std::string config = absl::StrCat(
        "version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: ", directory_.File("data"),
        "}, delete: {enabled: true}}\nhttp:\n  addr: 127.0.0.1:", port_, "\n  secret: of-the-test\n", http,
        more);
    if (!base::WriteFileAtomically(directory_.File("config.yml"), config).ok()) return false;
    std::string log = directory_.File("log");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    std::string path = directory_.File("config.yml");
    char* argv[] = {const_cast<char*>("docker-registry"), const_cast<char*>("serve"), path.data(), nullptr};
    int spawned = posix_spawnp(&pid_, "docker-registry", &actions, nullptr, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    return spawned == 0 && AwaitListening();
  }

  void Stop() {
    if (pid_ <= 0) return;
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

  int port() const { return port_; }
  std::string host() const { return absl::StrCat("127.0.0.1:", port_); }
  std::string Log() const { return base::ReadFile(directory_.File("log"), 64 << 20).value_or(""); }
  // Lines of the access log that hold all of `parts`.
  size_t Logged(const std::vector<std::string>& parts) const {
    std::istringstream log(Log());
    size_t count = 0;
    for (std::string line; std::getline(log, line);) {
      bool all = absl::StrContains(line, "HTTP/1.1\"");
      for (const std::string& part : parts) all = all && absl::StrContains(line, part);
      count += all ? 1 : 0;
    }
    return count;
  }

 private:
  // A port that nobody else is given while this lives. It does not listen, and so the registry may: Go's
  // listeners set SO_REUSEADDR too.
  void TakePort() {
    holder_ = base::UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    sockaddr_in address = Loopback(0);
    socklen_t size = sizeof address;
    if (setsockopt(holder_.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
        bind(holder_.get(), reinterpret_cast<sockaddr*>(&address), size) == 0 &&
        getsockname(holder_.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0) {
      port_ = ntohs(address.sin_port);
    }
  }
  static sockaddr_in Loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  bool AwaitListening() {
    const sockaddr_in address = Loopback(port_);
    const absl::Time give_up = absl::Now() + support::kPatience;
    while (absl::Now() < give_up) {
      if (waitpid(pid_, nullptr, WNOHANG) != 0) {
        pid_ = -1;
        return false;
      }
      base::UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return true;
      poll(nullptr, 0, 10);
    }
    return false;
  }

  support::TempDir directory_;
  base::UniqueFd holder_;
  int port_ = 0;
  pid_t pid_ = -1;
};

}  // namespace lazyblob::registry
