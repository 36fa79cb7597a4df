#include "fuse/internal/mount_syscalls.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "fuse/mounter.h"
#include "layer/chain_image_name.h"

namespace lazyblob::fuse::internal {
namespace {

constexpr unsigned kReadOnlyAttributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
constexpr size_t kMaxOptionBytes = 255;           // of one fsconfig string
constexpr unsigned kStatxMountIdUnique = 0x4000;  // Linux 6.8; not in this libc
constexpr char kBackingDevices[] = "/sys/class/bdi";

// A mount context: every error is explained with what the kernel logged into it.
class MountContext {
 public:
  static absl::StatusOr<MountContext> Open(const char* type) {
    int fd = fsopen(type, FSOPEN_CLOEXEC);
    if (fd < 0) return base::ErrnoStatus(errno, absl::StrCat("open file system type ", type));
    return MountContext(base::UniqueFd(fd), type);
  }

  absl::Status SetFlag(const char* key) { return Configure(FSCONFIG_SET_FLAG, key, nullptr); }
  absl::Status Set(const char* key, const std::string& value) {
    return Configure(FSCONFIG_SET_STRING, key, value.c_str());
  }
  absl::StatusOr<base::UniqueFd> Mount(unsigned attributes = kReadOnlyAttributes) {
    RETURN_IF_ERROR(Configure(FSCONFIG_CMD_CREATE, nullptr, nullptr));
    int mount = fsmount(fd_.get(), FSMOUNT_CLOEXEC, attributes);
    if (mount < 0) return Error(errno, "fsmount");
    return base::UniqueFd(mount);
  }

 private:
  MountContext(base::UniqueFd fd, const char* type) : fd_(std::move(fd)), type_(type) {}

  absl::Status Configure(unsigned command, const char* key, const char* value) {
    if (fsconfig(fd_.get(), command, key, value, 0) == 0) return absl::OkStatus();
    return Error(errno, key == nullptr ? "create"
                                       : absl::StrCat("option ", key, value ? "=" : "", value ? value : ""));
  }

  absl::Status Error(int error, absl::string_view step) {
    std::string log;
    std::array<char, 512> line;
    for (ssize_t n; log.size() < 2048 && (n = read(fd_.get(), line.data(), line.size())) > 0;) {
      absl::string_view text(line.data(), static_cast<size_t>(n));
      while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
      absl::StrAppend(&log, log.empty() ? " (kernel: " : "; ", base::Printable(text));
    }
    if (!log.empty()) log.push_back(')');
    absl::Status status =
        base::ErrnoStatus(error, absl::StrCat("mount ", type_, ", ", base::Printable(step)));
    if (log.empty()) return status;
    absl::Status explained(status.code(), absl::StrCat(status.message(), log));
    status.ForEachPayload(
        [&](absl::string_view type, const absl::Cord& value) { explained.SetPayload(type, value); });
    return explained;
  }

  base::UniqueFd fd_;
  const char* type_;
};

absl::StatusOr<uint64_t> MountId(int directory, const char* path, int flags) {
  struct statx st;
  if (statx(directory, path, flags | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, STATX_MNT_ID | kStatxMountIdUnique,
            &st) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("statx ", base::Printable(path)));
  }
  // A kernel that does not know the number at all: then every mount looks the same, and only the kernel's own
  // checks remain.
  if ((st.stx_mask & (STATX_MNT_ID | kStatxMountIdUnique)) == 0) return 0;
  // stx_mnt_id of newer headers; Debian 12's libc has it too.
  return st.stx_mnt_id;
}

absl::Status SetOverlayOptions(MountContext& context) {
  RETURN_IF_ERROR(context.SetFlag("ro"));
  RETURN_IF_ERROR(context.Set("source", "lazyblob"));
  RETURN_IF_ERROR(context.Set("metacopy", "off"));
  RETURN_IF_ERROR(context.Set("redirect_dir", "nofollow"));
  RETURN_IF_ERROR(context.Set("index", "off"));
  return context.Set("xino", "off");
}

// A detached clone of what is at `path` below `directory`, without what is mounted below it.
absl::StatusOr<base::UniqueFd> Clone(int directory, const std::string& path) {
  unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW;
  int fd = open_tree(directory, path.c_str(), flags);
  if (fd < 0) return base::ErrnoStatus(errno, absl::StrCat("clone mount of ", base::Printable(path)));
  base::UniqueFd mount(fd);
  mount_attr attributes{};
  attributes.attr_set = kReadOnlyAttributes;
  if (mount_setattr(fd, "", AT_EMPTY_PATH, &attributes, sizeof attributes) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("make mount of ", base::Printable(path), " read-only"));
  }
  return mount;
}

std::string FileSystemName(int fd) {
  struct statfs st;
  if (fstatfs(fd, &st) != 0) return "of unknown type";
  switch (st.f_type) {
    case FUSE_SUPER_MAGIC:
      return "FUSE";
    case OVERLAYFS_SUPER_MAGIC:
      return "overlay";
    case TMPFS_MAGIC:
      return "tmpfs";
    default:
      return absl::StrCat("0x", absl::Hex(static_cast<uint64_t>(st.f_type)));
  }
}

}  // namespace

