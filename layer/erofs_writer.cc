// Two passes over the tree: the first gives every inode its place, the second writes front to back. Beside
// the tree only two numbers per inode are held.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "layer/erofs.h"
#include "layer/internal/erofs_format.h"
#include "layer/internal/extent_layout.h"
#include "layer/internal/image_file.h"
#include "layer/internal/tree_rules.h"
#include "layer/layer_index.h"

namespace lazyblob::layer {
namespace {

using namespace internal;  // NOLINT: the format's vocabulary, this file only

constexpr uint64_t kFileAlignment = 4096;

uint64_t AlignUp(uint64_t value, uint64_t alignment) { return (value + alignment - 1) & ~(alignment - 1); }

// Where the parts of one inode lie.
struct Plan {
  ErofsLayout layout = ErofsLayout::kPlain;
  uint64_t xattr_bytes = 0;  // with header
  uint64_t tail_bytes = 0;   // of a directory's or symlink's last block, stored after the inode
  uint64_t blocks = 0;       // in the block region
  uint64_t size = 0;         // i_size
  uint64_t chunks = 0;       // chunk indexes after the inode
  unsigned chunk_bits = 0;   // log2 of a chunk in blocks
};

class Writer {
 public:
  Writer(const Tree& tree, const ErofsOptions& options, base::UniqueFd fd)
      : tree_(tree), options_(options), out_(std::move(fd)) {}

  absl::Status Write();

 private:
  struct Child {
    absl::string_view name;
    uint32_t inode;
  };

  absl::Status CheckTree();
  absl::Status Place();
  void WriteHead();
  absl::Status WriteInode(uint32_t number, const Plan& plan, uint32_t first_block);
  void WriteXattrs(const Inode& inode, const Plan& plan);
  void WriteChunks(const Inode& inode, const Plan& plan);

  absl::StatusOr<Plan> PlanOf(uint32_t number) const;
  uint64_t XattrBytes(const Inode& inode) const;
  absl::Status Misfit(uint32_t number, absl::string_view why) const;
  // Calls `sink(bytes)` for every directory block; all but the last are full.
  template <typename Sink>
  void EncodeDirectory(uint32_t number, Sink sink) const;
  template <typename Visit>
  void ForEachChild(uint32_t number, Visit visit) const;
  uint64_t Nid(uint32_t number) const { return slots_[number]; }

