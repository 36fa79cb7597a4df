#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "base/checked.h"
#include "base/status.h"
#include "layer/erofs.h"
#include "layer/internal/erofs_format.h"
#include "layer/internal/extent_layout.h"
#include "layer/internal/tree_rules.h"

namespace lazyblob::layer {
namespace {

using namespace internal;  // NOLINT: the format's vocabulary, this file only

template <typename T>
T Get(absl::Span<const uint8_t> bytes, uint64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

absl::string_view Text(absl::Span<const uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The directory entries of one block, checked as they are asked for.
class Dirents {
 public:
  explicit Dirents(absl::Span<const uint8_t> block) : block_(block) {
    if (block.size() < sizeof(ErofsDirent)) return;
    const uint64_t names = Get<ErofsDirent>(block, 0).name_offset;
    if (names % sizeof(ErofsDirent) == 0 && names <= block.size()) count_ = names / sizeof(ErofsDirent);
  }

  uint64_t count() const { return count_; }  // 0: damaged
  // False: damaged. `i` < count().
  bool At(uint64_t i, ErofsDirent* dirent, absl::string_view* name) const {
    *dirent = Get<ErofsDirent>(block_, i * sizeof(ErofsDirent));
    uint64_t end = block_.size();
    if (i + 1 < count_) end = Get<ErofsDirent>(block_, (i + 1) * sizeof(ErofsDirent)).name_offset;
    if (dirent->name_offset < count_ * sizeof(ErofsDirent) || dirent->name_offset > end ||
        end > block_.size()) {
      return false;
    }
    *name = Text(block_.subspan(dirent->name_offset, end - dirent->name_offset));
    if (i + 1 == count_) *name = name->substr(0, name->find('\0'));
    return *name == "." || *name == ".." || CheckName(*name).ok();
  }

 private:
  absl::Span<const uint8_t> block_;
  uint64_t count_ = 0;
};

}  // namespace

struct ErofsImage::Parts {
  uint64_t nid = 0;
  ErofsInode inode{};
  ErofsLayout layout = ErofsLayout::kPlain;
  uint64_t xattrs = 0;       // where they start
  uint64_t xattr_bytes = 0;  // with header; 0: none
  uint64_t body = 0;         // where the tail, or the chunk indexes, start
  uint64_t blocks() const { return (inode.size + kErofsBlockSize - 1) / kErofsBlockSize; }
};

absl::Status ErofsImage::Damaged(uint64_t nid, absl::string_view why) const {
  return absl::DataLossError(absl::StrCat(path_, ": damaged EROFS image: inode ", nid, ": ", why));
}

absl::StatusOr<std::shared_ptr<const ErofsImage>> ErofsImage::Open(const std::string& path) {
  std::shared_ptr<ErofsImage> image(new ErofsImage());
  image->path_ = path;
  ASSIGN_OR_RETURN(image->file_, base::MappedFile::Open(path));
  const absl::Span<const uint8_t> bytes = image->file_.bytes();
  auto damaged = [&path](absl::string_view why) {
    return absl::DataLossError(absl::StrCat(path, ": not one of our EROFS images: ", why));
  };
  if (bytes.size() < kErofsRootOffset + sizeof(ErofsInode)) return damaged("too short");
  const auto super = Get<ErofsSuperBlock>(bytes, kErofsSuperOffset);
  if (super.magic != kErofsMagic) return damaged("no superblock");
  std::vector<uint8_t> checked(bytes.begin() + kErofsSuperOffset, bytes.begin() + kErofsRootOffset);
  std::memset(checked.data() + offsetof(ErofsSuperBlock, checksum), 0, sizeof(super.checksum));
  if (ErofsSuperChecksum(checked) != super.checksum) return damaged("superblock checksum");
  if (super.block_bits != kErofsBlockBits || super.extra_devices != 1 || super.meta_block != 0 ||
      super.feature_incompat != (kErofsIncompatChunkedFile | kErofsIncompatDeviceTable)) {
    return damaged("other parameters");
  }
  image->size_ = super.blocks * kErofsBlockSize;
  image->root_ = super.root_nid;
  image->inode_count_ = super.inodes;
  if (image->size_ > bytes.size()) return damaged("cut short");
  if (super.inodes > image->size_ / sizeof(ErofsInode)) return damaged("inode count");
  return image;
}

uint64_t ErofsImage::root() const { return root_; }
uint64_t ErofsImage::inode_count() const { return inode_count_; }

absl::StatusOr<ErofsImage::Parts> ErofsImage::Load(uint64_t nid) const {
  if (nid < kErofsRootOffset / kErofsSlotSize || nid > (size_ - sizeof(ErofsInode)) / kErofsSlotSize) {
    return Damaged(nid, "no such inode");
  }
  Parts parts;
  parts.nid = nid;
  parts.inode = Get<ErofsInode>(file_.bytes(), nid * kErofsSlotSize);
  const unsigned layout = parts.inode.format >> 1;
  if ((parts.inode.format & 1) != 1 || (layout != 0 && layout != 2 && layout != 4)) {
    return Damaged(nid, "unknown layout");
  }
  parts.layout = static_cast<ErofsLayout>(layout);
  if (ErofsFileType(parts.inode.mode) == 0 || parts.inode.mtime_nanoseconds >= 1'000'000'000 ||
      parts.inode.size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return Damaged(nid, "malformed inode");
  }
  parts.xattrs = nid * kErofsSlotSize + sizeof(ErofsInode);
  if (parts.inode.xattr_count > 0) {
    parts.xattr_bytes = sizeof(ErofsXattrHeader) + 4 * (uint64_t{parts.inode.xattr_count} - 1);
  }
  parts.body = parts.xattrs + parts.xattr_bytes;
  if (parts.body > size_) return Damaged(nid, "attributes outside the image");
  if (S_ISREG(parts.inode.mode) != (parts.layout == ErofsLayout::kChunks) && parts.inode.size > 0) {
    if (S_ISREG(parts.inode.mode) || parts.layout == ErofsLayout::kChunks)
      return Damaged(nid, "wrong layout");
  }
  if (parts.layout == ErofsLayout::kChunks) {
    parts.body = (parts.body + 7) & ~uint64_t{7};
    const unsigned format = parts.inode.where;
    const unsigned bits = (format & 31) + kErofsBlockBits;
    const uint64_t chunks = parts.inode.size == 0 ? 0 : ((parts.inode.size - 1) >> bits) + 1;
    if ((format & ~31u) != kErofsChunkIndexes || !S_ISREG(parts.inode.mode) ||
        !base::RangeWithin(parts.body, chunks * sizeof(ErofsChunkIndex), size_)) {
      return Damaged(nid, "chunk indexes");
    }
    return parts;
  }
  if (!S_ISDIR(parts.inode.mode) && !S_ISLNK(parts.inode.mode)) return parts;
  const uint64_t tail = parts.layout == ErofsLayout::kInline ? parts.inode.size % kErofsBlockSize : 0;
  const uint64_t plain = (parts.inode.size - tail + kErofsBlockSize - 1) / kErofsBlockSize * kErofsBlockSize;
  if (!base::RangeWithin(parts.body, tail, size_) ||
      (plain > 0 && !base::RangeWithin(parts.inode.where * kErofsBlockSize, plain, size_))) {
    return Damaged(nid, "contents outside the image");
  }
  return parts;
}

absl::StatusOr<ErofsImage::Parts> ErofsImage::LoadDirectory(uint64_t nid) const {
  ASSIGN_OR_RETURN(Parts parts, Load(nid));
  if (!S_ISDIR(parts.inode.mode)) return absl::FailedPreconditionError("not a directory");
  return parts;
}

absl::StatusOr<absl::Span<const uint8_t>> ErofsImage::DirectoryBlock(const Parts& parts,
                                                                     uint64_t block) const {
  const uint64_t offset = block * kErofsBlockSize;
  const uint64_t bytes = std::min<uint64_t>(kErofsBlockSize, parts.inode.size - offset);
  const bool tail = parts.layout == ErofsLayout::kInline && bytes < kErofsBlockSize;
  const uint64_t at = tail ? parts.body : parts.inode.where * kErofsBlockSize + offset;
  absl::Span<const uint8_t> found = file_.bytes().subspan(at, bytes);
  if (Dirents(found).count() == 0) return Damaged(parts.nid, "directory block");
  return found;
}

absl::StatusOr<ErofsImage::Stat> ErofsImage::GetInode(uint64_t nid) const {
  ASSIGN_OR_RETURN(const Parts parts, Load(nid));
  Stat stat;
  stat.nid = nid;
  stat.mode = parts.inode.mode;
  stat.uid = parts.inode.uid;
  stat.gid = parts.inode.gid;
  stat.nlink = parts.inode.nlink;
  if (S_ISCHR(stat.mode) || S_ISBLK(stat.mode)) {
    stat.device_major = ErofsDeviceMajor(parts.inode.where);
    stat.device_minor = ErofsDeviceMinor(parts.inode.where);
  }
  stat.size = parts.inode.size;
  stat.mtime_seconds = parts.inode.mtime;
  stat.mtime_nanoseconds = parts.inode.mtime_nanoseconds;
  return stat;
}

absl::StatusOr<uint64_t> ErofsImage::Lookup(uint64_t directory, absl::string_view name) const {
  ASSIGN_OR_RETURN(const Parts parts, LoadDirectory(directory));
  ErofsDirent dirent;
  absl::string_view found;
  // The last block whose first name is not after `name`.
  uint64_t low = 0;
  uint64_t high = parts.blocks();
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    ASSIGN_OR_RETURN(const absl::Span<const uint8_t> block, DirectoryBlock(parts, middle));
    if (!Dirents(block).At(0, &dirent, &found)) return Damaged(directory, "directory entry");
    if (found <= name) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == 0) return absl::NotFoundError("no such name");
  ASSIGN_OR_RETURN(const absl::Span<const uint8_t> block, DirectoryBlock(parts, low - 1));
  const Dirents dirents(block);
  uint64_t first = 0;
  uint64_t last = dirents.count();
  while (first < last) {
    const uint64_t middle = first + (last - first) / 2;
    if (!dirents.At(middle, &dirent, &found)) return Damaged(directory, "directory entry");
    if (found == name) return uint64_t{dirent.nid};
    if (found < name) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return absl::NotFoundError("no such name");
}

// A cookie is the entry's number in its block and the block's number: the next one to be shown.
absl::Status ErofsImage::ReadDirectory(
    uint64_t directory, uint64_t cookie,
    absl::FunctionRef<bool(absl::string_view, uint64_t, uint8_t, uint64_t)> visit) const {
  constexpr uint64_t kPerBlock = kErofsBlockSize;
  ASSIGN_OR_RETURN(const Parts parts, LoadDirectory(directory));
  uint64_t first = cookie % kPerBlock;
  for (uint64_t number = cookie / kPerBlock; number < parts.blocks(); ++number, first = 0) {
    ASSIGN_OR_RETURN(const absl::Span<const uint8_t> block, DirectoryBlock(parts, number));
    const Dirents dirents(block);
    for (uint64_t i = first; i < dirents.count(); ++i) {
      ErofsDirent dirent;
      absl::string_view name;
      if (!dirents.At(i, &dirent, &name)) return Damaged(directory, "directory entry");
      const uint64_t next = i + 1 < dirents.count() ? number * kPerBlock + i + 1 : (number + 1) * kPerBlock;
      if (!visit(name, dirent.nid, dirent.file_type, next)) return absl::OkStatus();
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ErofsImage::ReadLink(uint64_t nid) const {
  ASSIGN_OR_RETURN(const Parts parts, Load(nid));
  if (!S_ISLNK(parts.inode.mode)) return absl::FailedPreconditionError("not a symbolic link");
  if (parts.inode.size > kMaxSymlinkBytes) return Damaged(nid, "symbolic link too long");
  const bool tail = parts.layout == ErofsLayout::kInline;
  if (tail && parts.inode.size >= kErofsBlockSize) return Damaged(nid, "symbolic link in two parts");
  const uint64_t at = tail ? parts.body : parts.inode.where * kErofsBlockSize;
  if (parts.inode.size == 0) return Damaged(nid, "symbolic link without text");
  return std::string(Text(file_.bytes().subspan(at, parts.inode.size)));
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ErofsImage::Xattrs(uint64_t nid) const {
  ASSIGN_OR_RETURN(const Parts parts, Load(nid));
  std::vector<std::pair<std::string, std::string>> result;
  if (parts.xattr_bytes <= sizeof(ErofsXattrHeader)) return result;
  absl::Span<const uint8_t> rest = file_.bytes().subspan(parts.xattrs, parts.xattr_bytes);
  if (Get<ErofsXattrHeader>(rest, 0).shared_count != 0) return Damaged(nid, "shared attributes");
  rest.remove_prefix(sizeof(ErofsXattrHeader));
  while (rest.size() >= sizeof(ErofsXattrEntry)) {
    const auto entry = Get<ErofsXattrEntry>(rest, 0);
    const uint64_t bytes = sizeof(entry) + entry.name_size + entry.value_size;
    const uint64_t padded = (bytes + 3) & ~uint64_t{3};
    const ErofsXattrPrefix* prefix = nullptr;
    for (const ErofsXattrPrefix& known : kErofsXattrPrefixes) {
      if (known.index == entry.name_index) prefix = &known;
    }
    if (padded > rest.size() || prefix == nullptr) return Damaged(nid, "attributes");
    result.emplace_back(absl::StrCat(prefix->text, Text(rest.subspan(sizeof(entry), entry.name_size))),
                        std::string(Text(rest.subspan(sizeof(entry) + entry.name_size, entry.value_size))));
    rest.remove_prefix(padded);
  }
  std::sort(result.begin(), result.end());
  return result;
}

absl::StatusOr<std::vector<Extent>> ErofsImage::MapFile(uint64_t nid, uint64_t offset,
                                                        uint64_t length) const {
  ASSIGN_OR_RETURN(const Parts parts, Load(nid));
  if (!S_ISREG(parts.inode.mode)) return absl::FailedPreconditionError("not a regular file");
  std::vector<Extent> extents;
  if (offset >= parts.inode.size || length == 0) return extents;
  const uint64_t end = offset + std::min(length, parts.inode.size - offset);
  const unsigned bits = (parts.inode.where & 31) + kErofsBlockBits;
  for (uint64_t chunk = offset >> bits; chunk <= (end - 1) >> bits; ++chunk) {
    const auto index = Get<ErofsChunkIndex>(file_.bytes(), parts.body + chunk * sizeof(ErofsChunkIndex));
    if (index.block == kErofsNullBlock) continue;
    if (index.device != 1 || index.block_high != 0) return Damaged(nid, "chunk index");
    const uint64_t start = std::max(offset, chunk << bits);
    const uint64_t stop = std::min(end, (chunk + 1) << bits);
    const Extent extent{start, index.block * kErofsBlockSize + (start - (chunk << bits)), stop - start};
    if (!extents.empty() && extents.back().file_offset + extents.back().length == extent.file_offset &&
        extents.back().data_offset + extents.back().length == extent.data_offset) {
      extents.back().length += extent.length;
    } else {
      extents.push_back(extent);
    }
  }
  return extents;
}

absl::Status ErofsImage::LoadTreeInode(uint64_t nid, Inode* inode) const {
  ASSIGN_OR_RETURN(const Stat stat, GetInode(nid));
  inode->mode = stat.mode;
  inode->uid = stat.uid;
  inode->gid = stat.gid;
  inode->nlink = stat.nlink;
  inode->device_major = stat.device_major;
  inode->device_minor = stat.device_minor;
  inode->mtime_seconds = stat.mtime_seconds;
  inode->mtime_nanoseconds = stat.mtime_nanoseconds;
  inode->size = S_ISDIR(stat.mode) ? 0 : stat.size;
  ASSIGN_OR_RETURN(inode->xattrs, Xattrs(nid));
  for (auto xattr = inode->xattrs.begin(); xattr != inode->xattrs.end();) {
    const bool marker = xattr->first == "trusted.overlay.opaque" || xattr->first == "user.overlay.opaque";
    inode->opaque = inode->opaque || marker;
    xattr = marker ? inode->xattrs.erase(xattr) : xattr + 1;
  }
  if (S_ISLNK(stat.mode)) {
    ASSIGN_OR_RETURN(inode->symlink, ReadLink(nid));
  }
  if (S_ISREG(stat.mode)) {
    ASSIGN_OR_RETURN(inode->extents, MapFile(nid, 0, stat.size));
  }
  return absl::OkStatus();
}

absl::StatusOr<Tree> ErofsImage::ToTree() const {
  Tree tree;
  absl::flat_hash_map<uint64_t, uint32_t> numbers;
  struct Open {
    uint64_t nid;
    uint32_t number;
  };
  std::vector<Open> stack = {{root_, 0}};
  tree.inodes.reserve(inode_count_);
  tree.inodes.emplace_back();
  RETURN_IF_ERROR(LoadTreeInode(root_, &tree.inodes[0]));
  if (!S_ISDIR(tree.inodes[0].mode)) return Damaged(root_, "the root is not a directory");
  numbers.emplace(root_, 0);
  while (!stack.empty()) {
    const Open at = stack.back();
    stack.pop_back();
    const size_t first = stack.size();
    std::vector<std::pair<std::string, uint32_t>> children;
    absl::Status inner;
    RETURN_IF_ERROR(ReadDirectory(at.nid, 0, [&](absl::string_view name, uint64_t nid, uint8_t, uint64_t) {
      if (name == "." || name == "..") return true;
      const auto next = static_cast<uint32_t>(tree.inodes.size());
      const auto [found, is_new] = numbers.emplace(nid, next);
      if (!children.empty() && absl::string_view(children.back().first) >= name) {
        inner = Damaged(at.nid, "directory out of order");
      } else if (!is_new && S_ISDIR(tree.inodes[found->second].mode)) {
        inner = Damaged(nid, "directory in two places");
      } else if (is_new && next >= inode_count_) {
        inner = Damaged(nid, "more inodes than the superblock says");
      } else if (is_new) {
        tree.inodes.emplace_back();
        inner = LoadTreeInode(nid, &tree.inodes.back());
        const Inode& inode = tree.inodes.back();
        if (S_ISDIR(inode.mode)) stack.push_back({nid, next});
        const bool whiteout = S_ISCHR(inode.mode) && inode.device_major == 0 && inode.device_minor == 0;
        tree.has_whiteouts = tree.has_whiteouts || whiteout || inode.opaque;
      }
      children.emplace_back(std::string(name), found->second);
      return inner.ok();
    }));
    RETURN_IF_ERROR(inner);
    std::reverse(stack.begin() + static_cast<ptrdiff_t>(first), stack.end());
    tree.inodes[at.number].children = std::move(children);
  }
  tree.has_whiteouts = tree.has_whiteouts || tree.inodes[0].opaque;
  if (tree.inodes.size() != inode_count_) return Damaged(root_, "fewer inodes than the superblock says");
  return tree;
}

}  // namespace lazyblob::layer
