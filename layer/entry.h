#pragma once

// One member of a layer as the layer says it: a tar header with its extensions, or a TOC entry. Not yet
// resolved: hard links by path, whiteouts by name, duplicates allowed, parents may be missing. TreeBuilder
// makes sense of it.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace lazyblob::layer {

enum class EntryType : uint8_t {
  kRegular,
  kDirectory,
  kSymlink,
  kHardLink,
  kCharDevice,
  kBlockDevice,
  kFifo
};

// A run of a file's bytes in the layer's data area. Ranges of the file that no extent covers are zeros.
struct Extent {
  uint64_t file_offset = 0;
  uint64_t data_offset = 0;
  uint64_t length = 0;
};

struct Entry {
  std::string path;  // bytes as found; TreeBuilder cleans and checks it
  EntryType type = EntryType::kRegular;
  uint32_t mode = 0;  // permission bits, 07777
  uint32_t uid = 0;
  uint32_t gid = 0;
  int64_t mtime_seconds = 0;
  uint32_t mtime_nanoseconds = 0;  // 0 … 999'999'999, added to seconds
  uint64_t size = 0;               // of a regular file
  std::string link_target;         // symlink text verbatim, or the path of a hard link's target
  uint32_t device_major = 0;
  uint32_t device_minor = 0;
  std::vector<std::pair<std::string, std::string>> xattrs;  // full names ("user.x"), as found, sorted by name
  std::vector<Extent> extents;                              // ascending, not overlapping
};

}  // namespace lazyblob::layer
