#include "oci/layout_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/status.h"
#include "oci/index_merge.h"
#include "oci/layout.h"
#include "oci/manifest_writer.h"

namespace lazyblob::oci {
namespace {

using nlohmann::json;

constexpr char kMarker[] = "{\"imageLayoutVersion\":\"1.0.0\"}";
constexpr char kLockName[] = "index.json.lock";
// Who merges an index holds the lock for an instant; a writer that was stopped holds it for ever.
constexpr absl::Duration kLockPatience = absl::Seconds(30);
constexpr absl::Duration kLockInterval = absl::Milliseconds(5);
constexpr char kTemporaryPrefix[] = ".lazyblob-";
constexpr char kTemporarySuffix[] = ".tmp";
constexpr char kLockedTemporary[] = ".lazyblob-index.tmp";

absl::Span<const uint8_t> Bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::string NameOf(const json& entry) {
  const auto annotations = entry.find("annotations");
  if (annotations == entry.end() || !annotations->is_object()) return "";
  const auto name = annotations->find(kRefNameAnnotation);
  return name == annotations->end() || !name->is_string() ? "" : name->get<std::string>();
}

absl::StatusOr<base::UniqueFd> OpenAt(int directory, const char* name, int flags, mode_t mode = 0) {
  base::UniqueFd fd(::openat(directory, name, flags | O_CLOEXEC, mode));
  if (!fd.valid()) return base::ErrnoStatus(errno, absl::StrCat("open ", name));
  return fd;
}

// A directory of the layout's own: a link in its place could lead anywhere.
absl::StatusOr<base::UniqueFd> MakeDirectoryAt(int directory, const char* name) {
  if (::mkdirat(directory, name, 0755) == 0) {
    if (::fsync(directory) != 0) return base::ErrnoStatus(errno, "fsync");
  } else if (errno != EEXIST) {
    return base::ErrnoStatus(errno, absl::StrCat("mkdir ", name));
  }
  return OpenAt(directory, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
}

std::string TemporaryName() {
  static std::atomic<uint64_t> serial{0};
  // The time too, for other hosts may write there.
  return absl::StrCat(kTemporaryPrefix, getpid(), "-", serial++, "-", absl::ToUnixNanos(absl::Now()),
                      kTemporarySuffix);
}

// Takes away what a killed writer has left in the layout's root: whoever lives holds a lock on its file.
absl::Status RemoveLeftovers(int root, const std::string& directory) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, base::ListDirectory(directory));
  for (const std::string& name : names) {
    if (name == kLockedTemporary || !absl::StartsWith(name, kTemporaryPrefix) ||
        !absl::EndsWith(name, kTemporarySuffix)) {
      continue;
    }
    const base::UniqueFd file(::openat(root, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (file.valid() && ::flock(file.get(), LOCK_EX | LOCK_NB) == 0) ::unlinkat(root, name.c_str(), 0);
  }
  return absl::OkStatus();
}

// A file that gets its name when it is complete. Where the file system has no files without a name it has a
// temporary one in the layout's root, where no tool looks for blobs.
class NewFile {
 public:
  // `temporary`: for those who hold the lock, so that what a kill leaves is used again.
  explicit NewFile(int root, std::string temporary = TemporaryName())
      : root_(root), temporary_(std::move(temporary)) {}
  ~NewFile() {
    if (!name_.empty()) ::unlinkat(root_, name_.c_str(), 0);
  }
  absl::Status Create() {
    fd_ = base::UniqueFd(::openat(root_, ".", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0644));
    if (fd_.valid()) return absl::OkStatus();
    if (errno != EOPNOTSUPP && errno != EISDIR) return base::ErrnoStatus(errno, "create a file");
    return CreateNamed();
  }
  absl::Status Append(absl::Span<const uint8_t> bytes) { return base::WriteFull(fd_.get(), bytes); }
  // Becomes `name` in `directory`, instead of what had that name; durable.
  absl::Status Commit(int directory, const char* name) {
    if (::fsync(fd_.get()) != 0) return base::ErrnoStatus(errno, "fsync");
    if (name_.empty()) {
      const std::string self = absl::StrCat("/proc/self/fd/", fd_.get());
      if (::linkat(AT_FDCWD, self.c_str(), directory, name, AT_SYMLINK_FOLLOW) == 0) return Sync(directory);
      if (errno != EEXIST) return base::ErrnoStatus(errno, "link");
      ::unlinkat(root_, temporary_.c_str(), 0);
      if (::flock(fd_.get(), LOCK_EX) != 0) return base::ErrnoStatus(errno, "lock");
      if (::linkat(AT_FDCWD, self.c_str(), root_, temporary_.c_str(), AT_SYMLINK_FOLLOW) != 0)
        return base::ErrnoStatus(errno, "link");
      name_ = temporary_;
    }
    if (::renameat(root_, name_.c_str(), directory, name) != 0) return base::ErrnoStatus(errno, "rename");
    name_.clear();
    return Sync(directory);
  }

 private:
  static absl::Status Sync(int directory) {
    if (::fsync(directory) != 0) return base::ErrnoStatus(errno, "fsync");
    return absl::OkStatus();
  }
  absl::Status CreateNamed() {
    for (;;) {
      ASSIGN_OR_RETURN(fd_, OpenAt(root_, temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0644));
      name_ = temporary_;
      struct stat st{};
      if (::flock(fd_.get(), LOCK_EX) != 0 || ::fstat(fd_.get(), &st) != 0)
        return base::ErrnoStatus(errno, "lock");
      if (st.st_nlink > 0) return absl::OkStatus();  // else somebody took it for a leftover
    }
  }
  const int root_;
  const std::string temporary_;
  base::UniqueFd fd_;
  std::string name_;  // while it has a temporary one
};

// Under the lock.
absl::Status WriteNew(int root, const char* name, absl::string_view contents) {
  ::unlinkat(root, kLockedTemporary, 0);
  NewFile file(root, kLockedTemporary);
  RETURN_IF_ERROR(file.Create());
  RETURN_IF_ERROR(file.Append(Bytes(contents)));
  return file.Commit(root, name);
}

std::string ParentOf(absl::string_view path) {
  while (path.size() > 1 && absl::ConsumeSuffix(&path, "/")) {
  }
  const size_t slash = path.rfind('/');
  if (slash == absl::string_view::npos) return ".";
  return slash == 0 ? "/" : std::string(path.substr(0, slash));
}

// One directory, whose parent exists: a mistyped path makes no tree of directories.
absl::StatusOr<base::UniqueFd> OpenOrMakeDirectory(const std::string& directory) {
  if (::mkdir(directory.c_str(), 0755) == 0) {
    RETURN_IF_ERROR(base::SyncDirectory(ParentOf(directory)));
  } else if (errno != EEXIST) {
    return base::ErrnoStatus(errno, absl::StrCat("mkdir ", directory));
  }
  return base::OpenFile(directory, O_RDONLY | O_DIRECTORY);
}

// Whether there is nothing in `directory` but what another LayoutWriter that has just begun may have put
// there.
absl::StatusOr<bool> MayBecomeLayout(const std::string& directory) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, base::ListDirectory(directory));
  for (const std::string& name : names) {
    if (name != kLockName && !absl::StartsWith(name, kTemporaryPrefix)) return false;
  }
  return true;
}

}  // namespace

