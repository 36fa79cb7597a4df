#pragma once

// The tree of one layer, after the rules of OCI layers have been applied: last duplicate wins, hard links
// share an inode, whiteouts are overlayfs whiteouts (character device 0:0), opaque markers are flags, implied
// parents exist. Hostile input ends in InvalidArgument naming the entry.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "layer/entry.h"

namespace lazyblob::layer {

inline constexpr uint32_t kNoInode = 0xffffffff;

struct Inode {
  uint32_t mode = 0;  // S_IFMT | permissions
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t nlink = 1;
  uint32_t device_major = 0;
  uint32_t device_minor = 0;
  uint32_t mtime_nanoseconds = 0;
  int64_t mtime_seconds = 0;
  uint64_t size = 0;
  bool opaque = false;   // directory that hides what lies below
  bool implied = false;  // directory without an entry of its own
  std::string symlink;
  std::vector<std::pair<std::string, std::string>> xattrs;  // sorted; never trusted.* or user.overlay.*
  std::vector<Extent> extents;
  std::vector<std::pair<std::string, uint32_t>>
      children;  // of a directory: name, inode number; sorted by name
};

// Inode 0 is the root directory. Every inode is reachable from it.
struct Tree {
  std::vector<Inode> inodes;
  bool has_whiteouts = false;
  std::vector<std::string> implied_directories;  // paths, "" is the root; sorted
};

// Takes entries in layer order. One thread at a time.
class TreeBuilder {
 public:
  TreeBuilder();
  ~TreeBuilder();
  // `max_entries` bounds memory; limits on names (1–255 bytes, no '/', no NUL), path (4096), depth (1024),
  // symlink (4095), xattrs per inode (64 KiB) are fixed.
  void set_max_entries(uint64_t max_entries);
  absl::Status Add(Entry entry);
  // Hard links are resolved here (targets may come later; cycles and missing targets are errors).
  absl::StatusOr<Tree> Finish();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lazyblob::layer
