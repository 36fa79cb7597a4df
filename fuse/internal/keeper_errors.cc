// KeeperLoop: while no daemon serves for too long, requests get EIO. All that is looked at is the header that
// the kernel writes: what kind of request, and its number.

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "fuse/internal/keeper_loop.h"
#include "fuse/internal/protocol.h"
#include "fuse/internal/unanswered.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr int kAtOnce = 256;  // then the other descriptors have their turn

bool WantsNoAnswer(uint32_t opcode) {
  return opcode == FUSE_FORGET || opcode == FUSE_BATCH_FORGET || opcode == FUSE_INTERRUPT;
}

}  // namespace

void KeeperLoop::BeginErrors() {
  const int device = connection_.device.get();
  const int flags = fcntl(device, F_GETFL);
  if (flags < 0 || fcntl(device, F_SETFL, flags | O_NONBLOCK) != 0) return GiveUp("the FUSE device is lost");
  Say(absl::StrCat("no lazyblobd has served lastingly for ", absl::FormatDuration(options_.error_after),
                   "; until one serves, reads fail with EIO"));
  manager_.Notify("STATUS=no lazyblobd serves: reads fail").IgnoreError();
  answering_errors_ = true;
  request_.resize(kRequestBuffer);
  older_are_lost_ = !AskAgain(device).ok();
}

void KeeperLoop::AnswerErrors() {
  const int device = connection_.device.get();
  for (int i = 0; i < kAtOnce; ++i) {
    const ssize_t size = read(device, request_.data(), request_.size());
    if (size < 0 && (errno == EINTR || errno == ENOENT)) continue;  // ENOENT: it was withdrawn
    if (size < static_cast<ssize_t>(sizeof(fuse_in_header))) {
      if (size < 0 && errno == EAGAIN) return;
      answering_errors_ = false;
      errors_at_ = absl::InfiniteDuration();
      return CheckConnection();
    }
    fuse_in_header request;
    memcpy(&request, request_.data(), sizeof request);
    if (WantsNoAnswer(request.opcode)) continue;
    if (older_are_lost_) FailOlder(device, request.unique);
    older_are_lost_ = false;
    const fuse_out_header answer{sizeof answer, -EIO, request.unique};
    if (write(device, &answer, sizeof answer) < 0) continue;  // nobody waits for it any more
  }
}

// Only a request tells the successor which ids are older, and perhaps nobody sends one for hours.
void KeeperLoop::ProvokeRequest() {
  if (!connection_used_ || !KernelForgetsRequests()) return;
  auto child = RunInChild(connection_.mount.get(), [mount = connection_.mount.get(), number = session_] {
    struct stat status{};
    const std::string name = absl::StrCat("provoked-", number);
    return std::string(fstatat(mount, name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 ? "found" : "");
  });
  if (!child.ok()) Say(std::string(child.status().message()));
}

}  // namespace lazyblob::fuse::internal