absl::Status MergeIntoIndex(const Descriptor& descriptor, const std::optional<std::string>& name,
                            json* index) {
  if (index->is_null()) *index = {{"schemaVersion", 2}, {"mediaType", kMediaTypeOciIndex}};
  json& manifests = (*index)["manifests"];
  if (!manifests.is_array()) manifests = json::array();
  json added = ToJson(descriptor);
  if (name) added["annotations"][kRefNameAnnotation] = *name;
  json merged = json::array();
  std::vector<std::string> names;
  bool placed = false;
  std::string unnamed;
  for (json& entry : manifests) {
    const std::string entry_name = NameOf(entry);
    const bool same_digest = entry.value("digest", "") == descriptor.digest.ToString();
    if (!name && same_digest) return absl::OkStatus();
    if (!entry_name.empty() && names.size() < 50) names.push_back(base::Printable(entry_name.substr(0, 128)));
    if (entry_name.empty()) unnamed = entry.value("digest", "");
    const bool replaced = name && (entry_name == *name || (entry_name.empty() && same_digest));
    if (!replaced) {
      merged.push_back(std::move(entry));
    } else if (!std::exchange(placed, true)) {
      merged.push_back(added);
    }
  }
  if (!name && !unnamed.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "it holds an image without a name (", unnamed,
        ") and would hold two; give this one a name (oci:DIRECTORY:NAME)",
        names.empty() ? ", there are none yet" : absl::StrCat(", in use are: ", absl::StrJoin(names, ", "))));
  }
  if (!placed) merged.push_back(std::move(added));
  manifests = std::move(merged);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LayoutWriter>> LayoutWriter::Open(const std::string& directory) {
  auto context = [&](const absl::Status& status) {
    return base::Annotate(status, absl::StrCat("image layout ", directory));
  };
  absl::StatusOr<base::UniqueFd> root = OpenOrMakeDirectory(directory);
  if (!root.ok()) return context(root.status());
  std::unique_ptr<LayoutWriter> writer(new LayoutWriter(directory, *std::move(root)));
  if (const absl::Status cleaned = RemoveLeftovers(writer->root_.get(), directory); !cleaned.ok()) {
    return context(cleaned);
  }
  struct stat st{};
  if (::fstatat(writer->root_.get(), "oci-layout", &st, AT_SYMLINK_NOFOLLOW) != 0) {
    absl::StatusOr<bool> empty = MayBecomeLayout(directory);
    if (!empty.ok()) return context(empty.status());
    if (!*empty) {
      // Another process may have been faster.
      if (::fstatat(writer->root_.get(), "oci-layout", &st, AT_SYMLINK_NOFOLLOW) != 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "image layout ", directory,
            ": not a layout and not empty (no file oci-layout); name an empty directory or a layout"));
      }
    } else {
      const absl::StatusOr<base::UniqueFd> lock = writer->Lock();
      if (!lock.ok()) return context(lock.status());
      if (::fstatat(writer->root_.get(), "oci-layout", &st, AT_SYMLINK_NOFOLLOW) != 0) {
        const absl::Status marked = WriteNew(writer->root_.get(), "oci-layout", kMarker);
        if (!marked.ok()) return context(marked);
      }
    }
  }
  // A layout without index.json is one that is just being made: nothing is published in it yet.
  if (::fstatat(writer->root_.get(), "index.json", &st, AT_SYMLINK_NOFOLLOW) == 0) {
    const absl::StatusOr<Layout> layout = Layout::Open(directory);
    if (!layout.ok()) return layout.status();
    return writer;
  }
  const absl::StatusOr<std::string> marker = base::ReadFile(directory + "/oci-layout", 4096);
  if (!marker.ok()) return context(marker.status());
  const absl::StatusOr<json> parsed = base::ParseJson(*marker, 4096);
  if (!parsed.ok() || !parsed->is_object() || parsed->value("imageLayoutVersion", json()) != "1.0.0") {
    return context(absl::InvalidArgumentError("oci-layout does not say imageLayoutVersion 1.0.0"));
  }
  return writer;
}

