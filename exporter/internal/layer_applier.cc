#include "exporter/internal/layer_applier.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status.h"

namespace lazyblob::exporter::internal {
namespace {

using layer::Entry;
using layer::EntryType;

constexpr absl::string_view kWhiteoutPrefix = ".wh.";
constexpr absl::string_view kMetaPrefix = ".wh..wh.";
constexpr absl::string_view kOpaqueMarker = ".wh..wh..opq";
constexpr size_t kMaxPath = 4096;
constexpr size_t kMaxDepth = 1024;
constexpr int kMaxLinks = 255;
constexpr int64_t kMaxSeconds = INT64_MAX / 1'000'000'000;  // 2262-04-11, the end of Go's clock

absl::Status Bad(absl::string_view why) { return absl::InvalidArgumentError(why); }

absl::StatusOr<std::vector<std::string>> CleanPath(absl::string_view path) {
  std::vector<std::string> parts;
  if (path.size() > kMaxPath) return Bad("a path of more than 4096 bytes");
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      if (parts.empty()) return Bad("a path that leaves the root");
      parts.pop_back();
      continue;
    }
    if (absl::StrContains(part, '\0') || part.size() > 255) return Bad("a name that no file can have");
    parts.emplace_back(part);
  }
  return parts;
}

std::string Join(absl::string_view directory, absl::string_view name) {
  return directory.empty() ? std::string(name) : absl::StrCat(directory, "/", name);
}

// A directory below `root` by a path without links.
base::UniqueFd OpenExact(int root, const std::string& path) {
  open_how how{};
  how.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
  long fd = -1;
  do {
    fd = ::syscall(SYS_openat2, root, path.empty() ? "." : path.c_str(), &how, sizeof how);
  } while (fd < 0 && (errno == EINTR || errno == EAGAIN));
  return base::UniqueFd(static_cast<int>(fd));
}

absl::StatusOr<base::UniqueFd> OpenChild(int directory, const std::string& name, int flags) {
  base::UniqueFd fd(::openat(directory, name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC));
  if (!fd.valid()) return base::ErrnoStatus(errno, "open");
  return fd;
}

absl::StatusOr<std::string> ReadLinkAt(int directory, const std::string& name) {
  std::string target(kMaxPath, '\0');
  const ssize_t size = ::readlinkat(directory, name.c_str(), target.data(), target.size());
  if (size < 0) return base::ErrnoStatus(errno, "readlink");
  target.resize(static_cast<size_t>(size));
  return target;
}

absl::StatusOr<std::vector<std::string>> NamesIn(int directory) {
  const int copy = ::openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (copy < 0) return base::ErrnoStatus(errno, "open");
  DIR* stream = ::fdopendir(copy);
  if (stream == nullptr) {
    const int error = errno;
    ::close(copy);
    return base::ErrnoStatus(error, "list");
  }
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(stream)) {
    const absl::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  const int error = errno;
  ::closedir(stream);
  if (error != 0) return base::ErrnoStatus(error, "list");
  return names;
}

timespec TimeOf(const Entry& entry) {
  timespec time{};
  if (entry.mtime_seconds < 0 || entry.mtime_seconds >= kMaxSeconds) return time;
  time.tv_sec = entry.mtime_seconds;
  time.tv_nsec = static_cast<long>(entry.mtime_nanoseconds);
  return time;
}

bool KeepXattr(absl::string_view name, EntryType type) {
  if (absl::StartsWith(name, "security.") || absl::StartsWith(name, "system.")) return true;
  if (!absl::StartsWith(name, "user.") || absl::StartsWith(name, "user.overlay.")) return false;
  return type == EntryType::kRegular || type == EntryType::kDirectory;
}

}  // namespace

