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
#include "base/file.h"
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

  // Listens on return; false: it does not, see Log(). A second start keeps contents and port.
  bool Start() {
    if (port_ == 0) port_ = FreePort();
    std::string config = absl::StrCat(
        "version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: ", directory_.File("data"),
        "}, delete: {enabled: true}}\nhttp: {addr: '127.0.0.1:", port_, "', secret: of-the-test}\n");
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
  static int FreePort() {
    base::UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), size) != 0) return 0;
    if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
    return ntohs(address.sin_port);
  }

  bool AwaitListening() const {
    for (int i = 0; i < 1000; ++i) {
      base::UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = htons(static_cast<uint16_t>(port_));
      address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) return true;
      poll(nullptr, 0, 10);
    }
    return false;
  }

  support::TempDir directory_;
  int port_ = 0;
  pid_t pid_ = -1;
};

}  // namespace lazyblob::registry