absl::StatusOr<base::UniqueFd> LayoutWriter::BlobDirectory(const base::Digest& digest) const {
  ASSIGN_OR_RETURN(const base::UniqueFd blobs, MakeDirectoryAt(root_.get(), "blobs"));
  return MakeDirectoryAt(blobs.get(),
                         digest.algorithm() == base::DigestAlgorithm::kSha256 ? "sha256" : "sha512");
}

absl::StatusOr<bool> LayoutWriter::HasBlob(const Descriptor& descriptor) const {
  ASSIGN_OR_RETURN(const base::UniqueFd blobs, BlobDirectory(descriptor.digest));
  struct stat st{};
  if (::fstatat(blobs.get(), descriptor.digest.hex().c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
    if (errno == ENOENT) return false;
    return base::ErrnoStatus(errno, absl::StrCat("image layout ", directory_, ": stat of a blob"));
  }
  return S_ISREG(st.st_mode) && static_cast<uint64_t>(st.st_size) == descriptor.size;
}

absl::Status LayoutWriter::PutBlob(const Descriptor& descriptor, BlobProducer produce) const {
  auto put = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const bool there, HasBlob(descriptor));
    if (there) return absl::OkStatus();
    NewFile file(root_.get());
    RETURN_IF_ERROR(file.Create());
    base::Hasher hasher(descriptor.digest.algorithm());
    uint64_t size = 0;
    RETURN_IF_ERROR(produce([&](absl::Span<const uint8_t> bytes) -> absl::Status {
      size += bytes.size();
      if (size > descriptor.size) {
        return absl::DataLossError(absl::StrCat("more than the ", descriptor.size, " bytes it should have"));
      }
      hasher.Update(bytes);
      return file.Append(bytes);
    }));
    const base::Digest actual = hasher.Finish();
    if (size != descriptor.size || actual != descriptor.digest) {
      return absl::DataLossError(absl::StrCat("the source gave ", size, " bytes with digest ",
                                              actual.ToString(), ", wanted ", descriptor.size, " bytes"));
    }
    ASSIGN_OR_RETURN(const base::UniqueFd blobs, BlobDirectory(descriptor.digest));
    return file.Commit(blobs.get(), descriptor.digest.hex().c_str());
  };
  return base::Annotate(put(),
                        absl::StrCat("image layout ", directory_, ": blob ", descriptor.digest.ToString()));
}

