#include "fuse/internal/child_process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "fuse/internal/keeper_protocol.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr int kFirstInherited = 3;
constexpr int kExecFailed = 127;

void CloseAllBut(std::vector<int> keep) {
  std::sort(keep.begin(), keep.end());
  unsigned next = kFirstInherited;
  for (int fd : keep) {
    if (fd < static_cast<int>(next)) continue;
    if (fd > static_cast<int>(next)) close_range(next, static_cast<unsigned>(fd) - 1, 0);
    next = static_cast<unsigned>(fd) + 1;
  }
  close_range(next, ~0U, 0);
}

// Signals as a fresh program expects them: the keeper blocks what it reads from its signalfd.
void ResetSignals() {
  for (int signal = 1; signal < NSIG; ++signal) {
    if (signal != SIGKILL && signal != SIGSTOP) ::signal(signal, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

void DieWith(pid_t parent, int signal) {
  prctl(PR_SET_PDEATHSIG, signal);
  if (getppid() != parent) _exit(kExecFailed);  // it died before we asked
}

void WriteOomScore(const std::string& value) {
  absl::StatusOr<base::UniqueFd> file = base::OpenFile("/proc/self/oom_score_adj", O_WRONLY);
  if (!file.ok() || write(file->get(), value.data(), value.size()) < 0) return;  // best effort
}

[[noreturn]] void Execute(const DaemonStart& start, pid_t keeper) {
  DieWith(keeper, SIGTERM);
  setpgid(0, 0);
  ResetSignals();
  close_range(kFirstInherited, ~0U, CLOSE_RANGE_CLOEXEC);
  for (int fd : start.inherit) fcntl(fd, F_SETFD, 0);
  if (!start.oom_score_adj.empty()) WriteOomScore(start.oom_score_adj);
  unsetenv("NOTIFY_SOCKET");  // the keeper's alone
  std::vector<char*> argv;
  for (const std::string& word : start.argv) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  if (start.program >= 0) {
    execveat(start.program, "", argv.data(), environ, AT_EMPTY_PATH);
  } else {
    execv(argv[0], argv.data());
  }
  fprintf(stderr, "lazyblob-keeper: start %s: %s\n", argv[0], strerror(errno));
  _exit(kExecFailed);
}

}  // namespace

absl::StatusOr<Child> RunInChild(int keep, const std::function<std::string()>& work) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    return base::ErrnoStatus(errno, "socket for a child of the keeper");
  }
  base::UniqueFd ours(ends[0]);
  base::UniqueFd theirs(ends[1]);
  pid_t keeper = getpid();
  pid_t pid = fork();
  if (pid < 0) return base::ErrnoStatus(errno, "fork a child of the keeper");
  if (pid == 0) {
    DieWith(keeper, SIGKILL);
    CloseAllBut({keep, theirs.get()});
    ours.Release();
    ResetSignals();
    SendPacket(theirs.get(), work(), -1, 0).IgnoreError();  // nobody is left to tell
    _exit(0);
  }
  Child child;
  child.pid = pid;
  child.result = std::move(ours);
  return child;
}

void CloseInChild(std::vector<base::UniqueFd> fds) {
  int gate[2];
  if (pipe2(gate, O_CLOEXEC) != 0) return;
  base::UniqueFd read_end(gate[0]);
  base::UniqueFd write_end(gate[1]);
  pid_t pid = fork();
  if (pid == 0) {
    // Ours must be the last reference: the gate opens when the keeper has closed its own.
    write_end.Reset();
    char byte;
    while (read(read_end.get(), &byte, 1) < 0 && errno == EINTR) {
    }
    _exit(0);
  }
  fds.clear();  // before the gate opens
}

absl::StatusOr<pid_t> StartDaemon(const DaemonStart& start) {
  pid_t keeper = getpid();
  pid_t pid = fork();
  if (pid < 0) return base::ErrnoStatus(errno, "fork lazyblobd");
  if (pid == 0) Execute(start, keeper);
  return pid;
}

bool IsDying(pid_t pid) {
  absl::StatusOr<std::string> status = base::ReadFile(absl::StrCat("/proc/", pid, "/status"), 64 * 1024);
  if (!status.ok()) return absl::IsNotFound(status.status());
  for (absl::string_view line : absl::StrSplit(*status, '\n')) {
    if (absl::ConsumePrefix(&line, "State:\t")) {
      if (absl::StartsWith(line, "Z") || absl::StartsWith(line, "X")) return true;
    } else if (absl::ConsumePrefix(&line, "SigPnd:\t") || absl::ConsumePrefix(&line, "ShdPnd:\t")) {
      uint64_t pending = 0;
      if (absl::SimpleHexAtoi(line, &pending) && (pending >> (SIGKILL - 1) & 1) != 0) return true;
    }
  }
  return false;
}

uint64_t StartTimeOf(pid_t pid) {
  constexpr int kStartTime = 22 - 3;  // proc(5); what follows the name starts with field 3
  absl::StatusOr<std::string> stat = base::ReadFile(absl::StrCat("/proc/", pid, "/stat"), 64 * 1024);
  if (!stat.ok()) return 0;
  const size_t name_end = stat->rfind(") ");
  if (name_end == std::string::npos) return 0;
  const std::vector<absl::string_view> fields =
      absl::StrSplit(absl::string_view(*stat).substr(name_end + 2), ' ');
  uint64_t start = 0;
  if (fields.size() <= kStartTime || !absl::SimpleAtoi(fields[kStartTime], &start)) return 0;
  return start;
}

}  // namespace lazyblob::fuse::internal
