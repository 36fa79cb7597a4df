#include "exporter/archive_writer.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/digest.h"
#include "base/status.h"
#include "oci/manifest_writer.h"

namespace lazyblob::exporter {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(50);

absl::Span<const uint8_t> Bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// Of what a kill leaves beside FILE: whoever lives holds a lock on it.
std::string TemporaryPrefix(const std::string& path) {
  return absl::StrCat(".", path.substr(path.rfind('/') + 1), ".lazytar-");
}

void RemoveLeftovers(const std::string& path) {
  const auto names = base::ListDirectory(DirectoryOf(path));
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    if (!absl::StartsWith(name, TemporaryPrefix(path))) continue;
    const std::string left = absl::StrCat(DirectoryOf(path), "/", name);
    const auto file = base::OpenFile(left, O_RDONLY | O_NOFOLLOW | O_NONBLOCK);
    struct stat st{};
    if (!file.ok() || ::fstat(file->get(), &st) != 0 || !S_ISREG(st.st_mode)) continue;
    if (::flock(file->get(), LOCK_EX | LOCK_NB) == 0) ::unlink(left.c_str());
  }
}

}  // namespace

ArchiveWriter::ArchiveWriter(std::string file, base::CancelToken* cancel)
    : path_(std::move(file)), cancel_(cancel) {}

ArchiveWriter::~ArchiveWriter() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

absl::StatusOr<std::unique_ptr<ArchiveWriter>> ArchiveWriter::Create(const std::string& file,
                                                                     base::CancelToken* cancel) {
  std::unique_ptr<ArchiveWriter> writer(new ArchiveWriter(file, cancel));
  const absl::Status opened = writer->Open();
  if (!opened.ok()) return base::Annotate(opened, absl::StrCat("archive ", file));
  return writer;
}

absl::Status ArchiveWriter::Open() {
  struct stat st{};
  if (::stat(path_.c_str(), &st) == 0 && !S_ISREG(st.st_mode)) {
    if (S_ISDIR(st.st_mode)) return absl::InvalidArgumentError("it is a directory, name a file");
    RETURN_IF_ERROR(OpenPipe());
  } else {
    RETURN_IF_ERROR(OpenTemporary());
  }
  tar_ = std::make_unique<TarWriter>([this](absl::Span<const uint8_t> bytes) {
    return temporary_.empty() ? WritePipe(bytes) : base::WriteFull(fd_.get(), bytes);
  });
  return AddFile("oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}");
}

absl::Status ArchiveWriter::OpenTemporary() {
  RemoveLeftovers(path_);
  static std::atomic<uint64_t> serial{0};
  for (;;) {
    // The time too: a process after a kill may have the number of the one before.
    std::string name = absl::StrCat(DirectoryOf(path_), "/", TemporaryPrefix(path_), getpid(), "-", serial++,
                                    "-", absl::GetCurrentTimeNanos());
    ASSIGN_OR_RETURN(fd_, base::OpenFile(name, O_WRONLY | O_CREAT | O_EXCL, 0644));
    temporary_ = std::move(name);
    struct stat st{};
    if (::flock(fd_.get(), LOCK_EX) != 0 || ::fstat(fd_.get(), &st) != 0) {
      return base::ErrnoStatus(errno, "lock");
    }
    if (st.st_nlink > 0) return absl::OkStatus();  // else somebody took it for a leftover
  }
}

// One without a reader is waited for, one that does not read too, until it is cancelled.
absl::Status ArchiveWriter::OpenPipe() {
  for (;;) {
    fd_ = base::UniqueFd(::open(path_.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY));
    if (fd_.valid()) return absl::OkStatus();
    if (errno != ENXIO && errno != EINTR) return base::ErrnoStatus(errno, "open");
    if (cancel_ != nullptr && cancel_->cancelled()) return absl::CancelledError("cancelled; nobody reads it");
    absl::SleepFor(kPollInterval);
  }
}

absl::Status ArchiveWriter::WritePipe(absl::Span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_.get(), bytes.data(), bytes.size());
    if (n >= 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return base::ErrnoStatus(errno, "write");
    if (cancel_ != nullptr && cancel_->cancelled()) return absl::CancelledError("cancelled; nobody reads it");
    pollfd wait{fd_.get(), POLLOUT, 0};
    ::poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(kPollInterval)));
  }
  return absl::OkStatus();
}