absl::Status LayerApplier::Feed(absl::Span<const uint8_t> bytes) {
  RETURN_IF_ERROR(failed_);
  const uint64_t offset = position_;
  position_ += bytes.size();
  auto feed = [&]() -> absl::Status {
    RETURN_IF_ERROR(follower_.Feed(bytes, [&](Entry entry, uint64_t) -> absl::Status {
      RETURN_IF_ERROR(WriteData(bytes, offset));
      RETURN_IF_ERROR(End());
      std::string path = base::Printable(absl::string_view(entry.path).substr(0, 512));
      return base::Annotate(Begin(std::move(entry)), absl::StrCat("entry ", path));
    }));
    return WriteData(bytes, offset);
  };
  return failed_ = feed();
}

absl::Status LayerApplier::Finish() {
  RETURN_IF_ERROR(failed_);
  auto finish = [&]() -> absl::Status {
    RETURN_IF_ERROR(follower_.Finish());
    RETURN_IF_ERROR(End());
    for (const auto& [path, time] : times_) {
      const base::UniqueFd fd = OpenExact(root_, path);
      if (!fd.valid()) continue;  // has gone since
      const timespec both[2] = {time, time};
      if (::futimens(fd.get(), both) != 0) {
        return base::ErrnoStatus(errno, absl::StrCat("set the time of ", base::Printable(path)));
      }
    }
    return absl::OkStatus();
  };
  failed_ = finish();
  if (!failed_.ok()) return failed_;
  failed_ = absl::FailedPreconditionError("the layer is unpacked already");
  return absl::OkStatus();
}

absl::Status LayerApplier::Begin(Entry entry) {
  ++entries_;
  ASSIGN_OR_RETURN(Parts parts, CleanPath(entry.path));
  if (parts.empty()) return Root(entry);
  const std::string name = parts.back();
  if (name != kOpaqueMarker) {
    for (const std::string& part : parts) {
      if (absl::StartsWith(part, kMetaPrefix)) return absl::OkStatus();  // aufs's own
    }
  }
  parts.pop_back();
  if (absl::StartsWith(name, kWhiteoutPrefix)) return Whiteout(parts, name);
  ASSIGN_OR_RETURN(const DirectoryPtr parent, OpenDirectory(parts, /*make=*/true));
  const std::string path = Join(parent->path, name);
  if (path.size() > kMaxPath || static_cast<size_t>(std::count(path.begin(), path.end(), '/')) > kMaxDepth) {
    return Bad("a path of more than 4096 bytes, or more than 1024 directories deep");
  }
  RETURN_IF_ERROR(Touch(parent->fd.get(), parent->path));
  RETURN_IF_ERROR(Place(entry, *parent, name, path));
  brought_.insert(path);
  if (entry.type == EntryType::kRegular) {
    current_ = std::move(entry);
    next_extent_ = 0;
  }
  return absl::OkStatus();
}

absl::Status LayerApplier::WriteData(absl::Span<const uint8_t> bytes, uint64_t offset) {
  if (!file_.valid()) return absl::OkStatus();
  const uint64_t end = offset + bytes.size();
  while (next_extent_ < current_.extents.size()) {
    const layer::Extent& extent = current_.extents[next_extent_];
    const uint64_t extent_end = extent.data_offset + extent.length;
    const uint64_t from = std::max(offset, extent.data_offset);
    const uint64_t to = std::min(end, extent_end);
    if (from < to) {
      const absl::Status written =
          base::PwriteFull(file_.get(), extent.file_offset + (from - extent.data_offset),
                           bytes.subspan(from - offset, to - from));
      if (!written.ok()) {
        return base::Annotate(written, absl::StrCat("entry ", base::Printable(current_.path.substr(0, 512))));
      }
    }
    if (extent_end > end) break;
    ++next_extent_;
  }
  return absl::OkStatus();
}

