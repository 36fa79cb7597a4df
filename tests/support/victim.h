#pragma once

// Crash tests: the test program runs itself again as a process that is killed, at a named fault point
// (base/fault.h) or at a system call (by strace). The program has the test Victim.DISABLED_Runs, which does
// VictimTask() below VictimRoot() after base::ArmFaultsFromEnvironment().

#include <map>
#include <string>

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
// Kills it when one of its threads makes `call` for the `when`th time.
int RunVictimUntil(const std::string& root, const std::string& task, const std::string& call, int when);
// How often one thread of it makes each of `calls` at most; empty when it does not end well or there is no
// strace.
std::map<std::string, int> CountVictimCalls(const std::string& root, const std::string& task,
                                            absl::string_view calls);

}  // namespace lazyblob::support