absl::Status ArchiveWriter::Sticky(absl::Status status) {
  if (!status.ok() && failed_.ok()) failed_ = status;
  return base::Annotate(status, absl::StrCat("archive ", path_));
}

absl::Status ArchiveWriter::Member(const std::string& path, uint64_t size) {
  for (size_t slash = path.find('/'); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    std::string directory = path.substr(0, slash + 1);
    if (!directories_.insert(directory).second) continue;
    layer::Entry entry;
    entry.path = std::move(directory);
    entry.type = layer::EntryType::kDirectory;
    entry.mode = 0755;
    RETURN_IF_ERROR(tar_->Begin(entry));
  }
  layer::Entry entry;
  entry.path = path;
  entry.mode = 0644;
  entry.size = size;
  return tar_->Begin(entry);
}

absl::Status ArchiveWriter::AddFile(const std::string& path, absl::string_view contents) {
  RETURN_IF_ERROR(Member(path, contents.size()));
  return contents.empty() ? absl::OkStatus() : tar_->Data(Bytes(contents));
}

absl::Status ArchiveWriter::AddBlob(const oci::Descriptor& descriptor, oci::BlobProducer produce) {
  RETURN_IF_ERROR(failed_);
  const auto [known, added] = blobs_.emplace(descriptor.digest, descriptor.size);
  if (!added) {
    if (known->second == descriptor.size) return absl::OkStatus();
    return Sticky(absl::DataLossError(absl::StrCat("blob ", descriptor.digest.ToString(), " has ",
                                                   known->second, " bytes, not ", descriptor.size)));
  }
  auto add = [&]() -> absl::Status {
    const bool sha256 = descriptor.digest.algorithm() == base::DigestAlgorithm::kSha256;
    RETURN_IF_ERROR(Member(absl::StrCat("blobs/", sha256 ? "sha256/" : "sha512/", descriptor.digest.hex()),
                           descriptor.size));
    base::Hasher hasher(descriptor.digest.algorithm());
    uint64_t size = 0;
    RETURN_IF_ERROR(produce([&](absl::Span<const uint8_t> bytes) -> absl::Status {
      size += bytes.size();
      if (size > descriptor.size) {
        return absl::DataLossError(absl::StrCat("more than the ", descriptor.size, " bytes it should have"));
      }
      hasher.Update(bytes);
      return bytes.empty() ? absl::OkStatus() : tar_->Data(bytes);
    }));
    const base::Digest actual = hasher.Finish();
    if (size == descriptor.size && actual == descriptor.digest) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat("the source gave ", size, " bytes with digest ",
                                            actual.ToString(), ", wanted ", descriptor.size, " bytes"));
  };
  return Sticky(base::Annotate(add(), absl::StrCat("blob ", descriptor.digest.ToString())));
}

absl::Status ArchiveWriter::AddBlob(const oci::Descriptor& descriptor, absl::string_view bytes) {
  return AddBlob(descriptor, [&](absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)> sink) {
    return sink(Bytes(bytes));
  });
}

absl::Status ArchiveWriter::AddImage(const oci::Descriptor& descriptor,
                                     const std::optional<std::string>& name) {
  RETURN_IF_ERROR(failed_);
  if (!blobs_.contains(descriptor.digest)) {
    return Sticky(absl::FailedPreconditionError(
        absl::StrCat(descriptor.digest.ToString(), " is not among the blobs added")));
  }
  return Sticky(oci::MergeIntoIndex(descriptor, name, &index_));
}

absl::Status ArchiveWriter::Finish() {
  RETURN_IF_ERROR(failed_);
  auto finish = [&]() -> absl::Status {
    if (index_.is_null()) return absl::FailedPreconditionError("no image was added");
    RETURN_IF_ERROR(AddFile("index.json", oci::WriteJson(index_)));
    RETURN_IF_ERROR(tar_->Finish());
    if (temporary_.empty()) return absl::OkStatus();
    if (::fsync(fd_.get()) != 0) return base::ErrnoStatus(errno, "fsync");
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) return base::ErrnoStatus(errno, "rename");
    temporary_.clear();
    return base::SyncDirectory(DirectoryOf(path_));
  };
  const absl::Status status = finish();
  if (status.ok()) failed_ = absl::FailedPreconditionError(absl::StrCat("archive ", path_, " is finished"));
  return Sticky(status);
}

}  // namespace lazyblob::exporter
