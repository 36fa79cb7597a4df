#include "contentservice/containerd_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "contentservice/internal/link_or_copy.h"

namespace lazyblob::contentservice {
namespace {

constexpr const char* kAlgorithms[] = {"sha256", "sha512"};
constexpr size_t kNamedInErrors = 5;

// Writes a blob below a temporary name; its directory is synced by the caller.
absl::Status WriteBlob(Content& content, const Info& info, const std::string& path,
                       const std::shared_ptr<base::CancelToken>& cancel) {
  const std::string temporary = path + ".tmp";
  absl::Cleanup remove = [&] { unlink(temporary.c_str()); };
  ASSIGN_OR_RETURN(base::UniqueFd file, base::OpenFile(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0444));
  RETURN_IF_ERROR(content.Read(
      info.digest, 0, 0, [&](absl::Span<const uint8_t> bytes) { return base::WriteFull(file.get(), bytes); },
      cancel));
  if (fdatasync(file.get()) != 0 || rename(temporary.c_str(), path.c_str()) != 0) {
    return base::ErrnoStatus(errno, absl::StrCat("write ", path));
  }
  return absl::OkStatus();
}

absl::Status RefuseLazy(const std::vector<Info>& blobs, Content& content) {
  std::string names;
  size_t count = 0;
  for (const Info& info : blobs) {
    if (content.HeldFile(info.digest).ok() || ++count > kNamedInErrors) continue;
    absl::StrAppend(&names, names.empty() ? "" : ", ", info.digest.ToString());
  }
  if (count == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat(count, " blobs are lazy and not here (", names, count > kNamedInErrors ? ", …" : "",
                   "); have them fetched, or delete the images that need them"));
}

}  // namespace

absl::StatusOr<ImportResult> Import(Content& content, const std::string& directory) {
  ImportResult result;
  bool found = false;
  for (const char* algorithm : kAlgorithms) {
    const std::string blobs = absl::StrCat(directory, "/blobs/", algorithm);
    const auto names = base::ListDirectory(blobs);
    if (absl::IsNotFound(names.status())) continue;
    RETURN_IF_ERROR(names.status());
    found = true;
    std::vector<base::Digest> digests;
    for (const std::string& name : *names) {
      const std::string path = absl::StrCat(blobs, "/", name);
      const auto digest = base::Digest::Parse(absl::StrCat(algorithm, ":", name));
      struct stat st;
      if (digest.ok() && lstat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode)) {
        digests.push_back(*digest);
      } else {
        result.skipped.push_back(path);
      }
    }
    ASSIGN_OR_RETURN(const size_t adopted, content.Adopt(directory + "/blobs", digests));
    result.blobs += adopted;
    result.present += digests.size() - adopted;
  }
  if (!found) {
    return absl::NotFoundError(absl::StrCat(
        directory, ": has no blobs/sha256; name containerd's io.containerd.content.v1.content directory"));
  }
  return result;
}

absl::StatusOr<ExportResult> Export(Content& content, const std::string& directory, bool unlazy,
                                    const std::shared_ptr<base::CancelToken>& cancel) {
  std::vector<Info> blobs;
  RETURN_IF_ERROR(content.List({}, [&](const Info& info) {
    blobs.push_back(info);
    return absl::OkStatus();
  }));
  std::set<base::Digest> listed;
  for (const Info& info : blobs) listed.insert(info.digest);
  for (Info& info : content.MayBeHeldLazily()) {
    if (!listed.contains(info.digest)) blobs.push_back(std::move(info));
  }
  if (!unlazy) RETURN_IF_ERROR(RefuseLazy(blobs, content));
  for (const char* algorithm : kAlgorithms) {
    RETURN_IF_ERROR(base::MakeDirectories(absl::StrCat(directory, "/blobs/", algorithm)));
  }
  ExportResult result;
  for (const Info& info : blobs) {
    if (cancel != nullptr && cancel->cancelled()) return absl::CancelledError("the export was cancelled");
    const bool sha512 = info.digest.algorithm() == base::DigestAlgorithm::kSha512;
    const std::string path =
        absl::StrCat(directory, "/blobs/", kAlgorithms[sha512 ? 1 : 0], "/", info.digest.hex());
    struct stat st;
    if (lstat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode) &&
        static_cast<uint64_t>(st.st_size) == info.size) {
      ++result.present;
      continue;
    }
    if (const auto held = content.HeldFile(info.digest); held.ok()) {
      RETURN_IF_ERROR(internal::LinkOrCopy(*held, path));
    } else {
      RETURN_IF_ERROR(base::Annotate(WriteBlob(content, info, path, cancel), info.digest.ToString()));
      result.lazy.push_back(info.digest);
    }
    ++result.blobs;
  }
  for (const char* algorithm : kAlgorithms) {
    RETURN_IF_ERROR(base::SyncDirectory(absl::StrCat(directory, "/blobs/", algorithm)));
  }
  return result;
}

}  // namespace lazyblob::contentservice
