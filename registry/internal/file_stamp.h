#pragma once

// What tells one version of a file from another. Values; thread-safe as such.

#include <sys/stat.h>

#include <cerrno>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/status.h"

namespace lazyblob::registry::internal {

struct FileStamp {
  dev_t device = 0;
  ino_t inode = 0;
  off_t size = 0;
  timespec modified{};
  timespec changed{};

  static FileStamp Of(const struct stat& st) {
    return {st.st_dev, st.st_ino, st.st_size, st.st_mtim, st.st_ctim};
  }
  bool operator==(const FileStamp& other) const {
    auto same = [](const timespec& a, const timespec& b) {
      return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
    };
    return device == other.device && inode == other.inode && size == other.size &&
           same(modified, other.modified) && same(changed, other.changed);
  }
};

// nullopt: there is no such file.
inline absl::StatusOr<std::optional<FileStamp>> StampOf(const std::string& path) {
  struct stat st{};
  if (stat(path.c_str(), &st) == 0) return std::optional<FileStamp>(FileStamp::Of(st));
  if (errno == ENOENT || errno == ENOTDIR) return std::optional<FileStamp>();
  return base::ErrnoStatus(errno, path);
}

}  // namespace lazyblob::registry::internal