absl::Status LayerApplier::End() {
  if (!file_.valid()) return absl::OkStatus();
  auto end = [&]() -> absl::Status {
    if (current_.size > static_cast<uint64_t>(INT64_MAX)) return Bad("a file of more than 2^63-1 bytes");
    if (::ftruncate(file_.get(), static_cast<off_t>(current_.size)) != 0)
      return base::ErrnoStatus(errno, "resize");
    return SetMetadata(file_.get(), /*path_only=*/false, current_);
  };
  const absl::Status status = end();
  file_.Reset();
  return base::Annotate(status, absl::StrCat("entry ", base::Printable(current_.path.substr(0, 512))));
}

absl::StatusOr<LayerApplier::DirectoryPtr> LayerApplier::OpenDirectory(const Parts& parts, bool make) {
  std::string path = absl::StrJoin(parts, "/");
  if (cached_ != nullptr && cached_key_ == path) return cached_;
  DirectoryPtr directory;
  base::UniqueFd fd = OpenExact(root_, path);
  if (fd.valid()) {
    directory = std::make_shared<Directory>();
    directory->fd = std::move(fd);
    directory->path = path;
  } else {
    ASSIGN_OR_RETURN(directory, Walk(parts, make));
  }
  cached_key_ = std::move(path);
  cached_ = directory;
  return directory;
}

