#include "layer/chain_meta.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "layer/internal/erofs_format.h"

namespace lazyblob::layer {
namespace {

using Xattrs = std::vector<std::pair<std::string, std::string>>;

constexpr absl::string_view kTrustedOpaque = "trusted.overlay.opaque";

bool IsOpaqueMark(absl::string_view name) { return name == kTrustedOpaque || name == "user.overlay.opaque"; }

absl::StatusOr<bool> IsOpaque(const ErofsImage& image, uint64_t nid) {
  ASSIGN_OR_RETURN(const Xattrs xattrs, image.Xattrs(nid));
  return std::any_of(xattrs.begin(), xattrs.end(),
                     [](const auto& xattr) { return IsOpaqueMark(xattr.first); });
}

// What one image says about a directory.
struct Sight {
  std::optional<uint64_t> nid;  // it is there, and a directory
  bool hides_below = false;     // whatever layers below say of it counts no more
};

absl::StatusOr<Sight> LookAt(const ErofsImage& image, absl::string_view directory) {
  Sight sight;
  uint64_t at = image.root();
  if (!directory.empty()) {
    for (absl::string_view name : absl::StrSplit(directory, '/')) {
      if (!sight.hides_below) {
        ASSIGN_OR_RETURN(sight.hides_below, IsOpaque(image, at));
      }
      const absl::StatusOr<uint64_t> child = image.Lookup(at, name);
      if (absl::IsNotFound(child.status())) return sight;
      RETURN_IF_ERROR(child.status());
      ASSIGN_OR_RETURN(const ErofsImage::Stat stat, image.GetInode(*child));
      if (!S_ISDIR(stat.mode)) {
        sight.hides_below = true;
        return sight;
      }
      at = *child;
    }
  }
  sight.nid = at;
  return sight;
}

bool TravelsAlong(absl::string_view xattr) {
  return !absl::StartsWith(xattr, "trusted.") && !IsOpaqueMark(xattr);
}

// What a layer below says about a directory.
struct Found {
  ErofsImage::Stat stat;
  Xattrs xattrs;
};
struct LowerSight {
  std::optional<Found> found;
  bool hides_below = false;
};

absl::StatusOr<LowerSight> LookAtLayer(const LowerLayer& lower, bool implied, absl::string_view directory) {
  ASSIGN_OR_RETURN(const Sight sight, LookAt(*lower.image, directory));
  LowerSight result;
  result.hides_below = sight.hides_below;
  if (!sight.nid.has_value() || implied) return result;
  result.found.emplace();
  ASSIGN_OR_RETURN(result.found->stat, lower.image->GetInode(*sight.nid));
  ASSIGN_OR_RETURN(Xattrs xattrs, lower.image->Xattrs(*sight.nid));
  for (auto& xattr : xattrs) {
    if (TravelsAlong(xattr.first)) result.found->xattrs.push_back(std::move(xattr));
  }
  return result;
}

// The directory `name` in `parent`, for lookups; invalid: something that is no directory has the name, or
// nothing (errno ENOENT). A file system mounted there, or a link, is none.
base::UniqueFd OpenChild(int parent, const std::string& name) {
  open_how how{};
  how.flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  return base::UniqueFd(static_cast<int>(syscall(SYS_openat2, parent, name.c_str(), &how, sizeof how)));
}

absl::StatusOr<bool> IsOpaqueDirectory(int fd, const std::string& path) {
  char value = 0;
  const ssize_t n = fgetxattr(fd, std::string(kTrustedOpaque).c_str(), &value, 1);
  if (n >= 0) return n == 1 && value == 'y';
  if (errno == ENODATA || errno == EOPNOTSUPP || errno == ERANGE) return false;
  return base::ErrnoStatus(errno, absl::StrCat("xattrs of ", base::Printable(path)));
}

absl::StatusOr<Xattrs> DirectoryXattrs(int fd, const std::string& path) {
  auto failed = [&] { return base::ErrnoStatus(errno, absl::StrCat("xattrs of ", base::Printable(path))); };
  std::string names(65536, '\0');
  const ssize_t size = flistxattr(fd, names.data(), names.size());
  if (size < 0 && errno == EOPNOTSUPP) return Xattrs();
  if (size < 0) return failed();
  names.resize(static_cast<size_t>(size));
  Xattrs xattrs;
  for (absl::string_view name : absl::StrSplit(names, '\0', absl::SkipEmpty())) {
    const bool kept = absl::StartsWith(name, "user.") || absl::StartsWith(name, "security.");
    if (!kept || absl::StartsWith(name, "user.overlay.")) continue;
    std::string value(65536, '\0');
    const ssize_t length = fgetxattr(fd, std::string(name).c_str(), value.data(), value.size());
    if (length < 0) return failed();
    value.resize(static_cast<size_t>(length));
    xattrs.emplace_back(std::string(name), std::move(value));
  }
  std::sort(xattrs.begin(), xattrs.end());
  return xattrs;
}

absl::StatusOr<LowerSight> LookAtDirectory(const std::string& root, absl::string_view directory) {
  LowerSight result;
  ASSIGN_OR_RETURN(base::UniqueFd at, base::OpenFile(root, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
  if (!directory.empty()) {
    for (absl::string_view name : absl::StrSplit(directory, '/')) {
      if (!result.hides_below) {
        ASSIGN_OR_RETURN(result.hides_below, IsOpaqueDirectory(at.get(), root));
      }
      base::UniqueFd child = OpenChild(at.get(), std::string(name));
      if (!child.valid() && errno == ENOENT) return result;
      if (!child.valid() && errno != ENOTDIR && errno != ELOOP && errno != EXDEV) {
        return base::ErrnoStatus(errno,
                                 absl::StrCat("directory \"", base::Printable(directory), "\" of ", root));
      }
      if (!child.valid()) {  // a whiteout, a file, a link
        result.hides_below = true;
        return result;
      }
      at = std::move(child);
    }
  }
  struct stat st;
  if (fstat(at.get(), &st) != 0) return base::ErrnoStatus(errno, root);
  result.found.emplace();
  result.found->stat.mode = st.st_mode;
  result.found->stat.uid = st.st_uid;
  result.found->stat.gid = st.st_gid;
  result.found->stat.mtime_seconds = st.st_mtim.tv_sec;
  result.found->stat.mtime_nanoseconds = static_cast<uint32_t>(st.st_mtim.tv_nsec);
  ASSIGN_OR_RETURN(result.found->xattrs, DirectoryXattrs(at.get(), root));
  return result;
}

// What an implied directory has to look like.
struct Look {
  uint64_t nid = 0;  // in the layer's own image
  std::string directory;
  ErofsImage::Stat stat;
  Xattrs xattrs;
};

bool IsImplied(const LayerIndex& layer, absl::string_view directory) {
  const std::vector<std::string>& implied = layer.info().implied_directories;
  const auto found =
      std::lower_bound(implied.begin(), implied.end(), directory,
                       [](const std::string& a, absl::string_view b) { return absl::string_view(a) < b; });
  return found != implied.end() && absl::string_view(*found) == directory;
}

// nullopt: it looks right as it is.
absl::StatusOr<std::optional<Look>> FindLook(const ErofsImage& own, absl::string_view directory,
                                             absl::Span<const LowerLayer> lowers) {
  ASSIGN_OR_RETURN(const Sight sight, LookAt(own, directory));
  if (!sight.nid.has_value()) {
    return absl::DataLossError(
        absl::StrCat("index and image disagree: \"", base::Printable(directory), "\" is missing"));
  }
  const uint64_t own_nid = *sight.nid;
  bool hidden = sight.hides_below;
  for (const LowerLayer& lower : lowers) {
    if (hidden) return std::nullopt;
    LowerSight below;
    if (!lower.directory.empty()) {
      ASSIGN_OR_RETURN(below, LookAtDirectory(lower.directory, directory));
    } else {
      ASSIGN_OR_RETURN(below, LookAtLayer(lower, IsImplied(*lower.index, directory), directory));
    }
    hidden = below.hides_below;
    if (!below.found.has_value()) continue;
    Look look;
    look.nid = own_nid;
    look.directory = std::string(directory);
    look.stat = below.found->stat;
    look.xattrs = std::move(below.found->xattrs);
    ASSIGN_OR_RETURN(const ErofsImage::Stat now, own.GetInode(own_nid));
    if (look.xattrs.empty() && look.stat.mode == now.mode && look.stat.uid == now.uid &&
        look.stat.gid == now.gid && look.stat.mtime_seconds == now.mtime_seconds &&
        look.stat.mtime_nanoseconds == now.mtime_nanoseconds) {
      return std::nullopt;
    }
    return look;
  }
  return std::nullopt;
}

// Mode, owner and time are fields of fixed size: a copy of the image with other values in them.
absl::Status WritePatched(const std::string& from, const std::vector<Look>& looks, const std::string& path) {
  ASSIGN_OR_RETURN(const base::MappedFile image, base::MappedFile::Open(from));
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    return base::ErrnoStatus(errno, absl::StrCat("unlink ", path));
  ASSIGN_OR_RETURN(const base::UniqueFd fd, base::OpenFile(path, O_WRONLY | O_CREAT | O_EXCL, 0600));
  RETURN_IF_ERROR(base::WriteFull(fd.get(), image.bytes()));
  for (const Look& look : looks) {
    internal::ErofsInode inode;
    const uint64_t offset = look.nid * internal::kErofsSlotSize;
    std::memcpy(&inode, image.bytes().data() + offset, sizeof(inode));
    inode.mode = static_cast<uint16_t>(look.stat.mode);
    inode.uid = look.stat.uid;
    inode.gid = look.stat.gid;
    inode.mtime = look.stat.mtime_seconds;
    inode.mtime_nanoseconds = look.stat.mtime_nanoseconds;
    RETURN_IF_ERROR(
        base::PwriteFull(fd.get(), offset, {reinterpret_cast<const uint8_t*>(&inode), sizeof(inode)}));
  }
  if (::fdatasync(fd.get()) != 0) return base::ErrnoStatus(errno, absl::StrCat("syncing ", path));
  return absl::OkStatus();
}

absl::Status WriteRebuilt(const LayerIndex& layer, const ErofsImage& own, const std::vector<Look>& looks,
                          absl::string_view opaque_xattr, const std::string& path) {
  ASSIGN_OR_RETURN(Tree tree, own.ToTree());
  for (const Look& look : looks) {
    uint32_t at = 0;
    if (!look.directory.empty()) {
      for (absl::string_view name : absl::StrSplit(look.directory, '/')) {
        const auto& children = tree.inodes[at].children;
        const auto found = std::lower_bound(
            children.begin(), children.end(), name,
            [](const auto& a, absl::string_view b) { return absl::string_view(a.first) < b; });
        if (found == children.end() || absl::string_view(found->first) != name) {
          return absl::InternalError("a directory vanished from its image");
        }
        at = found->second;
      }
    }
    Inode& inode = tree.inodes[at];
    inode.mode = look.stat.mode;
    inode.uid = look.stat.uid;
    inode.gid = look.stat.gid;
    inode.mtime_seconds = look.stat.mtime_seconds;
    inode.mtime_nanoseconds = look.stat.mtime_nanoseconds;
    inode.xattrs = look.xattrs;
  }
  ErofsOptions options;
  options.layer = layer.info().blob_digest;
  options.data_size = layer.info().data_size;
  options.opaque_xattr = std::string(opaque_xattr);
  return WriteErofs(tree, options, path);
}

}  // namespace

absl::StatusOr<bool> WriteChainImage(const LayerIndex& layer,
                                     absl::Span<const LowerLayer> lowers_topmost_first,
                                     const std::string& path, absl::string_view opaque_xattr) {
  const std::string own_path = absl::StrCat(layer.directory(), "/meta.erofs");
  ASSIGN_OR_RETURN(const std::shared_ptr<const ErofsImage> own, ErofsImage::Open(own_path));
  std::vector<Look> looks;
  bool with_xattrs = false;
  for (const std::string& directory : layer.info().implied_directories) {
    ASSIGN_OR_RETURN(std::optional<Look> look, FindLook(*own, directory, lowers_topmost_first));
    if (!look.has_value()) continue;
    with_xattrs = with_xattrs || !look->xattrs.empty();
    looks.push_back(*std::move(look));
  }
  const bool other_mark = opaque_xattr != kTrustedOpaque && layer.info().has_whiteouts;
  if (looks.empty() && !other_mark) return false;
  absl::Status written = with_xattrs || other_mark ? WriteRebuilt(layer, *own, looks, opaque_xattr, path)
                                                   : WritePatched(own_path, looks, path);
  if (!written.ok()) {
    ::unlink(path.c_str());
    return written;
  }
  return true;
}

}  // namespace lazyblob::layer
