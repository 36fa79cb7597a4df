#pragma once

// File descriptors and whole-file operations. All functions retry EINTR and report the path in their errors.
// Thread-safe unless two callers write the same file.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace lazyblob::base {

// Owner of one file descriptor; closes it on destruction.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  ~UniqueFd() { Reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      Reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;
  UniqueFd& operator=(const UniqueFd&) = delete;

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() { return std::exchange(fd_, -1); }
  void Reset();

 private:
  int fd_ = -1;
};

// open(2) with O_CLOEXEC added.
absl::StatusOr<UniqueFd> OpenFile(const std::string& path, int flags, uint32_t mode = 0600);

// A new file without a name on the file system of `directory`, for reading and writing: it is gone with its
// last descriptor. Where the file system knows such files it can still be given a name (linkat).
absl::StatusOr<UniqueFd> OpenNamelessFile(const std::string& directory);

// Reads exactly out.size() bytes at `offset`; OutOfRange when the file ends before.
absl::Status PreadFull(int fd, uint64_t offset, absl::Span<uint8_t> out);
// The same without waiting for a disk: false where bytes are not in the page cache, or the file system cannot
// tell; `out` is undefined then.
bool TryPreadFull(int fd, uint64_t offset, absl::Span<uint8_t> out);
// Writes all of `data` at `offset`.
absl::Status PwriteFull(int fd, uint64_t offset, absl::Span<const uint8_t> data);
// Writes all of `data` at the descriptor's position.
absl::Status WriteFull(int fd, absl::Span<const uint8_t> data);

// The whole of a file of at most `max_bytes` bytes (ResourceExhausted if it is larger).
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes);

// Replaces `path` by `contents`: temporary name in the same directory, fdatasync, rename, sync of the
// directory. After a crash the old or the new contents are there, never a mixture.
absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents, uint32_t mode = 0600);

// fsync(2) of a directory, so that a rename or unlink in it is durable.
absl::Status SyncDirectory(const std::string& path);

// mkdir -p with mode 0700 for what is missing.
absl::Status MakeDirectories(const std::string& path);

// Removes a tree without following symbolic links or crossing into other file systems. NotFound is success.
absl::Status RemoveTree(const std::string& path);

// Names (not "." and "..") in a directory, sorted.
absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path);

// Read-only mapping of a whole file. Movable; the mapping lives as long as the object.
class MappedFile {
 public:
  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&&) noexcept;
  MappedFile& operator=(MappedFile&&) noexcept;

  static absl::StatusOr<MappedFile> Open(const std::string& path);
  absl::Span<const uint8_t> bytes() const { return {data_, size_}; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lazyblob::base