// Name by name, nothing but directories opened, links read and followed here: it cannot leave the root, for
// ".." goes back on the way that was come.
absl::StatusOr<LayerApplier::DirectoryPtr> LayerApplier::Walk(const Parts& parts, bool make) {
  auto start = std::make_shared<Directory>();
  start->fd = OpenExact(root_, "");
  if (!start->fd.valid()) return base::ErrnoStatus(errno, "open the root");
  std::vector<DirectoryPtr> way = {start};
  std::deque<std::string> left(parts.begin(), parts.end());
  int links = 0;
  while (!left.empty()) {
    const std::string name = std::move(left.front());
    left.pop_front();
    if (name.empty() || name == ".") continue;
    if (name == "..") {
      if (way.size() > 1) way.pop_back();
      continue;
    }
    const Directory& here = *way.back();
    if (way.size() > kMaxDepth || here.path.size() + name.size() > kMaxPath)
      return Bad("a path too deep or long");
    struct stat st{};
    if (::fstatat(here.fd.get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
      if (errno != ENOENT) return base::ErrnoStatus(errno, "stat");
      if (!make)
        return absl::NotFoundError(absl::StrCat("no directory ", base::Printable(Join(here.path, name))));
      ASSIGN_OR_RETURN(DirectoryPtr made, MakeImplied(here, name));
      way.push_back(std::move(made));
    } else if (S_ISLNK(st.st_mode)) {
      if (++links > kMaxLinks) return base::ErrnoStatus(ELOOP, "look up its directory");
      ASSIGN_OR_RETURN(const std::string target, ReadLinkAt(here.fd.get(), name));
      if (absl::StartsWith(target, "/")) way.resize(1);
      const std::vector<std::string> names = absl::StrSplit(target, '/');
      left.insert(left.begin(), names.begin(), names.end());
      if (left.size() > kMaxPath) return Bad("links that make its path too long");
    } else if (S_ISDIR(st.st_mode)) {
      auto next = std::make_shared<Directory>();
      ASSIGN_OR_RETURN(next->fd, OpenChild(here.fd.get(), name, O_RDONLY | O_DIRECTORY));
      next->path = Join(here.path, name);
      way.push_back(std::move(next));
    } else {
      return Bad(absl::StrCat(base::Printable(Join(here.path, name)), " is no directory"));
    }
  }
  return way.back();
}

// As mounted layers show directories that no layer has an entry for.
absl::StatusOr<LayerApplier::DirectoryPtr> LayerApplier::MakeImplied(const Directory& parent,
                                                                     const std::string& name) {
  RETURN_IF_ERROR(Touch(parent.fd.get(), parent.path));
  if (::mkdirat(parent.fd.get(), name.c_str(), 0755) != 0) return base::ErrnoStatus(errno, "mkdir");
  auto made = std::make_shared<Directory>();
  ASSIGN_OR_RETURN(made->fd, OpenChild(parent.fd.get(), name, O_RDONLY | O_DIRECTORY));
  // Not the group of a set-group-id directory.
  if (::fchown(made->fd.get(), geteuid(), getegid()) != 0) return base::ErrnoStatus(errno, "chown");
  if (::fchmod(made->fd.get(), 0755) != 0) return base::ErrnoStatus(errno, "chmod");
  made->path = Join(parent.path, name);
  times_[made->path] = timespec{};
  return made;
}

absl::Status LayerApplier::Touch(int directory, const std::string& path) {
  const auto [found, added] = times_.try_emplace(path);
  if (!added) return absl::OkStatus();
  struct stat st{};
  if (::fstat(directory, &st) != 0) return base::ErrnoStatus(errno, "stat");
  found->second = st.st_mtim;
  return absl::OkStatus();
}

absl::Status LayerApplier::Root(const Entry& entry) {
  if (entry.type != EntryType::kDirectory) return Bad("the root is something else than a directory");
  RETURN_IF_ERROR(SetMetadata(root_, /*path_only=*/false, entry));
  times_[""] = TimeOf(entry);
  return absl::OkStatus();
}

absl::Status LayerApplier::Whiteout(const Parts& parent, absl::string_view base) {
  const std::string name(base.substr(kWhiteoutPrefix.size()));
  if (base != kOpaqueMarker && (name.empty() || name == "." || name == "..")) {
    return Bad("a whiteout without a name to delete");
  }
  absl::StatusOr<DirectoryPtr> directory = OpenDirectory(parent, /*make=*/false);
  // Nothing there to delete, or a file in the way.
  if (absl::IsNotFound(directory.status()) || absl::IsInvalidArgument(directory.status()))
    return absl::OkStatus();
  RETURN_IF_ERROR(directory.status());
  RETURN_IF_ERROR(Touch((*directory)->fd.get(), (*directory)->path));
  const DirectoryPtr held = *directory;
  cached_ = nullptr;
  if (base == kOpaqueMarker) return RemoveChildren(held->fd.get(), held->path, /*spare=*/true);
  return Remove(held->fd.get(), name, Join(held->path, name), /*spare=*/true);
}

absl::Status LayerApplier::Place(const Entry& entry, const Directory& parent, const std::string& name,
                                 const std::string& path) {
  struct stat st{};
  const bool exists = ::fstatat(parent.fd.get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0;
  if (!exists && errno != ENOENT) return base::ErrnoStatus(errno, "stat");
  if (entry.type == EntryType::kHardLink) return HardLink(entry, parent, name, path);
  if (exists && entry.type == EntryType::kDirectory && S_ISDIR(st.st_mode)) {
    return UpdateDirectory(entry, parent, name, path);
  }
  if (exists) RETURN_IF_ERROR(Remove(parent.fd.get(), name, path, /*spare=*/false));
  RETURN_IF_ERROR(Create(entry, parent, name));
  if (entry.type == EntryType::kDirectory) times_[path] = TimeOf(entry);
  return absl::OkStatus();
}

absl::Status LayerApplier::UpdateDirectory(const Entry& entry, const Directory& parent,
                                           const std::string& name, const std::string& path) {
  ASSIGN_OR_RETURN(const base::UniqueFd fd, OpenChild(parent.fd.get(), name, O_RDONLY | O_DIRECTORY));
  times_[path] = TimeOf(entry);
  return SetMetadata(fd.get(), /*path_only=*/false, entry);
}

// To the name, also if that is a symbolic link; with what the target has of metadata.
absl::Status LayerApplier::HardLink(const Entry& entry, const Directory& parent, const std::string& name,
                                    const std::string& path) {
  const std::string to = absl::StrCat("hard link to ", base::Printable(entry.link_target.substr(0, 512)));
  absl::StatusOr<Parts> parts = CleanPath(entry.link_target);
  if (!parts.ok()) return base::Annotate(parts.status(), to);
  if (parts->empty()) return Bad(absl::StrCat(to, ": that is the root"));
  const std::string target = std::move(parts->back());
  parts->pop_back();
  const DirectoryPtr cached = cached_;  // the parent's: the lookup of the target must not push it out
  const std::string cached_key = cached_key_;
  const absl::StatusOr<DirectoryPtr> directory = OpenDirectory(*parts, /*make=*/false);
  cached_ = cached;
  cached_key_ = cached_key;
  if (!directory.ok()) return base::Annotate(directory.status(), to);
  struct stat st{};
  if (::fstatat((*directory)->fd.get(), target.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
    return base::ErrnoStatus(errno, to);
  }
  if (S_ISDIR(st.st_mode)) return Bad(absl::StrCat(to, ": that is a directory"));
  if (Join((*directory)->path, target) == path) return Bad(absl::StrCat(to, ": to itself"));
  RETURN_IF_ERROR(Remove(parent.fd.get(), name, path, /*spare=*/false));
  if (::linkat((*directory)->fd.get(), target.c_str(), parent.fd.get(), name.c_str(), 0) != 0) {
    return base::ErrnoStatus(errno, to);
  }
  return absl::OkStatus();
}

absl::Status LayerApplier::Create(const Entry& entry, const Directory& parent, const std::string& name) {
  const int at = parent.fd.get();
  int result = 0;
  switch (entry.type) {
    case EntryType::kRegular:
      file_ = base::UniqueFd(
          ::openat(at, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
      return file_.valid() ? absl::OkStatus() : base::ErrnoStatus(errno, "create");  // the rest when it ends
    case EntryType::kDirectory: {
      if (::mkdirat(at, name.c_str(), 0700) != 0) return base::ErrnoStatus(errno, "mkdir");
      ASSIGN_OR_RETURN(const base::UniqueFd fd, OpenChild(at, name, O_RDONLY | O_DIRECTORY));
      return SetMetadata(fd.get(), /*path_only=*/false, entry);
    }
    case EntryType::kSymlink:
      if (absl::StrContains(entry.link_target, '\0')) return Bad("a symbolic link with NUL in its target");
      result = ::symlinkat(entry.link_target.c_str(), at, name.c_str());
      break;
    case EntryType::kFifo:
      result = ::mkfifoat(at, name.c_str(), 0600);
      break;
    case EntryType::kCharDevice:
    case EntryType::kBlockDevice:
      result = ::mknodat(at, name.c_str(), (entry.type == EntryType::kCharDevice ? S_IFCHR : S_IFBLK) | 0600U,
                         makedev(entry.device_major, entry.device_minor));
      break;
    case EntryType::kHardLink:
      return absl::InternalError("a hard link is not created");
  }
  if (result != 0) return base::ErrnoStatus(errno, "create");
  ASSIGN_OR_RETURN(const base::UniqueFd fd, OpenChild(at, name, O_PATH));
  return SetMetadata(fd.get(), /*path_only=*/true, entry);
}

absl::Status LayerApplier::Remove(int directory, const std::string& name, const std::string& path,
                                  bool spare) {
  struct stat st{};
  if (::fstatat(directory, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
    return errno == ENOENT ? absl::OkStatus() : base::ErrnoStatus(errno, "stat");
  }
  const bool brought = spare && brought_.contains(path);
  cached_ = nullptr;
  if (!S_ISDIR(st.st_mode)) {
    if (brought) return absl::OkStatus();
    brought_.erase(path);
    if (::unlinkat(directory, name.c_str(), 0) != 0 && errno != ENOENT)
      return base::ErrnoStatus(errno, "unlink");
    return absl::OkStatus();
  }
  {
    ASSIGN_OR_RETURN(const base::UniqueFd fd, OpenChild(directory, name, O_RDONLY | O_DIRECTORY));
    if (brought) RETURN_IF_ERROR(Touch(fd.get(), path));
    RETURN_IF_ERROR(RemoveChildren(fd.get(), path, spare));
  }
  if (brought) return absl::OkStatus();
  brought_.erase(path);
  if (::unlinkat(directory, name.c_str(), AT_REMOVEDIR) == 0 || errno == ENOENT) return absl::OkStatus();
  if (spare && (errno == ENOTEMPTY || errno == EEXIST))
    return absl::OkStatus();  // this layer has something in it
  return base::ErrnoStatus(errno, "rmdir");
}

absl::Status LayerApplier::RemoveChildren(int directory, const std::string& path, bool spare) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(directory));
  for (const std::string& name : names) RETURN_IF_ERROR(Remove(directory, name, Join(path, name), spare));
  return absl::OkStatus();
}

absl::Status LayerApplier::SetMetadata(int fd, bool path_only, const Entry& entry) {
  // In this order: a change of owner drops set-id bits and capabilities.
  if (::fchownat(fd, "", entry.uid, entry.gid, AT_EMPTY_PATH) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("give it to ", entry.uid, ":", entry.gid));
  }
  RETURN_IF_ERROR(SetXattrs(fd, path_only, entry));
  if (entry.type != EntryType::kSymlink) {
    const mode_t mode = entry.mode & 07777;
    const int result =
        path_only ? ::chmod(absl::StrCat("/proc/self/fd/", fd).c_str(), mode) : ::fchmod(fd, mode);
    if (result != 0) return base::ErrnoStatus(errno, "chmod");
  }
  const timespec both[2] = {TimeOf(entry), TimeOf(entry)};
  const int result = path_only ? ::utimensat(fd, "", both, AT_EMPTY_PATH) : ::futimens(fd, both);
  return result == 0 ? absl::OkStatus() : base::ErrnoStatus(errno, "set its time");
}

absl::Status LayerApplier::SetXattrs(int fd, bool path_only, const Entry& entry) {
  if (!path_only) RETURN_IF_ERROR(ClearXattrs(fd));
  for (const auto& [name, value] : entry.xattrs) {
    if (!KeepXattr(name, entry.type)) continue;
    // The magic link leads to the inode itself, also if that is a symbolic link.
    const std::string self = absl::StrCat("/proc/self/fd/", fd);
    const int result = path_only ? ::setxattr(self.c_str(), name.c_str(), value.data(), value.size(), 0)
                                 : ::fsetxattr(fd, name.c_str(), value.data(), value.size(), 0);
    if (result == 0) continue;
    if (errno == EOPNOTSUPP) {
      ++xattrs_skipped_;
    } else {
      return base::ErrnoStatus(errno, absl::StrCat("set attribute ", base::Printable(name)));
    }
  }
  return absl::OkStatus();
}

// What a lower layer has set, or a directory's default ACL. security.* that the host sets itself stays.
absl::Status LayerApplier::ClearXattrs(int fd) {
  std::string names(64 << 10, '\0');
  const ssize_t size = ::flistxattr(fd, names.data(), names.size());
  if (size < 0) return errno == EOPNOTSUPP ? absl::OkStatus() : base::ErrnoStatus(errno, "list attributes");
  names.resize(static_cast<size_t>(size));
  for (const absl::string_view name : absl::StrSplit(names, '\0', absl::SkipEmpty())) {
    const bool ours = absl::StartsWith(name, "user.") || name == "security.capability" ||
                      absl::StartsWith(name, "system.posix_acl_");
    if (!ours) continue;
    if (::fremovexattr(fd, std::string(name).c_str()) != 0 && errno != ENODATA) {
      return base::ErrnoStatus(errno, absl::StrCat("remove attribute ", base::Printable(name)));
    }
  }
  return absl::OkStatus();
}

}  // namespace lazyblob::exporter::internal
