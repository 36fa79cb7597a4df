#include "snapshotter/usage.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::snapshotter {
namespace {

// Walks with one descriptor whatever the depth: down by name, up by "..".
class Scan {
 public:
  absl::StatusOr<Usage> Run(const std::string& directory) {
    ASSIGN_OR_RETURN(directory_, base::OpenFile(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    struct stat st;
    if (fstat(directory_.get(), &st) != 0) return base::ErrnoStatus(errno, absl::StrCat("stat ", directory));
    device_ = st.st_dev;
    Count(st);
    RETURN_IF_ERROR(Enter(st));
    while (!levels_.empty()) {
      if (levels_.back().left.empty()) {
        RETURN_IF_ERROR(Leave());
        continue;
      }
      const std::string name = std::move(levels_.back().left.back());
      levels_.back().left.pop_back();
      base::UniqueFd child(
          openat(directory_.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      if (!child.valid()) {
        if (errno == ENOENT || errno == ENOTDIR || errno == ELOOP) continue;
        return base::ErrnoStatus(errno, absl::StrCat("scan ", directory));
      }
      if (fstat(child.get(), &st) != 0) return base::ErrnoStatus(errno, absl::StrCat("scan ", directory));
      if (st.st_dev != device_) continue;
      directory_ = std::move(child);
      RETURN_IF_ERROR(Enter(st));
    }
    return usage_;
  }

 private:
  struct Level {
    ino_t inode;
    std::vector<std::string> left;  // names of directories in it that are still to be entered
  };

  void Count(const struct stat& st) {
    // Directories have one name; so do files with one link.
    if (!S_ISDIR(st.st_mode) && st.st_nlink > 1 && !linked_.insert(st.st_ino).second) return;
    usage_.bytes += static_cast<uint64_t>(st.st_blocks) * 512;
    ++usage_.inodes;
  }

  // Counts the children of directory_.
  absl::Status Enter(const struct stat& own) {
    levels_.push_back({own.st_ino, {}});
    const int copy = openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    std::unique_ptr<DIR, int (*)(DIR*)> stream(copy < 0 ? nullptr : fdopendir(copy), closedir);
    if (stream == nullptr) return base::ErrnoStatus(errno, "open directory");
    while (dirent* entry = readdir(stream.get())) {
      const absl::string_view name = entry->d_name;
      if (name == "." || name == "..") continue;
      struct stat st;
      if (fstatat(directory_.get(), entry->d_name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) != 0) {
        if (errno == ENOENT) continue;
        return base::ErrnoStatus(errno, absl::StrCat("stat ", base::Printable(name)));
      }
      if (st.st_dev != device_) continue;
      Count(st);
      if (S_ISDIR(st.st_mode)) levels_.back().left.emplace_back(name);
    }
    return absl::OkStatus();
  }

  absl::Status Leave() {
    levels_.pop_back();
    if (levels_.empty()) return absl::OkStatus();
    base::UniqueFd parent(openat(directory_.get(), "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct stat st;
    if (!parent.valid() || fstat(parent.get(), &st) != 0 || st.st_ino != levels_.back().inode ||
        st.st_dev != device_) {
      return absl::AbortedError("a directory was moved while its size was measured; try again");
    }
    directory_ = std::move(parent);
    return absl::OkStatus();
  }

  base::UniqueFd directory_;
  dev_t device_ = 0;
  std::vector<Level> levels_;
  absl::flat_hash_set<ino_t> linked_;
  Usage usage_;
};

}  // namespace

absl::StatusOr<Usage> ScanUsage(const std::string& directory) {
  constexpr int kTries = 3;
  absl::StatusOr<Usage> usage;
  for (int i = 0; i < kTries; ++i) {
    usage = Scan().Run(directory);
    if (!absl::IsAborted(usage.status())) return usage;
  }
  return usage;
}

}  // namespace lazyblob::snapshotter
