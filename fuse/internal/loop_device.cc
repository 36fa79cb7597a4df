#include "fuse/internal/loop_device.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::fuse::internal {
namespace {

// Others take free devices too: between asking for one and getting it, it may be theirs.
constexpr int kTries = 64;
constexpr uint32_t kSectorBytes = 512;

}  // namespace

absl::StatusOr<LoopDevice> AttachLoop(int backing, bool direct) {
  ASSIGN_OR_RETURN(base::UniqueFd control, base::OpenFile("/dev/loop-control", O_RDWR));
  for (int i = 0; i < kTries; ++i) {
    int number = ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) return base::ErrnoStatus(errno, "find a free loop device");
    LoopDevice device;
    device.path = absl::StrCat("/dev/loop", number);
    ASSIGN_OR_RETURN(device.fd, base::OpenFile(device.path, O_RDONLY));
    loop_config config{};
    config.fd = static_cast<uint32_t>(backing);
    config.block_size = kSectorBytes;
    config.info.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
    if (direct) config.info.lo_flags |= LO_FLAGS_DIRECT_IO;
    if (ioctl(device.fd.get(), LOOP_CONFIGURE, &config) != 0) {
      if (errno == EBUSY) continue;
      if (errno == EINVAL && direct) {
        direct = false;
        continue;
      }
      return base::ErrnoStatus(errno, absl::StrCat("set up ", device.path));
    }
    struct stat st;
    if (fstat(device.fd.get(), &st) != 0) return base::ErrnoStatus(errno, absl::StrCat("stat ", device.path));
    device.bdi = absl::StrCat(major(st.st_rdev), ":", minor(st.st_rdev));
    return device;
  }
  return absl::ResourceExhaustedError("no loop device stays free long enough");
}

}  // namespace lazyblob::fuse::internal
