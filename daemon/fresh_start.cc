#include "daemon/fresh_start.h"

#include <sys/mount.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status.h"
#include "daemon/mount_table.h"

namespace lazyblob::daemon {
namespace {

constexpr uint64_t kMaxMountInfo = 16 << 20;

// The kernel writes space, tab, newline and backslash as three octal digits.
std::string Unescaped(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto digit = [&](size_t at) { return text[at] >= '0' && text[at] <= '7'; };
    if (text[i] == '\\' && i + 3 < text.size() && digit(i + 1) && digit(i + 2) && digit(i + 3)) {
      const int code = (text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0');
      out.push_back(static_cast<char>(code));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

struct Mount {
  std::string device;  // "major:minor"
  std::string directory;
  bool overlay = false;  // of layers of ours
};

std::vector<Mount> ParseMounts(absl::string_view mountinfo, absl::string_view points) {
  std::vector<Mount> mounts;
  for (absl::string_view line : absl::StrSplit(mountinfo, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    const auto dash = std::find(words.begin(), words.end(), "-");
    if (words.size() < 6 || words.end() - dash < 4) continue;
    Mount mount;
    mount.device = std::string(words[2]);
    mount.directory = Unescaped(words[4]);
    mount.overlay = dash[1] == "overlay" && dash[2] == "lazyblob" &&
                    absl::StrContains(Unescaped(dash[3]), absl::StrCat("=", points));
    mounts.push_back(std::move(mount));
  }
  return mounts;
}

// As mountinfo has it.
std::string Real(const std::string& path) {
  const std::unique_ptr<char, decltype(&free)> real(realpath(path.c_str(), nullptr), &free);
  return real == nullptr ? path : real.get();
}

}  // namespace

std::vector<std::string> LeftMounts(absl::string_view mountinfo, absl::string_view root,
                                    const std::set<std::string>& directories) {
  const std::string points = absl::StrCat(root, "/m/");
  const std::vector<Mount> mounts = ParseMounts(mountinfo, points);
  std::set<std::string> layers;
  for (const Mount& mount : mounts) {
    if (absl::StartsWith(mount.directory, points)) layers.insert(mount.device);
  }
  std::vector<std::string> left;
  for (const Mount& mount : mounts) {
    const bool shows_layer = directories.contains(mount.directory) && layers.contains(mount.device);
    if (mount.overlay || shows_layer || absl::StartsWith(mount.directory, points)) {
      left.push_back(mount.directory);
    }
  }
  std::reverse(left.begin(), left.end());
  return left;
}

absl::StatusOr<size_t> DetachLeftMounts(const std::string& root) {
  ASSIGN_OR_RETURN(const std::string mountinfo, base::ReadFile("/proc/self/mountinfo", kMaxMountInfo));
  std::set<std::string> directories;
  absl::StatusOr<std::vector<MountedImage>> table = LoadMountTable(root + "/mounts.json");
  if (table.ok()) {
    for (const MountedImage& image : *table) directories.insert(image.directory);
  }
  const std::vector<std::string> left = LeftMounts(mountinfo, Real(root), directories);
  absl::Status status;
  for (const std::string& directory : left) {
    if (umount2(directory.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0 && errno != EINVAL && errno != ENOENT) {
      status.Update(base::ErrnoStatus(errno, absl::StrCat("detach ", base::Printable(directory))));
    }
  }
  if (!status.ok()) return status;
  return left.size();
}

absl::Status CheckMountsAreSeen(const absl::StatusOr<MountNamespace>& own,
                                const absl::StatusOr<MountNamespace>& containerd,
                                const absl::StatusOr<MountNamespace>& machine, const std::string& root) {
  const absl::StatusOr<MountNamespace>& other = containerd.ok() ? containerd : machine;
  if (!own.ok() || !other.ok() || !HasFailure(CheckPropagation(own, other, root))) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "lazyblobd is in a mount namespace of its own: ", containerd.ok() ? "containerd" : "nobody else",
      containerd.ok() ? " does not see" : " sees", " what it mounts below ", root,
      ", containers would find empty directories; take PrivateMounts=, PrivateTmp=, ProtectSystem= and the "
      "like "
      "out of its unit, or, in a container, mount that directory with Bidirectional propagation"));
}

absl::Status CheckMountsAreSeen(const std::string& root, const std::string& containerd_address) {
  return CheckMountsAreSeen(NamespaceOf("/proc/self"), NamespaceBehind(containerd_address),
                            NamespaceOf("/proc/1"), Real(root));
}

}  // namespace lazyblob::daemon
