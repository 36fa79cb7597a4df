#include "fuse/internal/unanswered.h"

#include <linux/fuse.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/fault.h"
#include "base/status.h"
#include "fuse/internal/probe.h"
#include "fuse/internal/protocol.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr uint64_t kIdStep = 2;  // odd ids are those of interrupts
constexpr uint64_t kReach = uint64_t{1} << 20;

ssize_t Send(int device, const fuse_out_header& header) {
  ssize_t written;
  do {
    written = write(device, &header, sizeof header);
  } while (written < 0 && (errno == EINTR || errno == EAGAIN));
  return written;
}

}  // namespace

absl::Status AskAgain(int device) {
  fuse_out_header header{};
  header.len = sizeof header;
  header.error = kNotifyResend;
  if (!base::FaultPoint("fuse.no_resend").ok()) {
    errno = EINVAL;
  } else if (Send(device, header) >= 0) {
    return absl::OkStatus();
  }
  if (errno == EINVAL)
    return absl::FailedPreconditionError("this kernel cannot send requests again (Linux < 6.9)");
  return base::ErrnoStatus(errno, "asking for unanswered requests again");
}

void FailOlder(int device, uint64_t unique) {
  const uint64_t end = unique & ~uint64_t{1};
  const uint64_t reach = kReach * kIdStep;
  fuse_out_header header{};
  header.len = sizeof header;
  header.error = -EIO;
  for (header.unique = std::max(kIdStep, end > reach ? end - reach : 0); header.unique < end;
       header.unique += kIdStep) {
    Send(device, header);  // ENOENT: nobody waits for it
  }
}

bool KernelForgetsRequests() {
  utsname name{};
  return !base::FaultPoint("fuse.no_resend").ok() ||
         (uname(&name) == 0 && !KernelAtLeast(name.release, 6, 9, 0));
}

}  // namespace lazyblob::fuse::internal