absl::Status LayoutWriter::PutBlob(const Descriptor& descriptor, absl::string_view bytes) const {
  return PutBlob(descriptor, [&](absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)> sink) {
    return sink(Bytes(bytes));
  });
}

// The file may be removed by whoever held the lock (BuildKit does so): a lock on a file without that name is
// none.
absl::StatusOr<base::UniqueFd> LayoutWriter::Lock() const {
  const absl::Duration give_up = base::SystemClock().Monotonic() + kLockPatience;
  for (;;) {
    ASSIGN_OR_RETURN(base::UniqueFd lock,
                     OpenAt(root_.get(), kLockName, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0644));
    while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EINTR) continue;
      if (errno != EWOULDBLOCK) {
        return base::ErrnoStatus(errno, absl::StrCat("lock ", directory_, "/", kLockName));
      }
      if (base::SystemClock().Monotonic() >= give_up) {
        return absl::UnavailableError(absl::StrCat("image layout ", directory_, ": another writer has held ",
                                                   kLockName, " for ", absl::FormatDuration(kLockPatience),
                                                   "; end it, or try again"));
      }
      absl::SleepFor(kLockInterval);
    }
    struct stat held{};
    struct stat named{};
    if (::fstat(lock.get(), &held) != 0) return base::ErrnoStatus(errno, "fstat");
    if (::fstatat(root_.get(), kLockName, &named, AT_SYMLINK_NOFOLLOW) == 0 && held.st_ino == named.st_ino &&
        held.st_dev == named.st_dev) {
      return lock;
    }
  }
}

absl::StatusOr<json> LayoutWriter::ReadIndex() const {
  struct stat st{};
  if (::fstatat(root_.get(), "index.json", &st, AT_SYMLINK_NOFOLLOW) != 0 && errno == ENOENT) return json();
  ASSIGN_OR_RETURN(const base::UniqueFd file,
                   OpenAt(root_.get(), "index.json", O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
  if (::fstat(file.get(), &st) != 0) return base::ErrnoStatus(errno, "fstat");
  if (!S_ISREG(st.st_mode) || static_cast<uint64_t>(st.st_size) > kMaxManifestBytes) {
    return absl::InvalidArgumentError("index.json is no file of at most 4 MiB");
  }
  std::string raw(static_cast<size_t>(st.st_size), '\0');
  RETURN_IF_ERROR(
      base::PreadFull(file.get(), 0, absl::MakeSpan(reinterpret_cast<uint8_t*>(raw.data()), raw.size())));
  const absl::StatusOr<std::variant<Manifest, Index>> index = ParseManifestOrIndex(raw, std::nullopt, "");
  if (!index.ok()) return base::Annotate(index.status(), "index.json");
  if (!std::holds_alternative<Index>(*index)) return absl::InvalidArgumentError("index.json is not an index");
  return base::ParseJson(raw, kMaxManifestBytes);
}

absl::Status LayoutWriter::WriteIndexLocked(const json& index) const {
  const std::string raw = WriteJson(index);
  if (raw.size() > kMaxManifestBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("index.json would have ", raw.size(),
                                                     " bytes, limit is ", kMaxManifestBytes,
                                                     "; use another directory"));
  }
  return WriteNew(root_.get(), "index.json", raw);
}

absl::Status LayoutWriter::CheckThere(const Descriptor& descriptor) const {
  ASSIGN_OR_RETURN(const bool there, HasBlob(descriptor));
  if (there) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(descriptor.digest.ToString(), " is not among its blobs"));
}

