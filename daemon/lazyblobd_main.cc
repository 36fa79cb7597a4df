// lazyblobd. Started by a person or an init system it locks the state root and becomes the keeper, which
// starts lazyblobd again as its child (--keeper-fd): the daemon proper, which may die and be replaced.

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "daemon/config.h"
#include "daemon/daemon.h"
#include "daemon/fresh_start.h"
#include "daemon/privileges.h"
#include "daemon/state_root.h"
#include "fuse/keeper.h"
#include "fuse/server.h"

namespace {

using lazyblob::daemon::Config;
using lazyblob::daemon::DaemonOptions;

std::string SelfPath() {
  char path[4096];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
  return n > 0 ? std::string(path, static_cast<size_t>(n)) : "/usr/sbin/lazyblobd";
}

// What the command line says; empty: the configuration's value.
struct Arguments {
  std::string config;
  std::string root;
  std::string address;
  std::string log_level;
  bool standalone = false;
  int keeper_fd = -1;
  int ready_fd = -1;
};

constexpr char kConfigPath[] = "/etc/lazyblob/config.toml";

absl::StatusOr<Config> ReadConfig(const Arguments& arguments) {
  Config config;
  if (!arguments.standalone) {
    const bool named = !arguments.config.empty();
    ASSIGN_OR_RETURN(config, lazyblob::daemon::LoadConfig(named ? arguments.config : kConfigPath, named));
  }
  if (!arguments.root.empty()) config.root = arguments.root;
  if (!arguments.address.empty()) config.address = arguments.address;
  if (!arguments.log_level.empty()) config.log_level = arguments.log_level;
  return config;
}

// Of a daemon that serves containerd: what runs must outlive a mistake in the file, so a successor takes the
// last configuration that was good.
absl::StatusOr<Config> ReadConfigOfSuccessor(const Arguments& arguments) {
  absl::StatusOr<Config> config = ReadConfig(arguments);
  if (arguments.standalone) return config;
  const std::string kept = arguments.root + "/config.toml";
  const std::string path = arguments.config.empty() ? kConfigPath : arguments.config;
  if (config.ok()) {
    auto text = lazyblob::base::ReadFile(path, 1 << 20);
    if (text.ok()) {
      // A disk that takes nothing must not keep a successor from serving what is there.
      const absl::Status written = lazyblob::base::WriteFileAtomically(kept, *text);
      if (!written.ok()) {
        fprintf(stderr, "lazyblobd: the configuration is not kept: %s\n",
                std::string(written.message()).c_str());
      }
    } else {
      unlink(kept.c_str());
    }
    return config;
  }
  Arguments before = arguments;
  before.config = kept;
  absl::StatusOr<Config> last = ReadConfig(before);
  if (!last.ok()) return config;
  fprintf(stderr, "lazyblobd: %s; going on as before\n", std::string(config.status().message()).c_str());
  return last;
}

absl::StatusOr<Config> ReadConfigOfKeeper(const Arguments& arguments, bool goes_on) {
  absl::StatusOr<Config> config = ReadConfig(arguments);
  if (config.ok() || !goes_on) return config;
  // Where the last good one lies only the keeper that died can say, unless the command line does.
  Arguments before = arguments;
  const std::vector<std::string> kept = lazyblob::fuse::KeptDaemonArguments();
  for (size_t i = 0; before.root.empty() && i + 1 < kept.size(); ++i) {
    if (kept[i] == "--root") before.root = kept[i + 1];
  }
  if (before.root.empty()) before.root = Config().root;
  return ReadConfigOfSuccessor(before);
}

// A kernel that limits requests aborts the connection when one is older, and the daemon may have had it for
// half of that. The limit is that of the moment in which the connection was made, which the daemon has
// written down.
absl::Duration ErrorAfter(const Config& config, bool goes_on) {
  const absl::Duration deadline = absl::Ceil(config.fuse.read_deadline, absl::Seconds(1));
  uint64_t limit = lazyblob::fuse::KernelRequestLimit();
  if (goes_on) {
    const auto text = lazyblob::base::ReadFile(config.root + "/fuse_request_limit", 64);
    uint64_t kept = 0;
    if (text.ok() && absl::SimpleAtoi(*text, &kept)) limit = kept;
  }
  return limit == 0 ? deadline : std::min(deadline, absl::Floor(absl::Seconds(limit) / 4, absl::Seconds(1)));
}

absl::Status StartFresh(const Arguments& arguments, const Config& config) {
  if (!arguments.standalone) {
    RETURN_IF_ERROR(lazyblob::daemon::CheckMountsAreSeen(config.root, config.content.containerd_address));
  }
  const auto left = lazyblob::daemon::DetachLeftMounts(config.root);
  if (!left.ok()) {
    fprintf(stderr, "lazyblobd: mounts of a keeper that was killed: %s\n",
            std::string(left.status().message()).c_str());
  } else if (*left > 0) {
    fprintf(stderr,
            "lazyblobd: detached %zu mounts of a keeper that was killed; start their containers again\n",
            *left);
  }
  return absl::OkStatus();
}

// Replaces this process by the keeper. Returns only on failure.
absl::Status BecomeKeeper(const Arguments& arguments) {
  if (geteuid() != 0) {
    return absl::PermissionDeniedError("lazyblobd must run as root: it mounts file systems");
  }
  // With descriptors of a keeper that died, readers of running containers wait for this one.
  const bool goes_on = lazyblob::fuse::KeeperGoesOn();
  ASSIGN_OR_RETURN(const Config config, ReadConfigOfKeeper(arguments, goes_on));
  auto lock = lazyblob::daemon::LockStateRoot(config.root, absl::Seconds(10));
  if (!lock.ok()) return lock.status();
  if (!goes_on) RETURN_IF_ERROR(StartFresh(arguments, config));
  fcntl(lock->get(), F_SETFD, 0);
  std::string self = SelfPath();
  std::string keeper = absl::StrCat(self.substr(0, self.rfind('/')), "/lazyblob-keeper");
  std::vector<std::string> words = {keeper};
  if (arguments.ready_fd >= 0) words.push_back(absl::StrCat("--ready-fd=", arguments.ready_fd));
  words.push_back(absl::StrCat("--error-after=", absl::ToInt64Seconds(ErrorAfter(config, goes_on))));
  if (arguments.standalone) unsetenv("NOTIFY_SOCKET");  // of whatever service a person's shell runs in
  words.insert(words.end(), {"--", self, "--root", config.root});
  if (!arguments.config.empty()) words.insert(words.end(), {"--config", arguments.config});
  if (!arguments.address.empty()) words.insert(words.end(), {"--address", arguments.address});
  if (!arguments.log_level.empty()) words.insert(words.end(), {"--log-level", arguments.log_level});
  if (arguments.standalone) words.emplace_back("--standalone");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  execv(keeper.c_str(), argv.data());
  return lazyblob::base::ErrnoStatus(errno, absl::StrCat("start ", keeper));
}

absl::Status Run(const Arguments& arguments) {
  if (arguments.keeper_fd < 0) return BecomeKeeper(arguments);
  prctl(PR_SET_DUMPABLE, 0);  // holds credentials: no core files
  const absl::Status dropped = lazyblob::daemon::DropPrivileges(lazyblob::daemon::Program::kDaemon);
  if (!dropped.ok()) {  // the readers of running containers wait for it
    fprintf(stderr, "lazyblobd: it keeps privileges that it does not need: %s\n",
            std::string(dropped.message()).c_str());
  }
  DaemonOptions options;
  ASSIGN_OR_RETURN(options.config, ReadConfigOfSuccessor(arguments));
  options.keeper_fd = arguments.keeper_fd;
  options.standalone = arguments.standalone;
  options.ready_fd = arguments.ready_fd;
  return lazyblob::daemon::RunDaemon(options);
}

}  // namespace

