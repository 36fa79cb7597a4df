#include "daemon/privileges.h"

#include <linux/capability.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

#include "absl/strings/str_cat.h"
#include "base/status.h"

// LeakSanitizer looks at the threads of its own process with ptrace(2).
#if defined(__SANITIZE_ADDRESS__)
#define LAZYBLOB_PTRACE_ITSELF 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define LAZYBLOB_PTRACE_ITSELF 1
#endif
#endif
#ifndef LAZYBLOB_PTRACE_ITSELF
#define LAZYBLOB_PTRACE_ITSELF 0
#endif

namespace lazyblob::daemon {
namespace {

constexpr uint64_t Bit(int capability) { return uint64_t{1} << capability; }

// Reasons: docs/SECURITY.md.
constexpr uint64_t kOfDaemon = Bit(CAP_CHOWN) | Bit(CAP_DAC_OVERRIDE) | Bit(CAP_DAC_READ_SEARCH) |
                               Bit(CAP_FOWNER) | Bit(CAP_FSETID) | Bit(CAP_MKNOD) | Bit(CAP_SETFCAP) |
                               Bit(CAP_SYS_ADMIN) | Bit(CAP_SYS_RESOURCE);
// SETPCAP is for the daemon's own drop from the bounding set.
constexpr uint64_t kOfKeeper =
    kOfDaemon | Bit(CAP_KILL) | Bit(CAP_SETGID) | Bit(CAP_SETPCAP) | Bit(CAP_SETUID);

// Neither program has a use for these, nor has what they execute: an intruder has. The daemon ends with the
// first of them, and a successor takes over; the keeper, which every mount ends with, is refused them.
constexpr const char* kHostile[] = {"ptrace", "process_vm_writev",
                                    // the kernel's code
                                    "kexec_load", "kexec_file_load", "create_module", "init_module",
                                    "finit_module", "delete_module", "bpf",
                                    // the machine
                                    "reboot", "swapon", "swapoff", "iopl", "ioperm", "pivot_root"};

// These libraries and programs may try, and go on without.
constexpr const char* kDenied[] = {
    // other processes
    "process_vm_readv", "kcmp",
    // tracing, keys, large parts of the kernel
    "perf_event_open", "userfaultfd", "lookup_dcookie", "syslog", "keyctl", "add_key", "request_key",
    "io_uring_setup", "io_uring_enter", "io_uring_register",
    // the machine
    "sethostname", "setdomainname", "acct", "quotactl", "quotactl_fd", "settimeofday", "clock_settime",
    "vhangup", "nfsservctl",
    // ways around paths
    "open_by_handle_at", "fanotify_init", "chroot", "setns"};

// What the keeper does for the daemon, and what only the keeper may.
constexpr const char* kDeniedToDaemon[] = {
    "mount",      "umount",    "umount2",        "fsopen",        "fsconfig", "fsmount",    "fspick",
    "move_mount", "open_tree", "open_tree_attr", "mount_setattr", "unshare",  "pidfd_getfd"};

constexpr uint64_t kNamespaceFlags[] = {CLONE_NEWNS,   CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC,
                                        CLONE_NEWUSER, CLONE_NEWPID,    CLONE_NEWNET};

absl::Status DropCapabilities(uint64_t kept) {
  absl::Status first;
  for (int capability = 0; capability < 64; ++capability) {
    const int held = prctl(PR_CAPBSET_READ, capability, 0, 0, 0);
    if (held < 0) break;  // the kernel knows no higher number
    // Without SETPCAP it stays in the bounding set, which no_new_privs makes meaningless.
    if (held == 1 && (kept & Bit(capability)) == 0 && prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0 &&
        errno != EPERM) {
      first.Update(base::ErrnoStatus(errno, "drop a capability from the bounding set"));
    }
  }
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0 && errno != EINVAL) {
    first.Update(base::ErrnoStatus(errno, "clear the ambient capabilities"));
  }
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (syscall(SYS_capget, &header, data) != 0) {
    first.Update(base::ErrnoStatus(errno, "read the capabilities"));
    return first;
  }
  for (int word = 0; word < 2; ++word) {
    const auto mask = static_cast<uint32_t>(kept >> (32 * word));
    data[word].permitted &= mask;
    data[word].effective = data[word].permitted;
    data[word].inheritable = 0;
  }
  if (syscall(SYS_capset, &header, data) != 0) {
    first.Update(base::ErrnoStatus(errno, "drop capabilities"));
  }
  return first;
}

struct ReleaseFilter {
  void operator()(void* filter) const { seccomp_release(filter); }
};

// `error` is a negative errno of libseccomp.
absl::Status FilterStatus(int error, absl::string_view what) {
  return error == 0 ? absl::OkStatus()
                    : base::ErrnoStatus(-error, absl::StrCat("system call filter: ", what));
}

absl::Status Deny(void* filter, const char* name, uint32_t action) {
  const int number = seccomp_syscall_resolve_name(name);
  if (number < 0) return absl::OkStatus();  // this machine, or this libseccomp, has no such call
  return FilterStatus(seccomp_rule_add_array(filter, action, number, 0, nullptr), name);
}

absl::Status DenyNamespaces(void* filter) {
  for (const uint64_t flag : kNamespaceFlags) {
    const scmp_arg_cmp has_flag = {0, SCMP_CMP_MASKED_EQ, flag, flag};
    RETURN_IF_ERROR(FilterStatus(
        seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(clone), 1, &has_flag), "clone"));
  }
  // Its flags lie in memory, where no filter looks; callers fall back to clone(2).
  return Deny(filter, "clone3", SCMP_ACT_ERRNO(ENOSYS));
}

absl::Status FilterSystemCalls(Program program) {
  const std::unique_ptr<void, ReleaseFilter> filter(seccomp_init(SCMP_ACT_ALLOW));
  if (filter == nullptr) return absl::ResourceExhaustedError("system call filter: no memory");
  // Calls of another architecture (32-bit) would pass by the numbers below.
  RETURN_IF_ERROR(FilterStatus(
      seccomp_attr_set(filter.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ERRNO(ENOSYS)), "set foreign calls"));
  const uint32_t hostile = program == Program::kDaemon ? SCMP_ACT_KILL_PROCESS : SCMP_ACT_ERRNO(EPERM);
  for (const char* name : kHostile) {
    if (LAZYBLOB_PTRACE_ITSELF && absl::string_view(name) == "ptrace") continue;
    RETURN_IF_ERROR(Deny(filter.get(), name, hostile));
  }
  for (const char* name : kDenied) RETURN_IF_ERROR(Deny(filter.get(), name, SCMP_ACT_ERRNO(EPERM)));
  if (program == Program::kDaemon) {
    for (const char* name : kDeniedToDaemon) {
      RETURN_IF_ERROR(Deny(filter.get(), name, SCMP_ACT_ERRNO(EPERM)));
    }
    RETURN_IF_ERROR(DenyNamespaces(filter.get()));
  }
  return FilterStatus(seccomp_load(filter.get()), "load it (does the kernel have CONFIG_SECCOMP_FILTER?)");
}

}  // namespace

uint64_t KeptCapabilities(Program program) { return program == Program::kKeeper ? kOfKeeper : kOfDaemon; }

absl::Status DropPrivileges(Program program) {
  absl::Status first = DropCapabilities(KeptCapabilities(program));
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    first.Update(base::ErrnoStatus(errno, "set no_new_privs"));
  }
  first.Update(FilterSystemCalls(program));
  return first;
}

}  // namespace lazyblob::daemon