  const Tree& tree_;
  const ErofsOptions& options_;
  ImageFile out_;
  std::vector<uint32_t> slots_;    // by inode: its nid
  std::vector<uint32_t> parents_;  // by inode: the directory a directory lies in
  uint64_t first_block_ = 0;       // of the block region
  uint64_t block_count_ = 0;       // of the image
};

absl::Status Writer::Misfit(uint32_t number, absl::string_view why) const {
  return absl::InvalidArgumentError(
      absl::StrCat("EROFS image of ", options_.layer.ToString(), ": inode ", number, ": ", why));
}

// Every directory is in one place, names are sorted and fit for a directory, numbers fit their fields.
absl::Status Writer::CheckTree() {
  const size_t count = tree_.inodes.size();
  if (count == 0 || count >= kNoInode || !S_ISDIR(tree_.inodes[0].mode))
    return Misfit(0, "no root directory");
  parents_.assign(count, kNoInode);
  parents_[0] = 0;
  for (uint32_t number = 0; number < count; ++number) {
    const Inode& inode = tree_.inodes[number];
    if (ErofsFileType(inode.mode) == 0 || inode.mode > 0xffff) return Misfit(number, "unknown type");
    if (inode.mtime_nanoseconds >= 1'000'000'000) return Misfit(number, "malformed time");
    if (inode.device_major > kErofsMaxMajor || inode.device_minor > kErofsMaxMinor) {
      return Misfit(number, "device number out of range");
    }
    if (S_ISLNK(inode.mode) && (inode.symlink.empty() || inode.symlink.size() > kMaxSymlinkBytes)) {
      return Misfit(number, "symbolic link without text, or too long");
    }
    absl::string_view last;
    for (const auto& [name, child] : inode.children) {
      RETURN_IF_ERROR(base::Annotate(CheckName(name), absl::StrCat("inode ", number)));
      if (child >= count || child == 0 || absl::string_view(name) <= last) {
        return Misfit(number, "children unsorted or unknown");
      }
      last = name;
      if (!S_ISDIR(tree_.inodes[child].mode)) continue;
      if (parents_[child] != kNoInode) return Misfit(child, "directory in two places");
      parents_[child] = number;
    }
  }
  return absl::OkStatus();
}

template <typename Visit>
void Writer::ForEachChild(uint32_t number, Visit visit) const {
  const Child dots[] = {{".", number}, {"..", parents_[number]}};
  size_t dot = 0;
  for (const auto& [name, child] : tree_.inodes[number].children) {
    while (dot < 2 && dots[dot].name < absl::string_view(name)) visit(dots[dot++]);
    visit(Child{name, child});
  }
  while (dot < 2) visit(dots[dot++]);
}

template <typename Sink>
void Writer::EncodeDirectory(uint32_t number, Sink sink) const {
  std::vector<Child> block;
  uint64_t used = 0;
  uint8_t bytes[kErofsBlockSize];
  auto emit = [&] {
    uint64_t name_at = block.size() * sizeof(ErofsDirent);
    for (size_t i = 0; i < block.size(); ++i) {
      ErofsDirent dirent{};
      dirent.nid = slots_.empty() ? 0 : Nid(block[i].inode);
      dirent.name_offset = static_cast<uint16_t>(name_at);
      dirent.file_type = ErofsFileType(tree_.inodes[block[i].inode].mode);
      std::memcpy(bytes + i * sizeof(dirent), &dirent, sizeof(dirent));
      std::memcpy(bytes + name_at, block[i].name.data(), block[i].name.size());
      name_at += block[i].name.size();
    }
  };
  ForEachChild(number, [&](const Child& child) {
    const uint64_t more = sizeof(ErofsDirent) + child.name.size();
    if (used + more > kErofsBlockSize) {
      std::memset(bytes, 0, sizeof(bytes));
      emit();
      sink(absl::MakeConstSpan(bytes, kErofsBlockSize));
      block.clear();
      used = 0;
    }
    block.push_back(child);
    used += more;
  });
  emit();
  sink(absl::MakeConstSpan(bytes, used));
}

uint64_t Writer::XattrBytes(const Inode& inode) const {
  if (inode.xattrs.empty() && !inode.opaque) return 0;
  uint64_t bytes = sizeof(ErofsXattrHeader);
  auto add = [&bytes](absl::string_view name, size_t value) {
    const ErofsXattrPrefix* prefix = FindErofsXattrPrefix(name);
    if (prefix == nullptr) return;
    bytes += AlignUp(sizeof(ErofsXattrEntry) + name.size() - prefix->text.size() + value, 4);
  };
  if (inode.opaque) add(options_.opaque_xattr, 1);
  for (const auto& [name, value] : inode.xattrs) add(name, value.size());
  return bytes;
}

absl::StatusOr<Plan> Writer::PlanOf(uint32_t number) const {
  const Inode& inode = tree_.inodes[number];
  Plan plan;
  plan.xattr_bytes = XattrBytes(inode);
  for (const auto& [name, value] : inode.xattrs) {
    if (FindErofsXattrPrefix(name) == nullptr || name.size() > kMaxNameBytes || value.size() > 0xffff) {
      return Misfit(number, "an extended attribute that EROFS cannot hold");
    }
  }
  if (plan.xattr_bytes > kErofsMaxXattrBytes + 64)
    return Misfit(number, "extended attributes larger than 64 KiB");
  if (S_ISREG(inode.mode)) {
    plan.size = inode.size;
    if (inode.size == 0) return plan;
    if (inode.size > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return Misfit(number, "file larger than 2^63 bytes");
    }
    std::vector<Extent> extents = inode.extents;
    RETURN_IF_ERROR(NormalizeExtents(absl::StrCat("inode ", number), inode.size, &extents));
    for (const Extent& extent : extents) {
      if ((extent.data_offset + extent.length - 1) / kErofsBlockSize >= kErofsNullBlock) {
        return Misfit(number, "data beyond what EROFS can address");
      }
    }
    const std::optional<int> bits = ChunkBits(inode.size, extents);
    if (!bits.has_value() || *bits < static_cast<int>(kErofsBlockBits) || *bits > kMaxChunkBits) {
      return Misfit(number, "runs of data that EROFS cannot map");
    }
    plan.layout = ErofsLayout::kChunks;
    plan.chunk_bits = static_cast<unsigned>(*bits) - kErofsBlockBits;
    plan.chunks = ((inode.size - 1) >> *bits) + 1;
    return plan;
  }
  if (S_ISDIR(inode.mode)) {
    uint64_t last = 0;
    EncodeDirectory(number, [&](absl::Span<const uint8_t> block) {
      plan.size += block.size();
      last = block.size();
    });
    plan.tail_bytes = last % kErofsBlockSize;
  } else if (S_ISLNK(inode.mode)) {
    plan.size = inode.symlink.size();
    plan.tail_bytes = plan.size < kErofsBlockSize ? plan.size : 0;
  }
  // The kernel wants a tail inside one block; ours is in the inode's own, or not inline at all.
  if (plan.tail_bytes > 0 && sizeof(ErofsInode) + plan.xattr_bytes + plan.tail_bytes <= kErofsBlockSize) {
    plan.layout = ErofsLayout::kInline;
    plan.blocks = plan.size / kErofsBlockSize;
  } else {
    plan.tail_bytes = 0;
    plan.blocks = AlignUp(plan.size, kErofsBlockSize) / kErofsBlockSize;
  }
  return plan;
}

// Bytes of the inode region from `position` on: where the inode with `plan` starts.
uint64_t InodeStart(uint64_t position, const Plan& plan) {
  const uint64_t start = AlignUp(position, kErofsSlotSize);
  const uint64_t together =
      sizeof(ErofsInode) + (plan.layout == ErofsLayout::kInline ? plan.xattr_bytes + plan.tail_bytes : 0);
  return start % kErofsBlockSize + together > kErofsBlockSize ? AlignUp(start, kErofsBlockSize) : start;
}

uint64_t InodeEnd(uint64_t start, const Plan& plan) {
  uint64_t end = start + sizeof(ErofsInode) + plan.xattr_bytes + plan.tail_bytes;
  if (plan.chunks > 0) end = AlignUp(end, sizeof(ErofsChunkIndex)) + plan.chunks * sizeof(ErofsChunkIndex);
  return end;
}

absl::Status Writer::Place() {
  uint64_t position = kErofsRootOffset;
  uint64_t blocks = 0;
  std::vector<uint32_t> slots(tree_.inodes.size());
  for (uint32_t number = 0; number < slots.size(); ++number) {
    ASSIGN_OR_RETURN(const Plan plan, PlanOf(number));
    const uint64_t start = InodeStart(position, plan);
    if (start / kErofsSlotSize >= kNoInode) return Misfit(number, "more than 128 GiB of metadata");
    slots[number] = static_cast<uint32_t>(start / kErofsSlotSize);
    position = InodeEnd(start, plan);
    blocks += plan.blocks;
  }
  slots_ = std::move(slots);
  first_block_ = AlignUp(position, kErofsBlockSize) / kErofsBlockSize;
  block_count_ = AlignUp((first_block_ + blocks) * kErofsBlockSize, kFileAlignment) / kErofsBlockSize;
  if (block_count_ >= kErofsNullBlock) return Misfit(0, "more metadata than EROFS can address");
  return absl::OkStatus();
}

void Writer::WriteHead() {
  uint8_t head[kErofsRootOffset - kErofsSuperOffset] = {};
  static_assert(sizeof(head) == kErofsBlockSize);
  ErofsSuperBlock super{};
  super.magic = kErofsMagic;
  super.feature_compat = kErofsCompatChecksum;
  super.block_bits = kErofsBlockBits;
  super.root_nid = kErofsRootOffset / kErofsSlotSize;
  super.inodes = tree_.inodes.size();
  super.blocks = static_cast<uint32_t>(block_count_);
  const absl::Span<const uint8_t> digest = options_.layer.bytes();
  std::memcpy(super.uuid, digest.data(), sizeof(super.uuid));
  super.uuid[6] = static_cast<uint8_t>((super.uuid[6] & 0x0f) | 0x80);  // RFC 9562: version 8, free form
  super.uuid[8] = static_cast<uint8_t>((super.uuid[8] & 0x3f) | 0x80);
  super.feature_incompat = kErofsIncompatChunkedFile | kErofsIncompatDeviceTable;
  super.extra_devices = 1;
  super.device_slot = kErofsDeviceSlotOffset / sizeof(ErofsDeviceSlot);
  ErofsDeviceSlot slot{};
  slot.blocks = static_cast<uint32_t>(
      std::min<uint64_t>(AlignUp(options_.data_size, kErofsBlockSize) / kErofsBlockSize, kErofsNullBlock));
  std::memcpy(head, &super, sizeof(super));
  std::memcpy(head + (kErofsDeviceSlotOffset - kErofsSuperOffset), &slot, sizeof(slot));
  super.checksum = ErofsSuperChecksum(head);
  std::memcpy(head, &super, sizeof(super));
  out_.ZeroUntil(kErofsSuperOffset);
  out_.Append(head);
}

void Writer::WriteXattrs(const Inode& inode, const Plan& plan) {
  if (plan.xattr_bytes == 0) return;
  out_.AppendStruct(ErofsXattrHeader{});
  auto add = [this](absl::string_view name, absl::string_view value) {
    const ErofsXattrPrefix* prefix = FindErofsXattrPrefix(name);
    if (prefix == nullptr) return;
    name.remove_prefix(prefix->text.size());
    out_.AppendStruct(ErofsXattrEntry{static_cast<uint8_t>(name.size()), prefix->index,
                                      static_cast<uint16_t>(value.size())});
    out_.Append({reinterpret_cast<const uint8_t*>(name.data()), name.size()});
    out_.Append({reinterpret_cast<const uint8_t*>(value.data()), value.size()});
    out_.ZeroUntil(AlignUp(out_.position(), 4));
  };
  if (inode.opaque) add(options_.opaque_xattr, "y");
  for (const auto& [name, value] : inode.xattrs) add(name, value);
}

void Writer::WriteChunks(const Inode& inode, const Plan& plan) {
  out_.ZeroUntil(AlignUp(out_.position(), sizeof(ErofsChunkIndex)));
  const uint64_t chunk_size = kErofsBlockSize << plan.chunk_bits;
  auto extent = inode.extents.begin();
  for (uint64_t chunk = 0; chunk < plan.chunks; ++chunk) {
    const uint64_t offset = chunk * chunk_size;
    while (extent != inode.extents.end() && extent->file_offset + extent->length <= offset) ++extent;
    ErofsChunkIndex index{0, 0, kErofsNullBlock};
    if (extent != inode.extents.end() && extent->file_offset <= offset) {
      index.device = 1;
      index.block =
          static_cast<uint32_t>((extent->data_offset + (offset - extent->file_offset)) / kErofsBlockSize);
    }
    out_.AppendStruct(index);
  }
}

absl::Status Writer::WriteInode(uint32_t number, const Plan& plan, uint32_t first_block) {
  const Inode& inode = tree_.inodes[number];
  out_.ZeroUntil(Nid(number) * kErofsSlotSize);
  ErofsInode raw{};
  raw.format = static_cast<uint16_t>(1 | static_cast<unsigned>(plan.layout) << 1);
  if (plan.xattr_bytes > 0) {
    raw.xattr_count = static_cast<uint16_t>((plan.xattr_bytes - sizeof(ErofsXattrHeader)) / 4 + 1);
  }
  raw.mode = static_cast<uint16_t>(inode.mode);
  raw.size = plan.size;
  raw.number = number + 1;
  raw.uid = inode.uid;
  raw.gid = inode.gid;
  raw.mtime = inode.mtime_seconds;
  raw.mtime_nanoseconds = inode.mtime_nanoseconds;
  raw.nlink = inode.nlink;
  if (S_ISCHR(inode.mode) || S_ISBLK(inode.mode)) {
    raw.where = ErofsEncodeDevice(inode.device_major, inode.device_minor);
  } else if (plan.layout == ErofsLayout::kChunks) {
    raw.where = kErofsChunkIndexes | plan.chunk_bits;
  } else if (plan.blocks > 0) {
    raw.where = first_block;
  }
  out_.AppendStruct(raw);
  WriteXattrs(inode, plan);
  if (plan.chunks > 0) WriteChunks(inode, plan);
  if (plan.tail_bytes > 0 && S_ISLNK(inode.mode)) {
    out_.Append({reinterpret_cast<const uint8_t*>(inode.symlink.data()), inode.symlink.size()});
  } else if (plan.tail_bytes > 0) {
    EncodeDirectory(number, [&](absl::Span<const uint8_t> block) {
      if (block.size() < kErofsBlockSize) out_.Append(block);
    });
  }
  return out_.status();
}

absl::Status Writer::Write() {
  RETURN_IF_ERROR(CheckTree());
  RETURN_IF_ERROR(Place());
  WriteHead();
  uint64_t block = first_block_;
  for (uint32_t number = 0; number < tree_.inodes.size(); ++number) {
    ASSIGN_OR_RETURN(const Plan plan, PlanOf(number));
    RETURN_IF_ERROR(WriteInode(number, plan, static_cast<uint32_t>(block)));
    block += plan.blocks;
  }
  out_.ZeroUntil(first_block_ * kErofsBlockSize);
  for (uint32_t number = 0; number < tree_.inodes.size(); ++number) {
    const Inode& inode = tree_.inodes[number];
    if (!S_ISDIR(inode.mode) && !S_ISLNK(inode.mode)) continue;
    ASSIGN_OR_RETURN(const Plan plan, PlanOf(number));
    if (plan.blocks == 0) continue;
    uint64_t left = plan.blocks;
    auto put = [&](absl::Span<const uint8_t> bytes) {
      if (left == 0) return;  // the inline tail
      --left;
      out_.Append(bytes);
      out_.ZeroUntil(AlignUp(out_.position(), kErofsBlockSize));
    };
    if (S_ISDIR(inode.mode)) {
      EncodeDirectory(number, put);
    } else {
      out_.Append({reinterpret_cast<const uint8_t*>(inode.symlink.data()), inode.symlink.size()});
      out_.ZeroUntil(AlignUp(out_.position(), kErofsBlockSize));
    }
  }
  out_.ZeroUntil(block_count_ * kErofsBlockSize);
  out_.Flush();
  RETURN_IF_ERROR(out_.status());
  if (::fdatasync(out_.fd()) != 0) return base::ErrnoStatus(errno, "syncing the EROFS image");
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteErofs(const Tree& tree, const ErofsOptions& options, const std::string& path) {
  if (options.data_size > kMaxDataBytes) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", options.layer.ToString(), " has ",
                                                   options.data_size,
                                                   " bytes of data; EROFS can address 2 TiB"));
  }
  // Never an old file's inode: the kernel may have that mounted.
  if (::unlink(path.c_str()) != 0 && errno != ENOENT)
    return base::ErrnoStatus(errno, absl::StrCat("unlink ", path));
  ASSIGN_OR_RETURN(base::UniqueFd fd, base::OpenFile(path, O_WRONLY | O_CREAT | O_EXCL, 0600));
  absl::Status written = Writer(tree, options, std::move(fd)).Write();
  if (!written.ok()) ::unlink(path.c_str());
  return written;
}

}  // namespace lazyblob::layer
