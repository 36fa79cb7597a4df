#pragma once

// A directory that goes away with its object. It lies on a real disk file system where there is one (state of
// the daemon must: EROFS and sparse files want ext4, xfs or btrfs): $LAZYBLOB_TEST_TMPDIR, else /var/tmp, the
// current directory or /tmp, whichever comes first. Ends the test program when no directory can be made.

#include <string>

#include "absl/strings/string_view.h"

namespace lazyblob::support {

class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  // path() + "/" + name; nothing is created.
  std::string File(absl::string_view name) const;
  // Whether the directory is on ext4, xfs or btrfs.
  bool on_disk() const { return on_disk_; }

 private:
  std::string path_;
  bool on_disk_ = false;
};

}  // namespace lazyblob::support
