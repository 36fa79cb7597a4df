// Privileges cannot be had back, so each case gives them up in a process of its own. Needs root.

#include "daemon/privileges.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/sched.h>
#include <sched.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

// What `work` returned in a process that may do with itself what it likes: "" is success.
std::string InChild(const std::function<std::string()>& work) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return "no pipe";
  const pid_t pid = fork();
  if (pid == 0) {
    const std::string text = work();
    const bool written = write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    _exit(written ? 0 : 1);
  }
  close(ends[1]);
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(pid, &status, 0);
  return status == 0 ? text : absl::StrCat("child ended with ", status, ": ", text);
}

std::string Dropped(Program program) {
  const absl::Status status = DropPrivileges(program);
  return status.ok() ? "" : absl::StrCat("drop: ", status.message(), "; ");
}

std::string Expect(const char* what, int64_t result, int error) {
  const int seen = result < 0 ? errno : 0;
  return seen == error ? "" : absl::StrCat(what, ": ", strerror(seen), ", not ", strerror(error), "; ");
}

std::string StatusField(const std::string& status, absl::string_view name) {
  for (absl::string_view line : absl::StrSplit(status, '\n')) {
    if (absl::ConsumePrefix(&line, absl::StrCat(name, ":\t"))) return std::string(line);
  }
  return "no such line";
}

std::string OwnStatus() { return base::ReadFile("/proc/self/status", 1 << 16).value_or(""); }

// /proc/self/status of a program that is executed.
std::string StatusOfExecuted() {
  int ends[2];
  if (pipe(ends) != 0) return "";
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  char* argv[] = {const_cast<char*>("cat"), const_cast<char*>("/proc/self/status"), nullptr};
  pid_t pid = 0;
  const int error = posix_spawn(&pid, "/bin/cat", &actions, nullptr, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  if (error != 0) return absl::StrCat("spawn: ", strerror(error));
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<size_t>(n));
  waitpid(pid, nullptr, 0);
  return text;
}

// What is kept of `held`, which the process had before; a container's root may not have all.
std::string CheckSets(const std::string& status, Program program, const std::string& held) {
  uint64_t had = 0;
  if (!absl::SimpleHexAtoi(held, &had)) return "no capabilities to be seen; ";
  const std::string kept = absl::StrCat(absl::Hex(KeptCapabilities(program) & had, absl::kZeroPad16));
  std::string wrong;
  for (const char* set : {"CapPrm", "CapEff", "CapBnd"}) {
    const std::string seen = StatusField(status, set);
    if (seen != kept) absl::StrAppend(&wrong, set, " is ", seen, ", not ", kept, "; ");
  }
  const std::string none(16, '0');
  for (const char* set : {"CapInh", "CapAmb"}) {
    if (StatusField(status, set) != none) absl::StrAppend(&wrong, set, " is not empty; ");
  }
  if (StatusField(status, "NoNewPrivs") != "1") wrong += "new privileges can be had; ";
  if (StatusField(status, "Seccomp") != "2") wrong += "no filter; ";
  return wrong;
}

TEST(PrivilegesTest, OnlyWhatIsKeptIsLeftToAProgramAndToWhatItExecutes) {
  for (const Program program : {Program::kKeeper, Program::kDaemon}) {
    EXPECT_EQ(InChild([&] {
                const std::string held = StatusField(OwnStatus(), "CapEff");
                std::string wrong = Dropped(program);
                wrong += CheckSets(OwnStatus(), program, held);
                wrong += CheckSets(StatusOfExecuted(), program, held);
                return wrong;
              }),
              "");
  }
}

TEST(PrivilegesTest, TheDaemonIsAChildOfTheKeeper) {
  EXPECT_EQ(KeptCapabilities(Program::kDaemon) & ~KeptCapabilities(Program::kKeeper), 0u);
  EXPECT_EQ(InChild([] {
              const std::string held = StatusField(OwnStatus(), "CapEff");
              std::string wrong = Dropped(Program::kKeeper);
              wrong += InChild([&] {
                std::string of_daemon = Dropped(Program::kDaemon);
                of_daemon += CheckSets(OwnStatus(), Program::kDaemon, held);
                return of_daemon;
              });
              return wrong;
            }),
            "");
}

