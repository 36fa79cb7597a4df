#pragma once

// Crash tests: the test program runs itself again as a process that is killed, at a named fault point
// (base/fault.h) or at a system call (by strace). The program has the test Victim.DISABLED_Runs, which does
// VictimTask() below VictimRoot() after base::ArmFaultsFromEnvironment().

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/strings/string_view.h"

namespace lazyblob::support {

// System calls that change files.
constexpr char kMutatingCalls[] =
    "mkdir,chmod,chown,lchown,fchmod,fchown,rename,renameat,unlink,unlinkat,rmdir,pwrite64,ftruncate,fsync,"
    "fdatasync,fallocate";

// In the victim; empty elsewhere.
std::string VictimRoot();
std::string VictimTask();

// Runs the victim until it dies at the fault point `point` or ends (all of these): the signal that killed it,
// 0 when it ended well, -1 otherwise. What it leaves outside `root` lies below it all the same.
int RunVictim(const std::string& root, const std::string& task, const std::string& point);
// Kills the victim at each of `calls` (of strace) that it makes: at the first that one of its threads makes,
// in the next run at the second, and so on. `before` comes before each run, and before one that only counts
// the calls; `after` after each, with what it was killed at. How often it was; 0 when there is no strace, or
// a run ends otherwise.
int KillAtEachCall(const std::string& root, const std::string& task, absl::string_view calls,
                   absl::FunctionRef<void()> before, absl::FunctionRef<void(const std::string& at)> after);

}  // namespace lazyblob::support
