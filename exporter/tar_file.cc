// Reading a tar file as a layer's contents.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "exporter/tree.h"
#include "layer/tar_stream.h"
#include "oci/descriptor.h"

namespace lazyblob::exporter {
namespace {

using Bytes = absl::Span<const uint8_t>;

constexpr size_t kReadBytes = 1 << 20;
constexpr size_t kMagicBytes = 6;

struct Magic {
  absl::string_view bytes;
  absl::string_view name;
  bool supported;
  oci::Compression compression;
};
constexpr Magic kMagics[] = {
    {absl::string_view("\x1f\x8b", 2), "gzip", true, oci::Compression::kGzip},
    {absl::string_view("\x28\xb5\x2f\xfd", 4), "zstd", true, oci::Compression::kZstd},
    {absl::string_view("\xfd"
                       "7zXZ\0",
                       6),
     "xz", false, oci::Compression::kNone},
    {absl::string_view("BZh", 3), "bzip2", false, oci::Compression::kNone},
};

absl::StatusOr<oci::Compression> CompressionOf(absl::string_view start) {
  for (const Magic& magic : kMagics) {
    if (!absl::StartsWith(start, magic.bytes)) continue;
    if (magic.supported) return magic.compression;
    return absl::InvalidArgumentError(
        absl::StrCat("it is compressed by ", magic.name, "; give it as it is, or by gzip or zstd"));
  }
  return oci::Compression::kNone;
}

bool Same(const struct stat& a, const struct stat& b) {
  return a.st_size == b.st_size && a.st_mtim.tv_sec == b.st_mtim.tv_sec &&
         a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
}

absl::Status ReadFrom(int fd, const base::CancelToken* cancel, absl::FunctionRef<absl::Status(Bytes)> sink) {
  struct stat before{};
  if (::fstat(fd, &before) != 0) return base::ErrnoStatus(errno, "stat");
  if (!S_ISREG(before.st_mode)) return absl::InvalidArgumentError("it is not a regular file");
  char magic[kMagicBytes];
  const ssize_t size = ::pread(fd, magic, sizeof(magic), 0);
  if (size < 0) return base::ErrnoStatus(errno, "read");
  ASSIGN_OR_RETURN(const oci::Compression compression, CompressionOf({magic, static_cast<size_t>(size)}));
  layer::StreamDecoder decoder(compression);
  std::vector<uint8_t> buffer(kReadBytes);
  for (off_t at = 0;;) {
    if (cancel != nullptr && cancel->cancelled()) return absl::CancelledError("the export was cancelled");
    const ssize_t got = ::pread(fd, buffer.data(), buffer.size(), at);
    if (got < 0) {
      if (errno == EINTR) continue;
      return base::ErrnoStatus(errno, "read");
    }
    if (got == 0) break;
    RETURN_IF_ERROR(decoder.Feed(absl::MakeConstSpan(buffer).first(static_cast<size_t>(got)), sink));
    at += got;
  }
  RETURN_IF_ERROR(decoder.Finish());
  struct stat after{};
  if (::fstat(fd, &after) != 0) return base::ErrnoStatus(errno, "stat");
  return Same(before, after) ? absl::OkStatus() : absl::AbortedError("it changed while it was read");
}

}  // namespace

absl::Status ReadTar(const Source& source, const base::CancelToken* cancel,
                     absl::FunctionRef<absl::Status(Bytes)> sink) {
  if (source.kind != SourceKind::kTar) return absl::InvalidArgumentError("a directory is not a tar file");
  if (!source.target.empty()) return absl::InvalidArgumentError("a tar file takes no TARGET");
  ASSIGN_OR_RETURN(const base::UniqueFd fd, base::OpenFile(source.path, O_RDONLY | O_NONBLOCK));
  return base::Annotate(ReadFrom(fd.get(), cancel, sink), base::Printable(source.path));
}

}  // namespace lazyblob::exporter
