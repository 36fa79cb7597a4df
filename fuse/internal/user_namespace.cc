#include "fuse/internal/user_namespace.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::fuse::internal {
namespace {

// A process in a user namespace of its own, which does nothing and ends with this object or its holder.
class Resident {
 public:
  static absl::StatusOr<Resident> Start() {
    int gate[2];
    if (pipe2(gate, O_CLOEXEC) != 0) return base::ErrnoStatus(errno, "pipe");
    base::UniqueFd read_end(gate[0]);
    base::UniqueFd write_end(gate[1]);
    clone_args arguments{};
    arguments.flags = CLONE_NEWUSER;
    arguments.exit_signal = SIGCHLD;
    auto pid = static_cast<pid_t>(syscall(SYS_clone3, &arguments, sizeof arguments));
    if (pid < 0) {
      return base::ErrnoStatus(
          errno, "make a user namespace (does user.max_user_namespaces or a security module forbid it?)");
    }
    if (pid == 0) {
      close(write_end.Release());
      char byte;
      while (read(read_end.get(), &byte, 1) < 0 && errno == EINTR) {
      }
      _exit(0);
    }
    return Resident(pid, std::move(write_end));
  }

  Resident(Resident&& other) noexcept : pid_(std::exchange(other.pid_, -1)), gate_(std::move(other.gate_)) {}
  ~Resident() {
    gate_.Reset();
    while (pid_ > 0 && waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }

  std::string Path(absl::string_view name) const { return absl::StrCat("/proc/", pid_, "/", name); }

 private:
  Resident(pid_t pid, base::UniqueFd gate) : pid_(pid), gate_(std::move(gate)) {}
  pid_t pid_;
  base::UniqueFd gate_;
};

absl::Status WriteMap(const std::string& path, const std::vector<IdRange>& ranges) {
  std::string text;
  for (const IdRange& range : ranges)
    absl::StrAppend(&text, range.container, " ", range.host, " ", range.length, "\n");
  ASSIGN_OR_RETURN(base::UniqueFd file, base::OpenFile(path, O_WRONLY));
  // The kernel takes the whole map in one write or not at all.
  ssize_t written = write(file.get(), text.data(), text.size());
  if (written < 0) return base::ErrnoStatus(errno, absl::StrCat("write ", path));
  if (static_cast<size_t>(written) != text.size())
    return absl::InternalError(absl::StrCat("write ", path, ": only ", written, " bytes"));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<base::UniqueFd> MakeUserNamespace(const IdMapping& mapping) {
  ASSIGN_OR_RETURN(Resident resident, Resident::Start());
  RETURN_IF_ERROR(WriteMap(resident.Path("uid_map"), mapping.uids));
  RETURN_IF_ERROR(WriteMap(resident.Path("gid_map"), mapping.gids));
  return base::OpenFile(resident.Path("ns/user"), O_RDONLY);
}

}  // namespace lazyblob::fuse::internal
