#include "tests/snapshotter/suite/mounted.h"

#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::snapshotter::suite {
namespace {

constexpr size_t kPage = 4096;  // what mount(2) takes of its last argument

const std::map<std::string, unsigned long>& Flags() {
  static const auto* flags = new std::map<std::string, unsigned long>{{"ro", MS_RDONLY},
                                                                      {"rbind", MS_BIND | MS_REC},
                                                                      {"bind", MS_BIND},
                                                                      {"nodev", MS_NODEV},
                                                                      {"nosuid", MS_NOSUID}};
  return *flags;
}

// As containerd mounts more lower directories than fit a page: relative to the directory they have in common.
absl::Status MountCompacted(const MountSpec& mount_spec, std::vector<std::string> data,
                            const std::string& target, unsigned long flags) {
  std::string common;
  for (std::string& option : data) {
    if (!absl::StartsWith(option, "lowerdir=")) continue;
    std::vector<std::string> lowers = absl::StrSplit(option.substr(9), ':');
    common = lowers.front();
    for (const std::string& lower : lowers) {
      const auto differ = std::mismatch(common.begin(), common.end(), lower.begin(), lower.end());
      common.erase(differ.first, common.end());
    }
    common.resize(common.rfind('/') + 1);
    for (std::string& lower : lowers) lower.erase(0, common.size());
    option = absl::StrCat("lowerdir=", absl::StrJoin(lowers, ":"));
  }
  const std::string text = absl::StrJoin(data, ",");
  if (text.size() >= kPage) return absl::InvalidArgumentError("the options do not fit a page");
  absl::Status status;
  std::thread elsewhere([&] {  // a thread with a working directory of its own
    if (unshare(CLONE_FS) != 0 || chdir(common.c_str()) != 0 ||
        mount(mount_spec.source.c_str(), target.c_str(), mount_spec.type.c_str(), flags, text.c_str()) != 0) {
      status = base::ErrnoStatus(errno, absl::StrCat("mount ", mount_spec.type, " in ", common));
    }
  });
  elsewhere.join();
  return status;
}

absl::Status MountOne(const MountSpec& mount_spec, const std::string& target) {
  unsigned long flags = 0;
  std::vector<std::string> data;
  for (const std::string& option : mount_spec.options) {
    auto known = Flags().find(option);
    if (known != Flags().end()) {
      flags |= known->second;
    } else if (option != "rw") {
      data.push_back(option);
    }
  }
  std::string text = absl::StrJoin(data, ",");
  if (text.size() >= kPage) return MountCompacted(mount_spec, data, target, flags);
  const bool bind = (flags & MS_BIND) != 0;
  if (mount(mount_spec.source.c_str(), target.c_str(), mount_spec.type.c_str(),
            bind ? flags & ~MS_RDONLY : flags, text.c_str()) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("mount ", mount_spec.type, " with ", text));
  }
  if (bind && (flags & MS_RDONLY) != 0 &&
      mount("", target.c_str(), "", MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr) != 0) {
    return base::ErrnoStatus(errno, "remount read-only");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status OwnMountNamespace() {
  if (unshare(CLONE_NEWNS) != 0) return base::ErrnoStatus(errno, "unshare");
  if (mount("", "/", "", MS_REC | MS_PRIVATE, nullptr) != 0) return base::ErrnoStatus(errno, "make private");
  return absl::OkStatus();
}

absl::StatusOr<Mounted> Mounted::At(const std::string& target, const std::vector<MountSpec>& mounts) {
  if (mounts.empty()) return absl::InvalidArgumentError("no mounts");
  RETURN_IF_ERROR(base::MakeDirectories(target));
  Mounted mounted("");
  for (const MountSpec& one : mounts) {
    RETURN_IF_ERROR(MountOne(one, target));
    mounted.target_ = target;
  }
  return mounted;
}

absl::Status Mounted::Unmount() {
  if (target_.empty()) return absl::OkStatus();
  if (umount2(target_.c_str(), UMOUNT_NOFOLLOW) != 0) return base::ErrnoStatus(errno, "umount " + target_);
  target_.clear();
  return absl::OkStatus();
}

Mounted::~Mounted() {
  if (!target_.empty()) umount2(target_.c_str(), MNT_DETACH);
}

}  // namespace lazyblob::snapshotter::suite
