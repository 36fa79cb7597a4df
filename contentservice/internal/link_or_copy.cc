#include "contentservice/internal/link_or_copy.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::contentservice::internal {
namespace {

constexpr size_t kPiece = 1 << 20;

absl::Status CopyBytes(int from, int to, uint64_t size) {
  uint64_t done = 0;
  while (done < size) {  // the kernel shares blocks where it can
    const ssize_t n = copy_file_range(from, nullptr, to, nullptr, size - done, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<uint64_t>(n);
  }
  std::vector<uint8_t> buffer(done < size ? kPiece : 0);
  while (done < size) {
    absl::Span<uint8_t> piece(buffer.data(), std::min<uint64_t>(kPiece, size - done));
    RETURN_IF_ERROR(base::PreadFull(from, done, piece));
    RETURN_IF_ERROR(base::PwriteFull(to, done, piece));
    done += piece.size();
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status LinkOrCopy(const std::string& from, const std::string& to) {
  ASSIGN_OR_RETURN(base::UniqueFd source, base::OpenFile(from, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
  struct stat st;
  if (fstat(source.get(), &st) != 0) return base::ErrnoStatus(errno, from);
  if (!S_ISREG(st.st_mode)) return absl::InvalidArgumentError(absl::StrCat(from, ": not a regular file"));
  const std::string temporary = to + ".tmp";
  if (unlink(temporary.c_str()) != 0 && errno != ENOENT) return base::ErrnoStatus(errno, temporary);
  absl::Cleanup remove = [&] { unlink(temporary.c_str()); };
  if (link(from.c_str(), temporary.c_str()) != 0) {
    if (errno != EXDEV && errno != EMLINK && errno != EPERM) {
      return base::ErrnoStatus(errno, absl::StrCat("link ", from, " to ", to));
    }
    ASSIGN_OR_RETURN(base::UniqueFd copy, base::OpenFile(temporary, O_WRONLY | O_CREAT | O_EXCL, 0444));
    RETURN_IF_ERROR(base::Annotate(CopyBytes(source.get(), copy.get(), static_cast<uint64_t>(st.st_size)),
                                   absl::StrCat("copy ", from, " to ", to)));
    const timespec times[2] = {st.st_mtim, st.st_mtim};
    if (futimens(copy.get(), times) != 0 || fdatasync(copy.get()) != 0) {
      return base::ErrnoStatus(errno, temporary);
    }
  }
  if (rename(temporary.c_str(), to.c_str()) != 0) return base::ErrnoStatus(errno, to);
  return absl::OkStatus();
}

}  // namespace lazyblob::contentservice::internal