absl::StatusOr<FuseConnection> OpenConnection() {
  FuseConnection connection;
  ASSIGN_OR_RETURN(connection.device, base::OpenFile("/dev/fuse", O_RDWR));
  ASSIGN_OR_RETURN(MountContext context, MountContext::Open("fuse"));
  RETURN_IF_ERROR(context.SetFlag("ro"));
  RETURN_IF_ERROR(context.Set("source", "lazyblob"));
  RETURN_IF_ERROR(context.Set("subtype", "lazyblob"));
  RETURN_IF_ERROR(context.Set("fd", absl::StrCat(connection.device.get())));
  RETURN_IF_ERROR(context.Set("rootmode", "40000"));
  RETURN_IF_ERROR(context.Set("user_id", "0"));
  RETURN_IF_ERROR(context.Set("group_id", "0"));
  RETURN_IF_ERROR(context.SetFlag("default_permissions"));
  RETURN_IF_ERROR(context.Set("max_read", "1048576"));
  ASSIGN_OR_RETURN(connection.mount, context.Mount());
  struct statx st;
  if (statx(connection.mount.get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, &st) != 0) {
    return base::ErrnoStatus(errno, "statx of the FUSE mount");
  }
  connection.number = st.stx_dev_minor;
  return connection;
}

absl::Status AbortConnection(uint32_t number) {
  // A private mount: /sys/fs/fuse/connections is not mounted everywhere.
  ASSIGN_OR_RETURN(MountContext context, MountContext::Open("fusectl"));
  ASSIGN_OR_RETURN(base::UniqueFd mount,
                   context.Mount(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC));
  std::string name = absl::StrCat(number, "/abort");
  base::UniqueFd file(openat(mount.get(), name.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file.valid()) {
    // The connection is gone already.
    return errno == ENOENT ? absl::OkStatus() : base::ErrnoStatus(errno, absl::StrCat("open fusectl ", name));
  }
  if (write(file.get(), "1", 1) != 1) return base::ErrnoStatus(errno, "abort FUSE connection");
  return absl::OkStatus();
}

std::string BlobName(const base::Digest& layer) { return "blobs/" + LayerName(layer); }

std::string TreeName(const base::Digest& layer, const std::string& meta_path) {
  auto chain_image = layer::ParseChainImageName(meta_path.substr(meta_path.rfind('/') + 1));
  std::string name = "trees/" + LayerName(layer);
  return chain_image.has_value() ? absl::StrCat(name, ".", chain_image->number) : name;
}

std::string DescriptorPath(int fd) { return absl::StrCat("/proc/self/fd/", fd); }

absl::StatusOr<base::UniqueFd> MakeErofsMount(const std::string& source, const std::string& device) {
  ASSIGN_OR_RETURN(MountContext context, MountContext::Open("erofs"));
  RETURN_IF_ERROR(context.SetFlag("ro"));
  RETURN_IF_ERROR(context.Set("source", source));
  RETURN_IF_ERROR(context.Set("device", device));
  return context.Mount();
}

absl::StatusOr<base::UniqueFd> MakeSubtreeMount(int mount, const std::string& name) {
  return Clone(mount, name);
}

absl::StatusOr<base::UniqueFd> MakeBindMount(const std::string& lower) { return Clone(AT_FDCWD, lower); }

absl::StatusOr<base::UniqueFd> MakeIdMappedMount(const std::string& source, int user_namespace) {
  ASSIGN_OR_RETURN(base::UniqueFd mount, Clone(AT_FDCWD, source));
  mount_attr attributes{};
  attributes.attr_set = MOUNT_ATTR_IDMAP;
  attributes.userns_fd = static_cast<uint64_t>(user_namespace);
  if (mount_setattr(mount.get(), "", AT_EMPTY_PATH, &attributes, sizeof attributes) == 0) return mount;
  switch (errno) {
    case EINVAL:
      return absl::UnimplementedError(absl::StrCat("file system ", FileSystemName(mount.get()),
                                                   " knows no id-mapped mounts on this kernel"));
    case EPERM:
      return absl::FailedPreconditionError(
          "the kernel does not permit it: it is id-mapped already, or this process has not CAP_SYS_ADMIN");
    default:
      return base::ErrnoStatus(errno, "mount_setattr");
  }
}

absl::StatusOr<base::UniqueFd> MakeOverlayMount(const std::vector<std::string>& lowers) {
  ASSIGN_OR_RETURN(MountContext context, MountContext::Open("overlay"));
  RETURN_IF_ERROR(SetOverlayOptions(context));
  for (size_t i = 0; i < lowers.size(); ++i) {
    base::UniqueFd directory;
    std::string name = lowers[i];
    if (name.size() > kMaxOptionBytes) {
      ASSIGN_OR_RETURN(directory, base::OpenFile(name, O_PATH | O_DIRECTORY | O_NOFOLLOW));
      name = DescriptorPath(directory.get());
    }
    absl::Status status = context.Set("lowerdir+", name);
    if (i == 0 && base::ErrnoOf(status) == EINVAL) return MakeOverlayMountInOneOption(lowers);
    RETURN_IF_ERROR(status);
  }
  return context.Mount();
}

absl::StatusOr<base::UniqueFd> MakeOverlayMountInOneOption(const std::vector<std::string>& lowers) {
  // Descriptor numbers as names relative to /proc/self/fd: the shortest names there are.
  std::vector<base::UniqueFd> directories;
  std::vector<int> names;
  for (const std::string& lower : lowers) {
    ASSIGN_OR_RETURN(base::UniqueFd directory, base::OpenFile(lower, O_PATH | O_DIRECTORY | O_NOFOLLOW));
    names.push_back(directory.get());
    directories.push_back(std::move(directory));
  }
  std::string option = absl::StrJoin(names, ":");
  if (option.size() > kMaxOptionBytes) {
    return absl::UnimplementedError(absl::StrCat(
        "overlay of ", lowers.size(), " layers: this kernel takes fewer; Linux 6.7 or newer takes them"));
  }
  if (chdir("/proc/self/fd") != 0) return base::ErrnoStatus(errno, "chdir /proc/self/fd");
  ASSIGN_OR_RETURN(MountContext context, MountContext::Open("overlay"));
  RETURN_IF_ERROR(SetOverlayOptions(context));
  RETURN_IF_ERROR(context.Set("lowerdir", option));
  return context.Mount();
}

absl::StatusOr<uint64_t> MountIdOf(int fd) { return MountId(fd, "", AT_EMPTY_PATH); }
absl::StatusOr<uint64_t> MountIdAt(const std::string& path) {
  return MountId(AT_FDCWD, path.c_str(), AT_SYMLINK_NOFOLLOW);
}

absl::Status CheckTarget(const std::string& target) {
  struct statx st;
  if (statx(AT_FDCWD, target.c_str(), AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, STATX_TYPE,
            &st) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("mount point ", base::Printable(target)));
  }
  if (!S_ISDIR(st.stx_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat("mount point ", base::Printable(target), " is not a directory"));
  }
  if ((st.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("something is already mounted on ",
                                                      base::Printable(target),
                                                      "; unmount it or use another directory"));
  }
  return absl::OkStatus();
}

