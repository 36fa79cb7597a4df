#include "tests/support/power_disk.h"

#include <fcntl.h>
#include <linux/types.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::support {
namespace {

// XFS_IOC_GOINGDOWN, which ext4 knows too, and its flag for "write nothing more, the journal neither".
constexpr unsigned long kGoingDown = _IOR('X', 125, __u32);
constexpr __u32 kNoLogFlush = 2;
constexpr off_t kSize = 400 << 20;

absl::Status Run(const std::string& command) {
  if (std::system((command + " >/dev/null").c_str()) == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("failed: ", command));
}

}  // namespace

PowerDisk::~PowerDisk() {
  if (!path_.empty()) umount2(path_.c_str(), MNT_DETACH);
}

absl::Status PowerDisk::Make(const std::string& directory, const std::string& file_system) {
  if (unshare(CLONE_NEWNS) != 0 || mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    return base::ErrnoStatus(errno, "a mount namespace");
  }
  image_ = directory + "/image";
  path_ = directory + "/disk";
  RETURN_IF_ERROR(base::MakeDirectories(path_));
  ASSIGN_OR_RETURN(base::UniqueFd file, base::OpenFile(image_, O_RDWR | O_CREAT));
  if (ftruncate(file.get(), kSize) != 0) return base::ErrnoStatus(errno, image_);
  RETURN_IF_ERROR(Run(absl::StrCat("mkfs.", file_system, " -q ", image_)));
  return Mount();
}

absl::Status PowerDisk::Mount() { return Run(absl::StrCat("mount -o loop ", image_, " ", path_)); }

absl::Status PowerDisk::CutPower() {
  if (cut_) return absl::OkStatus();
  ASSIGN_OR_RETURN(base::UniqueFd top, base::OpenFile(path_, O_RDONLY | O_DIRECTORY));
  __u32 flag = kNoLogFlush;
  if (ioctl(top.get(), kGoingDown, &flag) != 0) return base::ErrnoStatus(errno, path_);
  cut_ = true;
  return absl::OkStatus();
}

absl::Status PowerDisk::Restart() {
  if (umount(path_.c_str()) != 0) return base::ErrnoStatus(errno, path_);
  cut_ = false;
  return Mount();
}

}  // namespace lazyblob::support
