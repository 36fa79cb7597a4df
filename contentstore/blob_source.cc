#include "contentstore/blob_source.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/checked.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

constexpr uint64_t kFileBlockBytes = 256 << 10;

class RegistrySource final : public BlobSource {
 public:
  RegistrySource(registry::Client* client, oci::Reference repository)
      : client_(client), repository_(std::move(repository)) {}

  std::string name() const override { return absl::StrCat("registry:", repository_.Name()); }
  absl::Status Read(const oci::Descriptor& blob, registry::ByteRange range, registry::BodySink sink,
                    const registry::CallContext& context) override {
    return client_->ReadBlob(repository_, blob, range, sink, context);
  }
  registry::Client::LinkEstimate link() const override { return client_->EstimateLink(repository_); }
  std::string host() const override { return repository_.host; }

 private:
  registry::Client* const client_;
  const oci::Reference repository_;
};

class UrlSource final : public BlobSource {
 public:
  UrlSource(registry::Client* client, std::string url) : client_(client), url_(std::move(url)) {}

  std::string name() const override { return absl::StrCat("url:", url_); }
  absl::Status Read(const oci::Descriptor& blob, registry::ByteRange range, registry::BodySink sink,
                    const registry::CallContext& context) override {
    const absl::Status status = client_->ReadUrl(url_, blob, range, sink, context);
    // Not a question of whose credentials to try next.
    const bool refused = absl::IsUnauthenticated(status) || absl::IsPermissionDenied(status);
    return refused ? absl::UnavailableError(status.message()) : status;
  }
  registry::Client::LinkEstimate link() const override { return client_->EstimateLink(url_); }
  std::string host() const override {
    const std::vector<absl::string_view> parts = absl::StrSplit(url_, absl::MaxSplits('/', 3));
    return parts.size() > 2 ? std::string(parts[2]) : url_;
  }

 private:
  registry::Client* const client_;
  const std::string url_;
};

class FileSource final : public BlobSource {
 public:
  explicit FileSource(std::string path) : path_(std::move(path)) {}

  std::string name() const override { return absl::StrCat("file:", path_); }
  bool local() const override { return true; }

  absl::Status Read(const oci::Descriptor& blob, registry::ByteRange range, registry::BodySink sink,
                    const registry::CallContext& context) override {
    // Non-blocking, so that a FIFO in its place cannot hang us.
    ASSIGN_OR_RETURN(const base::UniqueFd file, base::OpenFile(path_, O_RDONLY | O_NONBLOCK));
    struct stat st{};
    if (fstat(file.get(), &st) != 0)
      return base::ErrnoStatus(errno, absl::StrCat("stat ", base::Printable(path_)));
    if (!S_ISREG(st.st_mode) || static_cast<uint64_t>(st.st_size) != blob.size) {
      return absl::DataLossError(absl::StrCat(base::Printable(path_), " is not a file of ", blob.size,
                                              " bytes as its descriptor says"));
    }
    if (!base::RangeWithin(range.offset, range.length, blob.size)) {
      return absl::InvalidArgumentError(absl::StrCat("range is outside ", base::Printable(path_)));
    }
    std::vector<uint8_t> block(std::min(range.length, kFileBlockBytes));
    for (uint64_t done = 0; done < range.length;) {
      if (context.cancel != nullptr && context.cancel->cancelled()) return absl::CancelledError("cancelled");
      const auto part = absl::MakeSpan(block).first(std::min<uint64_t>(block.size(), range.length - done));
      RETURN_IF_ERROR(
          base::Annotate(base::PreadFull(file.get(), range.offset + done, part), base::Printable(path_)));
      if (context.bytes_received != nullptr) context.bytes_received->fetch_add(part.size());
      RETURN_IF_ERROR(sink(part));
      done += part.size();
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
};

class LayoutSource final : public BlobSource {
 public:
  explicit LayoutSource(std::string directory) : directory_(std::move(directory)) {}

  std::string name() const override { return absl::StrCat("layout:", directory_); }
  bool local() const override { return true; }

  absl::Status Read(const oci::Descriptor& blob, registry::ByteRange range, registry::BodySink sink,
                    const registry::CallContext& context) override {
    const bool sha256 = blob.digest.algorithm() == base::DigestAlgorithm::kSha256;
    return FileSource(absl::StrCat(directory_, "/blobs/", sha256 ? "sha256/" : "sha512/", blob.digest.hex()))
        .Read(blob, range, sink, context);
  }

 private:
  const std::string directory_;
};

}  // namespace

std::shared_ptr<BlobSource> MakeRegistrySource(registry::Client* client, const oci::Reference& repository) {
  return std::make_shared<RegistrySource>(client, repository);
}

std::shared_ptr<BlobSource> MakeUrlSource(registry::Client* client, const std::string& url) {
  return std::make_shared<UrlSource>(client, url);
}

std::shared_ptr<BlobSource> MakeFileSource(const std::string& path) {
  return std::make_shared<FileSource>(path);
}

std::shared_ptr<BlobSource> MakeLayoutSource(const std::string& directory) {
  return std::make_shared<LayoutSource>(directory);
}

}  // namespace lazyblob::contentstore
