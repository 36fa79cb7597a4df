#pragma once

// Processes of the keeper: short-lived children that may hang in one of our own file systems, and lazyblobd
// itself. The keeper has one thread, so a forked child may use everything.

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/file.h"

namespace lazyblob::fuse::internal {

struct Child {
  pid_t pid = -1;
  base::UniqueFd result;  // one packet with what `work` returned; only its end when the child died before
};

// Runs `work` in a child that holds no descriptor but stdin, stdout, stderr and `keep` (-1: none), and that
// dies with the keeper.
absl::StatusOr<Child> RunInChild(int keep, const std::function<std::string()>& work);

// Closes `fds` so that what the kernel does for the last reference (ending a file system, which may wait for
// answers) happens in a child.
void CloseInChild(std::vector<base::UniqueFd> fds);

struct DaemonStart {
  std::vector<std::string> argv;
  int program = -1;           // the executable, open; -1: argv[0] names it
  std::vector<int> inherit;   // besides stdin, stdout, stderr; the numbers stay the same
  std::string oom_score_adj;  // empty: leave
};
// Forks and executes; in a process group of its own; gets SIGTERM when the keeper dies.
absl::StatusOr<pid_t> StartDaemon(const DaemonStart& start);

// True when the process can run no more code of its own: it is a zombie (perhaps with a thread that still
// hangs in the kernel, so that it cannot be reaped), or SIGKILL is pending.
bool IsDying(pid_t pid);

// When the process started, in clock ticks since boot; 0 if there is none.
uint64_t StartTimeOf(pid_t pid);

}  // namespace lazyblob::fuse::internal
