#pragma once

// One inode of a tree that is being read: opened beneath the tree's root without following any link, asked,
// and asked again afterwards. Errors name the path in the tree. One thread at a time.

#include <sys/stat.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/cancel.h"
#include "base/file.h"

namespace lazyblob::exporter::internal {

using Xattrs = std::vector<std::pair<std::string, std::string>>;  // sorted by name

// Aborted: "PATH changed while it was read".
absl::Status Changed(const std::string& path);
// "PATH: " and the reason; a path that is gone is Aborted.
absl::Status PathError(int error, const std::string& path, const char* what);

class InodeReader {
 public:
  // `path` is relative to `root`, "" is the root itself. Aborted when it is gone.
  static absl::StatusOr<InodeReader> Open(int root, const std::string& path);

  const struct stat& stat() const { return stat_; }
  absl::StatusOr<std::string> ReadLink() const;
  absl::StatusOr<Xattrs> ReadXattrs() const;
  // Names in a directory, sorted by bytes.
  absl::StatusOr<std::vector<std::string>> ReadNames() const;
  // The bytes of a regular file, holes as zeros that are not read; Aborted when it is not what stat() said,
  // or does not stay so.
  absl::Status ReadData(absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)> sink,
                        const base::CancelToken* cancel) const;
  // Aborted when the inode's status or contents changed since Open.
  absl::Status CheckUnchanged() const;

 private:
  InodeReader(int root, std::string path, base::UniqueFd fd, const struct stat& st)
      : root_(root), path_(std::move(path)), fd_(std::move(fd)), stat_(st) {}
  absl::StatusOr<base::UniqueFd> Reopen(int flags) const;

  int root_;
  std::string path_;
  base::UniqueFd fd_;  // O_PATH
  struct stat stat_;
};

}  // namespace lazyblob::exporter::internal