TEST(PrivilegesTest, TheDaemonMountsNothingAndMakesNoNamespace) {
  support::TempDir directory;
  const char* path = directory.path().c_str();
  EXPECT_EQ(InChild([&] {
              if (unshare(CLONE_NEWNS) != 0) return std::string("needs root");
              std::string wrong = Expect("mount before", mount("none", path, "tmpfs", 0, nullptr), 0);
              wrong += Dropped(Program::kDaemon);
              wrong += Expect("mount", mount("none", path, "tmpfs", 0, nullptr), EPERM);
              wrong += Expect("umount", umount2(path, MNT_DETACH), EPERM);
              wrong += Expect("fsopen", syscall(SYS_fsopen, "tmpfs", 0), EPERM);
              wrong += Expect("open_tree", syscall(SYS_open_tree, AT_FDCWD, path, 0), EPERM);
              wrong += Expect("unshare", unshare(CLONE_NEWNS), EPERM);
              wrong += Expect("clone", syscall(SYS_clone, CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0), EPERM);
              clone_args arguments{};
              arguments.flags = CLONE_NEWUSER;
              wrong += Expect("clone3", syscall(SYS_clone3, &arguments, sizeof arguments), ENOSYS);
              return wrong;
            }),
            "");
}

TEST(PrivilegesTest, TheDaemonStillHasThreadsAndProgramsAndFiles) {
  support::TempDir directory;
  const std::string file = directory.path() + "/file";
  EXPECT_EQ(InChild([&] {
              std::string wrong = Dropped(Program::kDaemon);
              std::thread([&] {
                wrong += Expect("mkdir", mkdir((directory.path() + "/d").c_str(), 0700), 0);
              }).join();
              wrong += Expect("mknod", mknod(file.c_str(), S_IFCHR | 0600, 0), 0);
              wrong += Expect("chown", chown(file.c_str(), 4711, 4711), 0);
              wrong += Expect("chmod", chmod(file.c_str(), 04755), 0);
              if (!absl::StrContains(StatusOfExecuted(), "Name:\tcat")) wrong += "nothing can be executed; ";
              return wrong;
            }),
            "");
}

TEST(PrivilegesTest, TheKeeperMountsAndMakesUserNamespaces) {
  support::TempDir directory;
  const char* path = directory.path().c_str();
  EXPECT_EQ(InChild([&] {
              if (unshare(CLONE_NEWNS) != 0) return std::string("needs root");
              std::string wrong = Dropped(Program::kKeeper);
              wrong += Expect("mount", mount("none", path, "tmpfs", 0, nullptr), 0);
              wrong += Expect("umount", umount2(path, MNT_DETACH), 0);
              wrong += Expect("unshare", unshare(CLONE_NEWUSER), 0);
              return wrong;
            }),
            "");
}

TEST(PrivilegesTest, BothAreRefusedWhatNeitherHasAUseFor) {
  for (const Program program : {Program::kKeeper, Program::kDaemon}) {
    EXPECT_EQ(InChild([&] {
                std::string wrong = Dropped(program);
                // Without the filter: EFAULT or EINVAL, for what is asked makes no sense.
                wrong +=
                    Expect("perf_event_open", syscall(SYS_perf_event_open, nullptr, 0, -1, -1, 0), EPERM);
                wrong += Expect("keyctl", syscall(SYS_keyctl, -1, 0, 0, 0, 0), EPERM);
                wrong += Expect("open_by_handle_at", syscall(SYS_open_by_handle_at, -1, nullptr, 0), EPERM);
                wrong += Expect("process_vm_readv",
                                syscall(SYS_process_vm_readv, getpid(), nullptr, 0, nullptr, 0, 1), EPERM);
                wrong += Expect("setns", syscall(SYS_setns, -1, 0), EPERM);
                wrong += Expect("io_uring_setup", syscall(SYS_io_uring_setup, 0, nullptr), EPERM);
                return wrong;
              }),
              "");
  }
}

TEST(PrivilegesTest, WhatOnlyAnIntruderCallsEndsTheDaemonButNotTheKeeper) {
  // Without the filter: EINVAL or EFAULT, for what is asked makes no sense.
  const std::vector<std::pair<const char*, std::function<int64_t()>>> calls = {
      {"bpf", [] { return syscall(SYS_bpf, -1, nullptr, 0); }},
      {"init_module", [] { return syscall(SYS_init_module, nullptr, 0, nullptr); }},
      {"kexec_load", [] { return syscall(SYS_kexec_load, -1, -1, nullptr, -1); }},
      {"reboot", [] { return syscall(SYS_reboot, 0, 0, 0, nullptr); }},
      {"swapoff", [] { return syscall(SYS_swapoff, nullptr); }}};
  for (const auto& [name, call] : calls) {
    EXPECT_EQ(InChild([&, name = name, call = call] {
                std::string wrong = Dropped(Program::kKeeper);
                wrong += Expect(name, call(), EPERM);
                // The daemon is its child, and both filters count.
                const std::string daemon = InChild([&] {
                  prctl(PR_SET_DUMPABLE, 0);
                  Dropped(Program::kDaemon);
                  call();
                  return std::string("it goes on");
                });
                if (daemon != absl::StrCat("child ended with ", SIGSYS, ": ")) {
                  absl::StrAppend(&wrong, name, ", daemon: ", daemon);
                }
                return wrong;
              }),
              "");
  }
}

}  // namespace
}  // namespace lazyblob::daemon
