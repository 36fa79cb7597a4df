// lazyblobd. Started by a person or an init system it locks the state root and becomes the keeper, which
// starts lazyblobd again as its child (--keeper-fd): the daemon proper, which may die and be replaced.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "daemon/daemon.h"
#include "daemon/state_root.h"

namespace {

using lazyblob::daemon::DaemonOptions;

std::string SelfPath() {
  char path[4096];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
  return n > 0 ? std::string(path, static_cast<size_t>(n)) : "/usr/sbin/lazyblobd";
}

// Replaces this process by the keeper. Returns only on failure.
absl::Status BecomeKeeper(const DaemonOptions& options) {
  if (geteuid() != 0) {
    return absl::PermissionDeniedError("lazyblobd must run as root: it mounts file systems");
  }
  auto lock = lazyblob::daemon::LockStateRoot(options.root, absl::Seconds(10));
  if (!lock.ok()) return lock.status();
  fcntl(lock->get(), F_SETFD, 0);
  std::string self = SelfPath();
  std::string keeper = absl::StrCat(self.substr(0, self.rfind('/')), "/lazyblob-keeper");
  std::vector<std::string> words = {keeper};
  if (options.ready_fd >= 0) words.push_back(absl::StrCat("--ready-fd=", options.ready_fd));
  words.insert(words.end(), {"--", self, "--root", options.root});
  if (options.standalone) words.emplace_back("--standalone");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execv(keeper.c_str(), argv.data());
  return lazyblob::base::ErrnoStatus(errno, absl::StrCat("start ", keeper));
}

}  // namespace

int main(int argc, char** argv) {
  lazyblob::base::ArmFaultsFromEnvironment();
  DaemonOptions options;
  options.root = "/var/lib/lazyblob";
  CLI::App app("lazyblobd: mounts container images before they are downloaded");
  app.add_option("--root", options.root, "state directory, on ext4, xfs or btrfs")->capture_default_str();
  app.add_flag("--standalone", options.standalone, "end with the last mount");
  app.add_option("--keeper-fd", options.keeper_fd)->group("");
  app.add_option("--ready-fd", options.ready_fd)->group("");
  CLI11_PARSE(app, argc, argv);
  umask(077);
  absl::Status status = options.keeper_fd >= 0 ? lazyblob::daemon::RunDaemon(options) : BecomeKeeper(options);
  if (status.ok()) return 0;
  std::string line = absl::StrCat("error: ", status.message(), "\n");
  if (options.keeper_fd < 0 && options.ready_fd >= 0) {
    if (write(options.ready_fd, line.data(), line.size()) < 0) return 1;
  } else {
    fprintf(stderr, "lazyblobd: %s", line.c_str());
  }
  return 1;
}
