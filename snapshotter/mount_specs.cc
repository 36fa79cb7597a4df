#include "snapshotter/mount_specs.h"

#include <unistd.h>

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"

namespace lazyblob::snapshotter {

std::vector<Lower> VisibleLowers(std::vector<Lower> lowers) {
  std::vector<Lower> visible;
  absl::flat_hash_set<std::string> seen;
  for (Lower& lower : lowers) {
    const bool opaque_root = lower.opaque_root;
    if (seen.insert(lower.path).second) visible.push_back(std::move(lower));
    if (opaque_root) break;
  }
  return visible;
}

std::vector<MountSpec> BuildMounts(const MountParts& parts) {
  if (parts.lowers.empty()) {
    return {{"bind", parts.fs, {parts.writable ? "rw" : "ro", "rbind"}}};
  }
  if (!parts.writable && parts.lowers.size() == 1) {
    return {{"bind", parts.lowers.front(), {"ro", "rbind"}}};
  }
  std::vector<std::string> options;
  if (parts.index_off) options.push_back("index=off");
  if (parts.writable) {
    options.push_back(absl::StrCat("workdir=", parts.work));
    options.push_back(absl::StrCat("upperdir=", parts.fs));
  }
  options.push_back(absl::StrCat("lowerdir=", absl::StrJoin(parts.lowers, ":")));
  return {{"overlay", "overlay", std::move(options)}};
}

bool OverlayHasIndex() { return access("/sys/module/overlay/parameters/index", F_OK) == 0; }

absl::Status CheckRoot(const std::string& root) {
  if (root.empty() || root[0] != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("state directory \"", base::Printable(root), "\": not an absolute path"));
  }
  for (char c : root) {
    if (c == ',' || c == ':' || c == '\\' || c == '"' || static_cast<unsigned char>(c) < 0x20) {
      return absl::InvalidArgumentError(
          absl::StrCat("state directory \"", base::Printable(root),
                       "\": a comma, colon, backslash, quote or control character in it cannot be written "
                       "into mount options; choose another directory"));
    }
  }
  return absl::OkStatus();
}

}  // namespace lazyblob::snapshotter