int main(int argc, char** argv) {
  lazyblob::base::ArmFaultsFromEnvironment();
  Arguments arguments;
  CLI::App app("lazyblobd: mounts container images before they are downloaded");
  app.add_option("--config", arguments.config, "configuration [/etc/lazyblob/config.toml, if it is there]");
  app.add_option("--root", arguments.root, "state directory, on ext4, xfs or btrfs [/var/lib/lazyblob]");
  app.add_option("--address", arguments.address,
                 "socket for containerd [/run/lazyblob/lazyblob.sock], in a directory of its own");
  app.add_option("--log-level", arguments.log_level, "error, warning, info or debug")
      ->check(CLI::IsMember({"error", "warning", "info", "debug"}));
  app.add_flag("--standalone", arguments.standalone, "end with the last mount; serve no containerd");
  app.add_option("--keeper-fd", arguments.keeper_fd)->group("");
  app.add_option("--ready-fd", arguments.ready_fd)->group("");
  app.set_version_flag("--version", "lazyblobd " LAZYBLOB_VERSION);
  CLI11_PARSE(app, argc, argv);
  umask(077);
  absl::Status status = Run(arguments);
  if (status.ok()) return 0;
  std::string line = absl::StrCat("error: ", status.message(), "\n");
  if (arguments.keeper_fd < 0 && arguments.ready_fd >= 0) {
    if (write(arguments.ready_fd, line.data(), line.size()) < 0) return 1;
  } else {
    fprintf(stderr, "lazyblobd: %s", line.c_str());
  }
  return 1;
}