absl::Status CheckEmptyDirectory(const std::string& path) {
  ASSIGN_OR_RETURN(std::vector<std::string> names, base::ListDirectory(path));
  if (names.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("mount point ", base::Printable(path), " is not empty; mode fuse needs an empty one"));
}

absl::Status AttachMount(int mount, const std::string& target) {
  RETURN_IF_ERROR(CheckTarget(target));
  if (move_mount(mount, "", AT_FDCWD, target.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("mount on ", base::Printable(target)));
  }
  return absl::OkStatus();
}

absl::Status DetachMount(const std::string& target, uint64_t mount_id, bool lazy) {
  absl::StatusOr<uint64_t> found = MountIdAt(target);
  if (!found.ok() || *found != mount_id) {
    return absl::NotFoundError(absl::StrCat(base::Printable(target), " is not mounted by us any more"));
  }
  if (umount2(target.c_str(), UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0) return absl::OkStatus();
  if (errno == EBUSY) {
    return absl::FailedPreconditionError(
        absl::StrCat(base::Printable(target),
                     " is busy: a program runs in it or has files of it open; end it or unmount lazily"));
  }
  if (errno == EINVAL || errno == ENOENT) {
    return absl::NotFoundError(absl::StrCat(base::Printable(target), " is not mounted by us any more"));
  }
  return base::ErrnoStatus(errno, absl::StrCat("unmount ", base::Printable(target)));
}

std::vector<std::string> ListErofsReadAhead() {
  absl::StatusOr<std::vector<std::string>> names = base::ListDirectory(kBackingDevices);
  if (!names.ok()) return {};  // no sysfs: nothing to tune
  names->erase(std::remove_if(names->begin(), names->end(),
                              [](const std::string& name) { return !absl::StartsWith(name, "erofs-"); }),
               names->end());
  return *std::move(names);
}

absl::Status RaiseErofsReadAhead(const std::vector<std::string>& before) {
  absl::Status status;
  for (const std::string& name : ListErofsReadAhead()) {
    if (!std::binary_search(before.begin(), before.end(), name)) status.Update(RaiseReadAhead(name));
  }
  return status;
}

absl::Status RaiseReadAhead(const std::string& name) {
  std::string path = absl::StrCat(kBackingDevices, "/", name, "/read_ahead_kb");
  absl::StatusOr<base::UniqueFd> file = base::OpenFile(path, O_WRONLY);
  if (!file.ok())
    return absl::IsNotFound(file.status()) ? absl::OkStatus() : file.status();  // just unmounted
  std::string value = absl::StrCat(kReadAheadKib);
  if (write(file->get(), value.data(), value.size()) < 0)
    return base::ErrnoStatus(errno, absl::StrCat("write ", path));
  return absl::OkStatus();
}

}  // namespace lazyblob::fuse::internal