absl::Status LayoutWriter::Publish(const Descriptor& descriptor,
                                   const std::optional<std::string>& name) const {
  auto publish = [&]() -> absl::Status {
    RETURN_IF_ERROR(CheckThere(descriptor));
    ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock());
    ASSIGN_OR_RETURN(json index, ReadIndex());
    RETURN_IF_ERROR(MergeIntoIndex(descriptor, name, &index));
    return WriteIndexLocked(index);
  };
  return base::Annotate(publish(), absl::StrCat("image layout ", directory_));
}

namespace {

// The platform of an image among the layout's blobs: what its entry says, else its config.
absl::StatusOr<Descriptor> WithPlatform(const Layout& layout, Descriptor image) {
  if (image.platform) return image;
  ASSIGN_OR_RETURN(const std::string raw, layout.ReadBlob(image.digest, kMaxManifestBytes));
  ASSIGN_OR_RETURN(const auto parsed, ParseManifestOrIndex(raw, image.digest, image.media_type));
  const auto* manifest = std::get_if<Manifest>(&parsed);
  if (manifest == nullptr) return image;
  ASSIGN_OR_RETURN(const std::string config, layout.ReadBlob(manifest->config.digest, kMaxConfigBytes));
  absl::StatusOr<ImageConfig> read = ParseImageConfig(config, manifest->config.digest);
  if (read.ok() && !read->platform.os.empty() && !read->platform.architecture.empty()) {
    image.platform = read->platform;
  }
  return image;
}

}  // namespace

absl::StatusOr<Descriptor> LayoutWriter::MergeInto(const std::string& name,
                                                   absl::Span<const Descriptor> manifests) const {
  // Under the lock: what is there now.
  std::string raw;
  struct stat st{};
  if (::fstatat(root_.get(), "index.json", &st, AT_SYMLINK_NOFOLLOW) == 0) {
    ASSIGN_OR_RETURN(const Layout layout, Layout::Open(directory_));
    for (const Descriptor& entry : layout.index().manifests) {
      const auto named = entry.annotations.find(kRefNameAnnotation);
      if (named == entry.annotations.end() || named->second != name) continue;
      if (IsIndexMediaType(entry.media_type)) {
        ASSIGN_OR_RETURN(raw, layout.ReadBlob(entry.digest, kMaxManifestBytes));
      } else {
        ASSIGN_OR_RETURN(Descriptor image, WithPlatform(layout, entry));
        image.annotations.erase(kRefNameAnnotation);
        absl::StatusOr<std::string> alone = MergePlatforms("", kMediaTypeOciIndex, {image});
        if (!alone.ok()) {
          return base::Annotate(alone.status(), absl::StrCat("image ", base::Printable(name), " there"));
        }
        raw = *std::move(alone);
      }
    }
  }
  ASSIGN_OR_RETURN(raw, MergePlatforms(raw, kMediaTypeOciIndex, manifests));
  ASSIGN_OR_RETURN(const auto merged, ParseManifestOrIndex(raw, std::nullopt, ""));
  Descriptor written = DescriptorOf(raw, std::get<Index>(merged).media_type);
  RETURN_IF_ERROR(PutBlob(written, raw));
  return written;
}

absl::StatusOr<Descriptor> LayoutWriter::PublishPlatforms(absl::Span<const Descriptor> manifests,
                                                          const std::string& name) const {
  auto publish = [&]() -> absl::StatusOr<Descriptor> {
    for (const Descriptor& manifest : manifests) RETURN_IF_ERROR(CheckThere(manifest));
    ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock());
    ASSIGN_OR_RETURN(json index, ReadIndex());
    ASSIGN_OR_RETURN(const Descriptor merged, MergeInto(name, manifests));
    RETURN_IF_ERROR(MergeIntoIndex(merged, name, &index));
    RETURN_IF_ERROR(WriteIndexLocked(index));
    return merged;
  };
  absl::StatusOr<Descriptor> merged = publish();
  if (!merged.ok()) return base::Annotate(merged.status(), absl::StrCat("image layout ", directory_));
  return merged;
}

}  // namespace lazyblob::oci
