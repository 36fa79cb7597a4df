#pragma once

// EROFS metadata images: the tree of a layer without file contents, which lie in the layer's data area
// (device 1). Format: Linux fs/erofs/erofs_fs.h; extended inodes, inline xattrs, chunk-based regular files,
// 512-byte blocks, incompat bits CHUNKED_FILE and DEVICE_TABLE only. The same tree gives the same bytes.
// docs/LAYER_INDEX.md.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/digest.h"
#include "base/file.h"
#include "layer/tree.h"

namespace lazyblob::layer {

struct ErofsOptions {
  base::Digest layer;                                   // the volume's UUID is made from it
  uint64_t data_size = 0;                               // of the data area (device 1)
  std::string opaque_xattr = "trusted.overlay.opaque";  // or "user.overlay.opaque"
};

// Writes the image to `path` (created; synced). InvalidArgument when a number does not fit the format.
absl::Status WriteErofs(const Tree& tree, const ErofsOptions& options, const std::string& path);

// Reader of images that WriteErofs made: serves the FUSE tree and the tests. Checks every offset (a damaged
// file gives DataLoss, never a bad access). Immutable, memory-mapped, thread-safe. Inode numbers (nid) are
// EROFS's.
class ErofsImage {
 public:
  static absl::StatusOr<std::shared_ptr<const ErofsImage>> Open(const std::string& path);

  struct Stat {
    uint64_t nid = 0;
    uint32_t mode = 0;
    uint32_t uid = 0;
    uint32_t gid = 0;
    uint32_t nlink = 0;
    uint32_t device_major = 0;
    uint32_t device_minor = 0;
    uint64_t size = 0;
    int64_t mtime_seconds = 0;
    uint32_t mtime_nanoseconds = 0;
  };

  uint64_t root() const;
  uint64_t inode_count() const;
  absl::StatusOr<Stat> GetInode(uint64_t nid) const;
  // NotFound when there is no such name.
  absl::StatusOr<uint64_t> Lookup(uint64_t directory, absl::string_view name) const;
  // Calls `visit(name, nid, d_type, next_cookie)` for entries from `cookie` (0: the start, "." and ".."
  // included) until it returns false. Cookies are functions of the image.
  absl::Status ReadDirectory(
      uint64_t directory, uint64_t cookie,
      absl::FunctionRef<bool(absl::string_view, uint64_t, uint8_t, uint64_t)> visit) const;
  absl::StatusOr<std::string> ReadLink(uint64_t nid) const;
  absl::StatusOr<std::vector<std::pair<std::string, std::string>>> Xattrs(uint64_t nid) const;
  // Where [offset, offset + length) of a regular file lies: extents with file_offset as asked; holes left
  // out.
  absl::StatusOr<std::vector<Extent>> MapFile(uint64_t nid, uint64_t offset, uint64_t length) const;
  // Reads the whole image back into a Tree, numbered as TreeBuilder numbers (that image written again has the
  // same bytes). What an image does not say stays unset: `implied` and `implied_directories`.
  absl::StatusOr<Tree> ToTree() const;

 private:
  struct Parts;  // an inode and where its parts lie
  ErofsImage() = default;
  absl::Status Damaged(uint64_t nid, absl::string_view why) const;
  absl::StatusOr<Parts> Load(uint64_t nid) const;
  absl::StatusOr<Parts> LoadDirectory(uint64_t nid) const;
  absl::StatusOr<absl::Span<const uint8_t>> DirectoryBlock(const Parts& parts, uint64_t block) const;
  absl::Status LoadTreeInode(uint64_t nid, Inode* inode) const;

  base::MappedFile file_;
  std::string path_;
  uint64_t size_ = 0;  // of the part that the superblock covers
  uint64_t root_ = 0;
  uint64_t inode_count_ = 0;
};

}  // namespace lazyblob::layer
