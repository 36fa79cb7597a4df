#include "tests/layer/erofs_mount.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::layer {
namespace {

// The kernel's own words about what failed.
absl::Status ContextError(int context, absl::string_view what) {
  const int error = errno;
  std::string log(4096, '\0');
  const ssize_t size = ::read(context, log.data(), log.size());
  return base::ErrnoStatus(
      error, absl::StrCat(what, " (", size > 0 ? log.substr(0, static_cast<size_t>(size)) : "", ")"));
}

}  // namespace

bool MayMountErofs(std::string* why_not) {
  if (::geteuid() != 0) {
    *why_not = "mounting needs root";
    return false;
  }
  utsname name{};
  ::uname(&name);
  int major = 0;
  int minor = 0;
  std::sscanf(name.release, "%d.%d", &major, &minor);
  if (major < 6 || (major == 6 && minor < 13)) {
    *why_not = absl::StrCat("Linux ", name.release, " does not mount EROFS from files");
    return false;
  }
  return true;
}

TestMount::~TestMount() {
  if (mounted_) ::umount2(directory_.c_str(), MNT_DETACH);
}

absl::Status TestMount::Attach(int context) {
  if (::fsconfig(context, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
    return ContextError(context, "create");
  base::UniqueFd mount(::fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV));
  if (!mount.valid()) return ContextError(context, "fsmount");
  if (::move_mount(mount.get(), "", AT_FDCWD, directory_.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0) {
    return base::ErrnoStatus(errno, "move_mount");
  }
  mounted_ = true;
  return absl::OkStatus();
}

absl::Status TestMount::MountErofs(const std::string& image, const std::string& data) {
  RETURN_IF_ERROR(base::MakeDirectories(directory_));
  ASSIGN_OR_RETURN(base::UniqueFd device, base::OpenFile(data, O_RDONLY));
  base::UniqueFd context(::fsopen("erofs", FSOPEN_CLOEXEC));
  if (!context.valid()) return base::ErrnoStatus(errno, "fsopen erofs");
  const std::string device_path = absl::StrCat("/proc/self/fd/", device.get());
  if (::fsconfig(context.get(), FSCONFIG_SET_STRING, "source", image.c_str(), 0) != 0 ||
      ::fsconfig(context.get(), FSCONFIG_SET_STRING, "device", device_path.c_str(), 0) != 0) {
    return ContextError(context.get(), "fsconfig");
  }
  return Attach(context.get());
}

absl::Status TestMount::MountOverlay(const std::vector<std::string>& lowers_topmost_first) {
  RETURN_IF_ERROR(base::MakeDirectories(directory_));
  base::UniqueFd context(::fsopen("overlay", FSOPEN_CLOEXEC));
  if (!context.valid()) return base::ErrnoStatus(errno, "fsopen overlay");
  const std::string lowers = absl::StrJoin(lowers_topmost_first, ":");
  if (::fsconfig(context.get(), FSCONFIG_SET_STRING, "source", "overlay", 0) != 0 ||
      ::fsconfig(context.get(), FSCONFIG_SET_STRING, "lowerdir", lowers.c_str(), 0) != 0) {
    return ContextError(context.get(), "fsconfig");
  }
  return Attach(context.get());
}

}  // namespace lazyblob::layer
