#include "daemon/cli_upgrade.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include <CLI/CLI.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "daemon/control_client.h"

namespace lazyblob::daemon {
namespace {

constexpr int kVersionTimeoutMs = 10'000;
constexpr absl::Duration kTakeoverTime = absl::Minutes(1);
constexpr absl::Duration kPause = absl::Milliseconds(50);
constexpr absl::string_view kDeleted = " (deleted)";

absl::Status NotLazyblobd(const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat(base::Printable(path), ": ", why, "; name the program lazyblobd"));
}

// What `path --version` says.
absl::StatusOr<std::string> VersionOf(const std::string& path) {
  struct stat status{};
  if (stat(path.c_str(), &status) != 0) return base::ErrnoStatus(errno, base::Printable(path));
  if (!S_ISREG(status.st_mode) || access(path.c_str(), X_OK) != 0) {
    return NotLazyblobd(path, "not an executable file");
  }
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return base::ErrnoStatus(errno, "pipe");
  base::UniqueFd reader(ends[0]);
  base::UniqueFd writer(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, writer.get(), STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  std::string words[] = {path, "--version"};
  char* argv[] = {words[0].data(), words[1].data(), nullptr};
  pid_t pid = 0;
  const int error = posix_spawn(&pid, path.c_str(), &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return base::ErrnoStatus(error, absl::StrCat("start ", base::Printable(path)));
  writer.Reset();

  std::string said;
  pollfd wait{reader.get(), POLLIN, 0};
  while (said.size() < 256 && poll(&wait, 1, kVersionTimeoutMs) > 0) {
    char buffer[256];
    const ssize_t got = read(reader.get(), buffer, sizeof buffer);
    if (got <= 0) break;
    said.append(buffer, static_cast<size_t>(got));
  }
  kill(pid, SIGKILL);  // what has said all it will say
  waitpid(pid, nullptr, 0);
  absl::string_view version = said;
  if (!absl::ConsumePrefix(&version, "lazyblobd ") || !absl::ConsumeSuffix(&version, "\n") ||
      version.empty()) {
    return NotLazyblobd(path, "does not answer --version as lazyblobd does");
  }
  return base::Printable(version);
}

absl::StatusOr<std::string> RealPath(const std::string& path) {
  char* resolved = realpath(path.c_str(), nullptr);
  if (resolved == nullptr) return base::ErrnoStatus(errno, base::Printable(path));
  std::string real = resolved;
  free(resolved);
  return real;
}

// The status of a daemon younger than `generation`.
absl::StatusOr<control::v1::StatusResponse> AwaitSuccessor(const std::string& root, uint64_t generation) {
  const base::Clock& clock = base::SystemClock();
  const absl::Duration deadline = clock.Monotonic() + kTakeoverTime;
  absl::Status last = absl::UnavailableError("no successor serves");
  while (clock.Monotonic() < deadline) {
    absl::StatusOr<std::unique_ptr<ControlClient>> client = ControlClient::Connect(root);
    if (client.ok()) {
      absl::StatusOr<control::v1::StatusResponse> status = (*client)->Status("");
      if (status.ok() && status->generation() > generation) return status;
      last = status.status();
    } else {
      last = client.status();
    }
    absl::SleepFor(kPause);
  }
  return absl::DeadlineExceededError(absl::StrCat("no successor serves after ",
                                                  absl::FormatDuration(kTakeoverTime), " (", last.message(),
                                                  "); see lazyblobd's log"));
}

}  // namespace

void AddUpgradeCommand(CLI::App* app, UpgradeArguments* arguments, std::function<void()> chosen) {
  CLI::App* upgrade =
      app->add_subcommand("upgrade", "replace the daemon's program; everything stays mounted");
  upgrade->add_option("--binary", arguments->binary,
                      "the new lazyblobd; default: the file at the old one's path");
  upgrade->callback(std::move(chosen));
}

absl::Status RunUpgradeCommand(const UpgradeArguments& arguments, const std::string& root, CliIo io) {
  if (geteuid() != 0) return absl::PermissionDeniedError("must run as root: the daemon serves root only");
  ASSIGN_OR_RETURN(auto client, ControlClient::Connect(root));
  ASSIGN_OR_RETURN(const control::v1::StatusResponse before, client->Status(""));
  std::string program(absl::StripSuffix(before.program(), kDeleted));
  if (!arguments.binary.empty()) {
    ASSIGN_OR_RETURN(program, RealPath(arguments.binary));
  }
  ASSIGN_OR_RETURN(const std::string version, VersionOf(program));
  RETURN_IF_ERROR(client->Upgrade(program));
  ASSIGN_OR_RETURN(const control::v1::StatusResponse after, AwaitSuccessor(root, before.generation()));
  if (after.program() != program) {
    return absl::FailedPreconditionError(absl::StrCat(base::Printable(program),
                                                      " could not take over, lazyblobd's log says why; ",
                                                      base::Printable(after.program()), " serves again"));
  }
  io.out << base::Printable(program) << " " << version << " serves, daemon " << after.generation() << "\n";
  return absl::OkStatus();
}

}  // namespace lazyblob::daemon
