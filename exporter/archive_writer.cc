#include "exporter/archive_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/status.h"
#include "oci/manifest_writer.h"

namespace lazyblob::exporter {
namespace {

absl::Span<const uint8_t> Bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

ArchiveWriter::ArchiveWriter(std::string file) : path_(std::move(file)) {}

ArchiveWriter::~ArchiveWriter() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

absl::StatusOr<std::unique_ptr<ArchiveWriter>> ArchiveWriter::Create(const std::string& file) {
  std::unique_ptr<ArchiveWriter> writer(new ArchiveWriter(file));
  const absl::Status opened = writer->Open();
  if (!opened.ok()) return base::Annotate(opened, absl::StrCat("archive ", file));
  return writer;
}

absl::Status ArchiveWriter::Open() {
  struct stat st{};
  if (::stat(path_.c_str(), &st) == 0 && !S_ISREG(st.st_mode)) {
    if (S_ISDIR(st.st_mode)) return absl::InvalidArgumentError("it is a directory, name a file");
    ASSIGN_OR_RETURN(fd_, base::OpenFile(path_, O_WRONLY));
  } else {
    static std::atomic<uint64_t> serial{0};
    std::string name = absl::StrCat(path_, ".tmp", getpid(), ".", serial++);
    ASSIGN_OR_RETURN(fd_, base::OpenFile(name, O_WRONLY | O_CREAT | O_EXCL, 0644));
    temporary_ = std::move(name);
  }
  tar_ = std::make_unique<TarWriter>(
      [this](absl::Span<const uint8_t> bytes) { return base::WriteFull(fd_.get(), bytes); });
  return AddFile("oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}");
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
