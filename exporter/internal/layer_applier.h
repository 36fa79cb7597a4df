#pragma once

// Unpacks the tar of one layer over what lies in a directory: whiteouts and opaque markers delete what lower
// layers have there, never what this layer brings. Every path is looked up inside the directory, whatever
// links are in it: openat2 within the root, or name by name without following links; and everything is set by
// file descriptor. One thread at a time; the tree must not be changed by others meanwhile. The rules are
// those of mounted layers (docs/LAYER_INDEX.md, "What makes the tree"), except that links of lower layers are
// followed too.

#include <sys/stat.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/file.h"
#include "layer/entry.h"
#include "layer/tar_stream.h"

namespace lazyblob::exporter::internal {

class LayerApplier {
 public:
  // `root`: a descriptor of the directory, open for reading; outlives this.
  explicit LayerApplier(int root) : root_(root) {}

  // The next bytes of the tar. InvalidArgument names the entry that is damaged or cannot be; errors of the
  // file system name the entry too. Errors are sticky: what is unpacked then is of no use.
  absl::Status Feed(absl::Span<const uint8_t> bytes);
  // The tar is complete: directories get their times.
  absl::Status Finish();

  uint64_t entries() const { return entries_; }
  // Attributes that the file system does not take.
  uint64_t xattrs_skipped() const { return xattrs_skipped_; }

 private:
  using Parts = std::vector<std::string>;
  // A directory of the tree, by the way that has no links in it.
  struct Directory {
    base::UniqueFd fd;
    std::string path;  // "" is the root
  };
  using DirectoryPtr = std::shared_ptr<Directory>;  // held by the cache and by whoever works in it

  absl::Status Begin(layer::Entry entry);
  absl::Status WriteData(absl::Span<const uint8_t> bytes, uint64_t offset);
  absl::Status End();

  // The directory `parts`, links followed inside the root. NotFound, or made, when it is missing.
  absl::StatusOr<DirectoryPtr> OpenDirectory(const Parts& parts, bool make);
  absl::StatusOr<DirectoryPtr> Walk(const Parts& parts, bool make);
  absl::StatusOr<DirectoryPtr> MakeImplied(const Directory& parent, const std::string& name);
  // Remembers the times of a directory that is about to change.
  absl::Status Touch(int directory, const std::string& path);

  absl::Status Root(const layer::Entry& entry);
  absl::Status Whiteout(const Parts& parent, absl::string_view base);
  absl::Status Place(const layer::Entry& entry, const Directory& parent, const std::string& name,
                     const std::string& path);
  absl::Status UpdateDirectory(const layer::Entry& entry, const Directory& parent, const std::string& name,
                               const std::string& path);
  absl::Status HardLink(const layer::Entry& entry, const Directory& parent, const std::string& name,
                        const std::string& path);
  absl::Status Create(const layer::Entry& entry, const Directory& parent, const std::string& name);
  // `spare`: what this layer has brought stays.
  absl::Status Remove(int directory, const std::string& name, const std::string& path, bool spare);
  absl::Status RemoveChildren(int directory, const std::string& path, bool spare);
  // `path_only`: `fd` is O_PATH (links, devices, pipes).
  absl::Status SetMetadata(int fd, bool path_only, const layer::Entry& entry);
  absl::Status SetXattrs(int fd, bool path_only, const layer::Entry& entry);
  absl::Status ClearXattrs(int fd);

  const int root_;
  layer::TarFollower follower_;
  uint64_t position_ = 0;  // in the tar
  absl::Status failed_;

  layer::Entry current_;  // the file whose data come
  base::UniqueFd file_;   // of current_; invalid when it has none
  size_t next_extent_ = 0;

  std::string cached_key_;  // last result of OpenDirectory
  DirectoryPtr cached_;
  absl::flat_hash_set<std::string> brought_;  // paths of this layer's entries
  std::map<std::string, timespec> times_;     // of directories, to be set at the end
  uint64_t entries_ = 0;
  uint64_t xattrs_skipped_ = 0;
};

}  // namespace lazyblob::exporter::internal
