#include "fuse/internal/probe.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/magic.h>
#include <sys/statfs.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/status.h"
#include "fuse/internal/builtin_image.h"
#include "fuse/internal/child_process.h"
#include "fuse/internal/keeper_protocol.h"
#include "fuse/internal/loop_device.h"
#include "fuse/internal/mount_syscalls.h"

#ifndef XFS_SUPER_MAGIC
#define XFS_SUPER_MAGIC 0x58465342
#endif

namespace lazyblob::fuse::internal {
namespace {

constexpr uid_t kNobody = 65534;
constexpr gid_t kNogroup = 65534;

// What a reader without privileges saw; the first byte of its report.
enum class Sight : char { kWrong = 'w', kZeros = 'z', kError = 'e' };

std::string Report(Sight sight, const std::string& text) {
  return absl::StrCat(std::string(1, static_cast<char>(sight)), text);
}

// -1 and errno, or the number of bytes read.
ssize_t ReadNamed(int mount, const char* name, std::string* out) {
  int fd = openat(mount, name, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  base::UniqueFd file(fd);
  return pread(fd, out->data(), out->size(), 0);
}

std::string ReadAsNobody(int mount, const BuiltinImage& image) {
  if (setgroups(0, nullptr) != 0 || setresgid(kNogroup, kNogroup, kNogroup) != 0 ||
      setresuid(kNobody, kNobody, kNobody) != 0) {
    return Report(Sight::kWrong, absl::StrCat("give up privileges: ", strerror(errno)));
  }
  std::string whole(image.whole.size(), '\0');
  ssize_t n = ReadNamed(mount, "whole", &whole);
  if (n < 0) return Report(Sight::kWrong, absl::StrCat("read by uid 65534: ", strerror(errno)));
  if (whole != image.whole) return Report(Sight::kWrong, "wrong bytes");
  std::string cut(image.cut.size(), '\0');
  n = ReadNamed(mount, "cut", &cut);
  if (n < 0 && errno == EIO) return Report(Sight::kError, "");
  return Report(Sight::kZeros, "");
}

// OK: the mode works; `*direct`: missing data is an error.
absl::Status Look(int mount, const BuiltinImage& image, bool* direct) {
  ASSIGN_OR_RETURN(Child child, RunInChild(mount, [&] { return ReadAsNobody(mount, image); }));
  absl::StatusOr<Packet> packet = ReceivePacket(child.result.get(), /*accept_descriptor=*/false, 0);
  while (waitpid(child.pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  RETURN_IF_ERROR(packet.status());
  if (packet->bytes.empty()) return absl::InternalError("the reading child died");
  auto sight = static_cast<Sight>(packet->bytes[0]);
  if (sight == Sight::kWrong) return absl::UnavailableError(packet->bytes.substr(1));
  *direct = sight == Sight::kError;
  return absl::OkStatus();
}

absl::Status TryErofs(const BuiltinImage& image, absl::string_view release, bool* direct) {
  if (!KernelAtLeast(release, 6, 12, 2)) return absl::UnavailableError("needs Linux 6.12.2 or newer");
  ASSIGN_OR_RETURN(base::UniqueFd meta, base::OpenFile(image.meta_path, O_RDONLY));
  ASSIGN_OR_RETURN(base::UniqueFd data, base::OpenFile(image.data_path, O_RDONLY));
  ASSIGN_OR_RETURN(base::UniqueFd mount,
                   MakeErofsMount(DescriptorPath(meta.get()), DescriptorPath(data.get())));
  return Look(mount.get(), image, direct);
}

absl::Status TryLoop(const BuiltinImage& image, bool* direct) {
  ASSIGN_OR_RETURN(base::UniqueFd meta, base::OpenFile(image.meta_path, O_RDONLY));
  ASSIGN_OR_RETURN(base::UniqueFd data, base::OpenFile(image.data_path, O_RDONLY));
  ASSIGN_OR_RETURN(LoopDevice meta_loop, AttachLoop(meta.get(), /*direct=*/false));
  ASSIGN_OR_RETURN(LoopDevice data_loop, AttachLoop(data.get(), /*direct=*/false));
  ASSIGN_OR_RETURN(base::UniqueFd mount, MakeErofsMount(meta_loop.path, data_loop.path));
  return Look(mount.get(), image, direct);
}

std::string DirectText(bool direct) {
  return direct ? "works, missing data is an error" : "works, but missing data reads as zeros";
}

}  // namespace

bool KernelAtLeast(absl::string_view release, int major, int minor, int patch) {
  constexpr size_t kMaxDigits = 6;
  int numbers[3] = {0, 0, 0};
  for (int i = 0; i < 3; ++i) {
    size_t digits = 0;
    for (; digits < kMaxDigits && digits < release.size() && absl::ascii_isdigit(release[digits]); ++digits) {
      numbers[i] = numbers[i] * 10 + (release[digits] - '0');
    }
    if (i == 0 && digits == 0) return false;
    release.remove_prefix(digits);
    if (!absl::ConsumePrefix(&release, ".")) break;
  }
  return std::make_tuple(numbers[0], numbers[1], numbers[2]) >= std::make_tuple(major, minor, patch);
}

absl::Status CheckStateFileSystem(const std::string& path) {
  struct statfs st;
  if (statfs(path.c_str(), &st) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("state directory ", base::Printable(path)));
  }
  switch (static_cast<unsigned long>(st.f_type)) {
    case EXT4_SUPER_MAGIC:
    case XFS_SUPER_MAGIC:
    case BTRFS_SUPER_MAGIC:
      return absl::OkStatus();
    default:
      return absl::FailedPreconditionError(
          absl::StrCat("state directory ", base::Printable(path), " is on a file system of type 0x",
                       absl::Hex(static_cast<unsigned long>(st.f_type)),
                       "; it must be on ext4, xfs or btrfs (choose it with --root)"));
  }
}

absl::StatusOr<ProbeResult> ProbeModes(const std::string& state_root) {
  RETURN_IF_ERROR(CheckStateFileSystem(state_root));
  std::string directory = absl::StrCat(state_root, "/.probe-XXXXXX");
  if (mkdtemp(directory.data()) == nullptr) {
    return base::ErrnoStatus(errno, absl::StrCat("make a directory in ", base::Printable(state_root)));
  }
  absl::Cleanup remove = [&] { base::RemoveTree(directory).IgnoreError(); };
  ASSIGN_OR_RETURN(BuiltinImage image, WriteBuiltinImage(directory));
  utsname system{};
  uname(&system);

  ProbeResult probe;
  absl::Status erofs = TryErofs(image, system.release, &probe.direct);
  if (erofs.ok()) {
    probe.mode = Mode::kErofs;
    probe.why = absl::StrCat("erofs from files ", DirectText(probe.direct), " (Linux ", system.release, ")");
    return probe;
  }
  std::string tried = absl::StrCat("erofs from files: ", erofs.message());
  absl::Status loop = TryLoop(image, &probe.direct);
  if (loop.ok()) {
    probe.mode = Mode::kLoop;
    probe.why = absl::StrCat(tried, "; erofs on loop devices ", DirectText(probe.direct), " (Linux ",
                             system.release, ")");
    return probe;
  }
  probe.mode = Mode::kFuse;
  probe.direct = false;
  probe.why = absl::StrCat(tried, "; erofs on loop devices: ", loop.message(),
                           "; the FUSE tree remains (Linux ", system.release, ")");
  return probe;
}

}  // namespace lazyblob::fuse::internal
