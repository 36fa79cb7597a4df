#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::base {
namespace {

template <typename Call>
auto RetryEintr(Call call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

std::string ParentOf(const std::string& path) {
  size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::Status RemoveTreeAt(int parent, const char* name, dev_t device, int depth);

absl::Status RemoveChildren(int directory, dev_t device, int depth) {
  DIR* stream = fdopendir(directory);  // takes over `directory`
  if (stream == nullptr) {
    int error = errno;
    close(directory);
    return ErrnoStatus(error, "fdopendir");
  }
  absl::Status status;
  while (dirent* entry = readdir(stream)) {
    absl::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    status.Update(RemoveTreeAt(dirfd(stream), entry->d_name, device, depth + 1));
  }
  closedir(stream);
  return status;
}

absl::Status RemoveTreeAt(int parent, const char* name, dev_t device, int depth) {
  constexpr int kMaxDepth = 2048;
  if (depth > kMaxDepth)
    return absl::FailedPreconditionError(absl::StrCat(name, ": directory tree too deep"));
  struct stat st;
  if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
    return errno == ENOENT ? absl::OkStatus() : ErrnoStatus(errno, absl::StrCat("stat ", name));
  }
  if (S_ISDIR(st.st_mode)) {
    if (depth > 0 && st.st_dev != device) {
      return absl::FailedPreconditionError(absl::StrCat(name, ": something is mounted here"));
    }
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
      // Somebody else may remove the same tree.
      return errno == ENOENT ? absl::OkStatus() : ErrnoStatus(errno, absl::StrCat("open ", name));
    }
    RETURN_IF_ERROR(RemoveChildren(fd, st.st_dev, depth));
  }
  if (unlinkat(parent, name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("remove ", name));
  }
  return absl::OkStatus();
}

}  // namespace

void UniqueFd::Reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

absl::StatusOr<UniqueFd> OpenFile(const std::string& path, int flags, uint32_t mode) {
  int fd = RetryEintr([&] { return open(path.c_str(), flags | O_CLOEXEC, mode); });
  if (fd < 0) return ErrnoStatus(errno, absl::StrCat("open ", path));
  return UniqueFd(fd);
}

absl::StatusOr<UniqueFd> OpenNamelessFile(const std::string& directory) {
  const std::string what = absl::StrCat("a nameless file in ", Printable(directory));
  UniqueFd fd(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (fd.valid()) return fd;
  if (errno != EOPNOTSUPP && errno != EISDIR) return ErrnoStatus(errno, what);
  std::string name = absl::StrCat(directory, "/.nameless-XXXXXX");
  fd = UniqueFd(::mkostemp(name.data(), O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, what);
  if (::unlink(name.c_str()) != 0) return ErrnoStatus(errno, absl::StrCat("unlink ", name));
  return fd;
}

absl::Status PreadFull(int fd, uint64_t offset, absl::Span<uint8_t> out) {
  while (!out.empty()) {
    ssize_t n = RetryEintr([&] { return pread(fd, out.data(), out.size(), static_cast<off_t>(offset)); });
    if (n < 0) return ErrnoStatus(errno, "read");
    if (n == 0) return absl::OutOfRangeError("read: file ends too early");
    out.remove_prefix(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

bool TryPreadFull(int fd, uint64_t offset, absl::Span<uint8_t> out) {
  while (!out.empty()) {
    const iovec part = {out.data(), out.size()};
    const ssize_t n =
        RetryEintr([&] { return preadv2(fd, &part, 1, static_cast<off_t>(offset), RWF_NOWAIT); });
    if (n <= 0) return false;
    out.remove_prefix(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return true;
}

absl::Status PwriteFull(int fd, uint64_t offset, absl::Span<const uint8_t> data) {
  while (!data.empty()) {
    ssize_t n = RetryEintr([&] { return pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset)); });
    if (n < 0) return ErrnoStatus(errno, "write");
    data.remove_prefix(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::Status WriteFull(int fd, absl::Span<const uint8_t> data) {
  while (!data.empty()) {
    ssize_t n = RetryEintr([&] { return write(fd, data.data(), data.size()); });
    if (n < 0) return ErrnoStatus(errno, "write");
    data.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t max_bytes) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(path, O_RDONLY));
  std::string contents;
  char buffer[65536];
  while (true) {
    ssize_t n = RetryEintr([&] { return read(fd.get(), buffer, sizeof buffer); });
    if (n < 0) return ErrnoStatus(errno, absl::StrCat("read ", path));
    if (n == 0) return contents;
    if (contents.size() + static_cast<size_t>(n) > max_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat("read ", path, ": larger than ", max_bytes, " bytes"));
    }
    contents.append(buffer, static_cast<size_t>(n));
  }
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents, uint32_t mode) {
  static std::atomic<uint64_t> serial{0};
  std::string temporary = absl::StrCat(path, ".tmp", getpid(), ".", serial++);
  auto write = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(temporary, O_WRONLY | O_CREAT | O_EXCL, mode));
    RETURN_IF_ERROR(WriteFull(
        fd.get(), absl::MakeSpan(reinterpret_cast<const uint8_t*>(contents.data()), contents.size())));
    if (fdatasync(fd.get()) != 0) return ErrnoStatus(errno, "fdatasync");
    if (rename(temporary.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, "rename");
    return SyncDirectory(ParentOf(path));
  };
  absl::Status status = write();
  if (!status.ok()) unlink(temporary.c_str());
  return Annotate(status, absl::StrCat("write ", path));
}

absl::Status SyncDirectory(const std::string& path) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(path, O_RDONLY | O_DIRECTORY));
  if (fsync(fd.get()) != 0) return ErrnoStatus(errno, absl::StrCat("fsync ", path));
  return absl::OkStatus();
}

absl::Status MakeDirectories(const std::string& path) {
  if (mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) {
    struct stat st;
    if (stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) return absl::OkStatus();
    return ErrnoStatus(ENOTDIR, absl::StrCat("mkdir ", path));
  }
  if (errno != ENOENT || path.empty() || path == "/") return ErrnoStatus(errno, absl::StrCat("mkdir ", path));
  RETURN_IF_ERROR(MakeDirectories(ParentOf(path)));
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST)
    return ErrnoStatus(errno, absl::StrCat("mkdir ", path));
  return absl::OkStatus();
}

absl::Status RemoveTree(const std::string& path) {
  return Annotate(RemoveTreeAt(AT_FDCWD, path.c_str(), 0, 0), absl::StrCat("remove ", path));
}

absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) {
  DIR* stream = opendir(path.c_str());
  if (stream == nullptr) return ErrnoStatus(errno, absl::StrCat("open ", path));
  std::vector<std::string> names;
  while (dirent* entry = readdir(stream)) {
    absl::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  closedir(stream);
  std::sort(names.begin(), names.end());
  return names;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(path, O_RDONLY));
  struct stat st;
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, absl::StrCat("stat ", path));
  MappedFile file;
  file.size_ = static_cast<size_t>(st.st_size);
  if (file.size_ == 0) return file;
  void* data = mmap(nullptr, file.size_, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) {
    file.size_ = 0;
    return ErrnoStatus(errno, absl::StrCat("mmap ", path));
  }
  file.data_ = static_cast<const uint8_t*>(data);
  return file;
}

}  // namespace lazyblob::base
