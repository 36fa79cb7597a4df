#include "registry/internal/credential_helper.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"

namespace lazyblob::registry::internal {
namespace {

constexpr size_t kMaxOutput = 64 << 10;

struct Result {
  std::string output;
  int exit_code = -1;
};

absl::StatusOr<pid_t> Spawn(const std::string& program, int input, int output) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  absl::Cleanup destroy = [&] {
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
  };
  posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  sigset_t none;
  sigset_t all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  // A group of its own, so that what a helper starts can be killed with it.
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setflags(&attributes,
                           POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  std::string verb = "get";
  std::string name = program;
  char* argv[] = {name.data(), verb.data(), nullptr};
  pid_t pid = -1;
  int error = posix_spawnp(&pid, program.c_str(), &actions, &attributes, argv, environ);
  if (error != 0) return base::ErrnoStatus(error, absl::StrCat("start ", program));
  return pid;
}

absl::Status ReadBounded(int fd, absl::Duration deadline, std::string* output) {
  const base::Clock& clock = base::SystemClock();
  while (true) {
    absl::Duration left = deadline - clock.Monotonic();
    if (left <= absl::ZeroDuration()) return absl::DeadlineExceededError("did not answer in time");
    pollfd poller{fd, POLLIN, 0};
    int ready = poll(&poller, 1,
                     static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1)))));
    if (ready < 0 && errno != EINTR) return base::ErrnoStatus(errno, "poll");
    if (ready <= 0) continue;
    char buffer[4096];
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0 && errno != EINTR) return base::ErrnoStatus(errno, "read");
    if (n == 0) return absl::OkStatus();
    if (n > 0) output->append(buffer, static_cast<size_t>(n));
    if (output->size() > kMaxOutput) return absl::ResourceExhaustedError("printed more than 64 KiB");
  }
}

absl::StatusOr<Result> RunHelper(const std::string& program, const std::string& server,
                                 absl::Duration timeout) {
  // A file instead of a pipe: a helper that never reads cannot hold us up.
  base::UniqueFd input(memfd_create("credential-request", MFD_CLOEXEC));
  if (!input.valid()) return base::ErrnoStatus(errno, "memfd_create");
  RETURN_IF_ERROR(base::PwriteFull(
      input.get(), 0, absl::MakeSpan(reinterpret_cast<const uint8_t*>(server.data()), server.size())));
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return base::ErrnoStatus(errno, "pipe2");
  base::UniqueFd read_end(ends[0]);
  base::UniqueFd write_end(ends[1]);
  absl::Duration deadline = base::SystemClock().Monotonic() + timeout;
  ASSIGN_OR_RETURN(pid_t pid, Spawn(program, input.get(), write_end.get()));
  write_end.Reset();
  Result result;
  absl::Status read = ReadBounded(read_end.get(), deadline, &result.output);
  // It has closed its output or is not to be waited for: in both cases its time is over.
  int status = 0;
  bool exited = false;
  while (read.ok() && !exited && base::SystemClock().Monotonic() < deadline) {
    exited = waitpid(pid, &status, WNOHANG) == pid;
    if (!exited) poll(nullptr, 0, 5);
  }
  if (!exited) {
    kill(-pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return read.ok() ? absl::DeadlineExceededError("did not end in time") : read;
  }
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace

absl::StatusOr<Credentials> ParseHelperOutput(absl::string_view output) {
  // The parser quotes what it reads, so its message must not travel.
  absl::StatusOr<nlohmann::json> json = base::ParseJson(output, kMaxOutput);
  if (!json.ok() || !json->is_object()) return absl::InvalidArgumentError("its output is not a JSON object");
  absl::StatusOr<std::optional<std::string>> username = base::JsonString(*json, "Username");
  absl::StatusOr<std::optional<std::string>> secret = base::JsonString(*json, "Secret");
  if (!username.ok() || !secret.ok() || !*secret) {
    return absl::InvalidArgumentError("its output has no \"Username\" and \"Secret\"");
  }
  Credentials credentials;
  if (username->value_or("") == "<token>") {
    credentials.identity_token = **secret;
  } else {
    credentials.username = username->value_or("");
    credentials.password = **secret;
  }
  return credentials;
}

absl::StatusOr<std::optional<Credentials>> RunCredentialHelper(const std::string& name,
                                                               const std::string& server,
                                                               absl::Duration timeout) {
  bool plain = !name.empty() && name.size() <= 128 && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
  });
  if (!plain) {
    return absl::InvalidArgumentError(absl::StrCat("credential helper name \"",
                                                   base::Printable(name.substr(0, 60)),
                                                   "\" is not letters, digits, '-', '_' and '.'"));
  }
  std::string program = absl::StrCat("docker-credential-", name);
  absl::StatusOr<Result> result = RunHelper(program, server, timeout);
  if (!result.ok()) return base::Annotate(result.status(), program);
  if (result->exit_code != 0) {
    if (absl::StrContains(result->output, "credentials not found")) return std::optional<Credentials>();
    return absl::FailedPreconditionError(absl::StrCat(program, " get: failed with exit code ",
                                                      result->exit_code, " for ", base::Printable(server)));
  }
  absl::StatusOr<Credentials> credentials = ParseHelperOutput(result->output);
  if (!credentials.ok()) return base::Annotate(credentials.status(), program);
  return std::optional<Credentials>(*std::move(credentials));
}

}  // namespace lazyblob::registry::internal
