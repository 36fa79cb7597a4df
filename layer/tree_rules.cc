#include "layer/internal/tree_rules.h"

#include <sys/stat.h>

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/checked.h"
#include "base/status.h"
#include "layer/internal/erofs_format.h"
#include "layer/layer_index.h"

namespace lazyblob::layer::internal {
namespace {

// Years past 2262 do not fit the nanoseconds in which containerd keeps time.
constexpr int64_t kMaxSeconds = std::numeric_limits<int64_t>::max() / 1'000'000'000;
constexpr uint32_t kMaxLastNanoseconds = std::numeric_limits<int64_t>::max() % 1'000'000'000;

absl::Status Bad(absl::string_view path, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("entry \"", base::Printable(path.substr(0, 512)), "\": ", why));
}

uint32_t TypeBits(EntryType type) {
  switch (type) {
    case EntryType::kRegular:
      return S_IFREG;
    case EntryType::kDirectory:
      return S_IFDIR;
    case EntryType::kSymlink:
      return S_IFLNK;
    case EntryType::kCharDevice:
      return S_IFCHR;
    case EntryType::kBlockDevice:
      return S_IFBLK;
    case EntryType::kFifo:
      return S_IFIFO;
    case EntryType::kHardLink:
      break;
  }
  return 0;
}

// chown(2) leaves the owner alone (root, then) when told -1.
uint32_t Owner(uint32_t id) { return id == std::numeric_limits<uint32_t>::max() ? 0 : id; }

bool Dropped(absl::string_view name, EntryType type) {
  if (FindErofsXattrPrefix(name) == nullptr) return true;
  if (absl::StartsWith(name, "trusted.") || absl::StartsWith(name, "user.overlay.")) return true;
  return absl::StartsWith(name, "user.") && type != EntryType::kRegular && type != EntryType::kDirectory;
}

absl::Status TakeXattrs(absl::string_view path, EntryType type,
                        std::vector<std::pair<std::string, std::string>> from, Inode* inode) {
  std::map<std::string, std::string> kept;  // sorted; of two with one name the later one
  for (auto& [name, value] : from) {
    if (name.size() > kMaxNameBytes || name.find('\0') != std::string::npos) {
      return Bad(path, "an extended attribute's name is longer than 255 bytes or holds a NUL");
    }
    if (Dropped(name, type)) continue;
    if (value.size() > std::numeric_limits<uint16_t>::max()) {
      return Bad(path,
                 absl::StrCat("extended attribute ", base::Printable(name), " is larger than 65535 bytes"));
    }
    kept[std::move(name)] = std::move(value);
  }
  uint64_t total = sizeof(ErofsXattrHeader);
  inode->xattrs.reserve(kept.size());
  for (auto& [name, value] : kept) {
    total += sizeof(ErofsXattrEntry) + name.size() + value.size() + 3;
    inode->xattrs.emplace_back(name, std::move(value));
  }
  if (total > kErofsMaxXattrBytes) return Bad(path, "extended attributes are larger than 64 KiB");
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckName(absl::string_view name) {
  if (name.empty() || name.size() > kMaxNameBytes || name == "." || name == "..") {
    return absl::InvalidArgumentError("a name is empty, \".\", \"..\" or longer than 255 bytes");
  }
  if (name.find('/') != absl::string_view::npos || name.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError("a name holds a slash or a NUL");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<absl::string_view>> CleanPath(absl::string_view path) {
  if (path.size() > kMaxPathBytes) return Bad(path, "the path is longer than 4096 bytes");
  if (path.find('\0') != absl::string_view::npos) return Bad(path, "the path holds a NUL");
  std::vector<absl::string_view> components;
  for (absl::string_view part : absl::StrSplit(path, '/')) {
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      if (components.empty()) return Bad(path, "the path leaves the root directory");
      components.pop_back();
      continue;
    }
    if (part.size() > kMaxNameBytes) return Bad(path, "a name is longer than 255 bytes");
    components.push_back(part);
  }
  if (components.size() > kMaxDepth) return Bad(path, "the path is deeper than 1024 directories");
  return components;
}

absl::Status NormalizeExtents(absl::string_view path, uint64_t size, std::vector<Extent>* extents) {
  size_t kept = 0;
  uint64_t end = 0;
  for (const Extent& extent : *extents) {
    if (extent.length == 0) continue;
    if (extent.file_offset < end || !base::RangeWithin(extent.file_offset, extent.length, size) ||
        !base::RangeWithin(extent.data_offset, extent.length, kMaxDataBytes)) {
      return Bad(path,
                 "runs of data overlap, are out of order, or lie outside the file or the 2 TiB of a layer");
    }
    end = extent.file_offset + extent.length;
    Extent* last = kept > 0 ? &(*extents)[kept - 1] : nullptr;
    if (last != nullptr && last->file_offset + last->length == extent.file_offset &&
        last->data_offset + last->length == extent.data_offset) {
      last->length += extent.length;
    } else {
      (*extents)[kept++] = extent;
    }
  }
  extents->resize(kept);
  return absl::OkStatus();
}

absl::StatusOr<Inode> InodeOf(Entry entry) {
  Inode inode;
  inode.mode = TypeBits(entry.type) | (entry.mode & 07777);
  inode.uid = Owner(entry.uid);
  inode.gid = Owner(entry.gid);
  if (entry.mtime_nanoseconds >= 1'000'000'000) return Bad(entry.path, "the modification time is malformed");
  const bool too_late = entry.mtime_seconds > kMaxSeconds ||
                        (entry.mtime_seconds == kMaxSeconds && entry.mtime_nanoseconds > kMaxLastNanoseconds);
  if (entry.mtime_seconds >= 0 && !too_late) {
    inode.mtime_seconds = entry.mtime_seconds;
    inode.mtime_nanoseconds = entry.mtime_nanoseconds;
  }
  switch (entry.type) {
    case EntryType::kRegular:
      if (entry.size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return Bad(entry.path, "the file is larger than 2^63 bytes");
      }
      inode.size = entry.size;
      inode.extents = std::move(entry.extents);
      RETURN_IF_ERROR(NormalizeExtents(entry.path, inode.size, &inode.extents));
      break;
    case EntryType::kSymlink:
      if (entry.link_target.empty() || entry.link_target.size() > kMaxSymlinkBytes ||
          entry.link_target.find('\0') != std::string::npos) {
        return Bad(entry.path, "the symbolic link's text is empty, longer than 4095 bytes or holds a NUL");
      }
      inode.symlink = std::move(entry.link_target);
      inode.size = inode.symlink.size();
      break;
    case EntryType::kCharDevice:
    case EntryType::kBlockDevice:
      if (entry.device_major > kErofsMaxMajor || entry.device_minor > kErofsMaxMinor) {
        return Bad(entry.path, absl::StrCat("device number ", entry.device_major, ":", entry.device_minor,
                                            " does not exist on Linux"));
      }
      inode.device_major = entry.device_major;
      inode.device_minor = entry.device_minor;
      break;
    case EntryType::kDirectory:
    case EntryType::kFifo:
      break;
    case EntryType::kHardLink:
      return absl::InternalError("a hard link has no inode of its own");
  }
  RETURN_IF_ERROR(TakeXattrs(entry.path, entry.type, std::move(entry.xattrs), &inode));
  return inode;
}

}  // namespace lazyblob::layer::internal
