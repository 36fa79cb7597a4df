#pragma once

// The part of EROFS's on-disk format that our images use, as Linux fs/erofs/erofs_fs.h defines it. All
// numbers are little-endian, as is every machine we run on. docs/LAYER_INDEX.md says what our images choose.

#include <bit>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace lazyblob::layer::internal {

static_assert(std::endian::native == std::endian::little);

inline constexpr unsigned kErofsBlockBits = 9;
inline constexpr uint64_t kErofsBlockSize = uint64_t{1} << kErofsBlockBits;
inline constexpr uint64_t kErofsSlotSize = 32;  // inode numbers count slots from the start of the image
inline constexpr uint64_t kErofsSuperOffset = 1024;
inline constexpr uint32_t kErofsMagic = 0xE0F5E1E2;
inline constexpr uint64_t kErofsDeviceSlotOffset = 1280;
inline constexpr uint64_t kErofsRootOffset =
    1536;  // the root inode: the first one, clear of the checksummed block
inline constexpr uint32_t kErofsCompatChecksum = 1;
inline constexpr uint32_t kErofsIncompatChunkedFile = 4;
inline constexpr uint32_t kErofsIncompatDeviceTable = 8;
inline constexpr uint32_t kErofsNullBlock = 0xffffffff;
inline constexpr uint64_t kErofsMaxXattrBytes = 64 << 10;  // of one inode, with header
inline constexpr uint32_t kErofsMaxMajor = (1 << 12) - 1;
inline constexpr uint32_t kErofsMaxMinor = (1 << 20) - 1;

struct ErofsSuperBlock {
  uint32_t magic;
  uint32_t checksum;
  uint32_t feature_compat;
  uint8_t block_bits;
  uint8_t ext_slots;
  uint16_t root_nid;
  uint64_t inodes;
  uint64_t epoch;
  uint32_t fixed_nanoseconds;
  uint32_t blocks;
  uint32_t meta_block;
  uint32_t xattr_block;
  uint8_t uuid[16];
  uint8_t volume_name[16];
  uint32_t feature_incompat;
  uint16_t compression;
  uint16_t extra_devices;
  uint16_t device_slot;
  uint8_t directory_block_bits;
  uint8_t xattr_prefix_count;
  uint32_t xattr_prefix_start;
  uint64_t packed_nid;
  uint8_t reserved[24];
};
static_assert(sizeof(ErofsSuperBlock) == 128);

struct ErofsDeviceSlot {
  uint8_t tag[64];
  uint32_t blocks;
  uint32_t unified_block;
  uint8_t reserved[56];
};
static_assert(sizeof(ErofsDeviceSlot) == 128);

enum class ErofsLayout : uint16_t { kPlain = 0, kInline = 2, kChunks = 4 };

struct ErofsInode {  // the extended form
  uint16_t format;   // 1 | layout << 1
  uint16_t xattr_count;
  uint16_t mode;
  uint16_t reserved;
  uint64_t size;
  uint32_t where;  // first block, device number or chunk format
  uint32_t number;
  uint32_t uid;
  uint32_t gid;
  int64_t mtime;
  uint32_t mtime_nanoseconds;
  uint32_t nlink;
  uint8_t reserved2[16];
};
static_assert(sizeof(ErofsInode) == 64);

inline constexpr uint32_t kErofsChunkIndexes =
    0x20;  // chunk format: low five bits are the chunk's log2 in blocks

struct ErofsXattrHeader {
  uint32_t name_filter;
  uint8_t shared_count;
  uint8_t reserved[7];
};
static_assert(sizeof(ErofsXattrHeader) == 12);

struct ErofsXattrEntry {
  uint8_t name_size;
  uint8_t name_index;
  uint16_t value_size;
};
static_assert(sizeof(ErofsXattrEntry) == 4);

struct ErofsChunkIndex {
  uint16_t block_high;
  uint16_t device;
  uint32_t block;
};
static_assert(sizeof(ErofsChunkIndex) == 8);

struct __attribute__((packed)) ErofsDirent {
  uint64_t nid;
  uint16_t name_offset;
  uint8_t file_type;
  uint8_t reserved;
};
static_assert(sizeof(ErofsDirent) == 12);

// The prefixes of attribute names that EROFS knows; the rest of the name is stored. Whole names have an empty
// rest.
struct ErofsXattrPrefix {
  uint8_t index;
  bool whole;
  absl::string_view text;
};
inline constexpr ErofsXattrPrefix kErofsXattrPrefixes[] = {
    {1, false, "user."},
    {2, true, "system.posix_acl_access"},
    {3, true, "system.posix_acl_default"},
    {4, false, "trusted."},
    {6, false, "security."},
};
// nullptr: EROFS (as every file system of Linux) has no place for such a name.
inline const ErofsXattrPrefix* FindErofsXattrPrefix(absl::string_view name) {
  for (const ErofsXattrPrefix& prefix : kErofsXattrPrefixes) {
    if (prefix.whole
            ? name == prefix.text
            : name.size() > prefix.text.size() && name.substr(0, prefix.text.size()) == prefix.text) {
      return &prefix;
    }
  }
  return nullptr;
}

// FT_*: the type of a directory entry, from S_IFMT bits; 0 when there is none.
inline uint8_t ErofsFileType(uint32_t mode) {
  switch (mode >> 12 & 15) {
    case 8:
      return 1;
    case 4:
      return 2;
    case 2:
      return 3;
    case 6:
      return 4;
    case 1:
      return 5;
    case 12:
      return 6;
    case 10:
      return 7;
    default:
      return 0;
  }
}

// new_encode_dev() of Linux.
inline uint32_t ErofsEncodeDevice(uint32_t major, uint32_t minor) {
  return (minor & 0xff) | major << 8 | (minor & ~uint32_t{0xff}) << 12;
}
inline uint32_t ErofsDeviceMajor(uint32_t device) { return device >> 8 & 0xfff; }
inline uint32_t ErofsDeviceMinor(uint32_t device) { return (device & 0xff) | (device >> 12 & 0xfff00); }

// CRC-32C with neither initial nor final inversion beyond `seed`, as the kernel's crc32c().
inline uint32_t ErofsCrc32c(uint32_t seed, absl::Span<const uint8_t> bytes) {
  uint32_t crc = seed;
  for (uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
  }
  return crc;
}

// Of the block the superblock lies in, with its checksum field zero.
inline uint32_t ErofsSuperChecksum(absl::Span<const uint8_t> block) { return ErofsCrc32c(0xffffffff, block); }

}  // namespace lazyblob::layer::internal
