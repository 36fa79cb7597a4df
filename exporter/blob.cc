#include "exporter/blob.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::exporter {
namespace {

constexpr size_t kReadBytes = 1 << 20;

absl::Status CheckOffset(uint64_t offset, uint64_t size, const base::Digest& digest) {
  if (offset <= size) return absl::OkStatus();
  return absl::OutOfRangeError(
      absl::StrCat("offset ", offset, " of blob ", digest.ToString(), ", which has ", size, " bytes"));
}

absl::Status CheckLive(const contentstore::FetchContext& context) {
  if (context.cancel != nullptr && context.cancel->cancelled()) return absl::CancelledError("cancelled");
  return absl::OkStatus();
}

// A blob that is made already.
class WholeBlob : public Blob {
 public:
  explicit WholeBlob(oci::Descriptor descriptor) : descriptor_(std::move(descriptor)) {}
  std::optional<oci::Descriptor> descriptor() const override { return descriptor_; }
  absl::StatusOr<oci::Descriptor> WaitDescriptor(base::CancelToken*) override { return descriptor_; }

 protected:
  const oci::Descriptor descriptor_;
};

class LazyBlob final : public WholeBlob {
 public:
  LazyBlob(contentstore::ContentStore* store, std::shared_ptr<contentstore::LazyLayer> layer,
           oci::Descriptor descriptor, std::vector<oci::Reference> repositories, bool keep)
      : WholeBlob(std::move(descriptor)),
        store_(*store),
        layer_(std::move(layer)),
        repositories_(std::move(repositories)),
        keep_(keep) {}

  absl::Status Read(uint64_t offset, registry::BodySink sink,
                    const contentstore::FetchContext& context) override {
    RETURN_IF_ERROR(CheckOffset(offset, descriptor_.size, descriptor_.digest));
    if (offset == descriptor_.size) return absl::OkStatus();
    contentstore::FetchContext fetch = context;
    fetch.keep_blob = keep_;
    return store_.ReadBlobAt(*layer_, {offset, descriptor_.size - offset}, sink, fetch);
  }
  std::vector<std::string> sources() const override { return store_.SourceNames(*layer_); }
  std::vector<oci::Reference> repositories() const override { return repositories_; }
  std::string origin() const override { return absl::StrCat("layer:", layer_->id()); }
  bool provided() const override { return !sources().empty(); }
  bool local() const override { return false; }

 private:
  contentstore::ContentStore& store_;
  const std::shared_ptr<contentstore::LazyLayer> layer_;  // held by its mounts too
  const std::vector<oci::Reference> repositories_;
  const bool keep_;
};

class StagedBlobReader final : public Blob {
 public:
  StagedBlobReader(std::shared_ptr<StagedBlob> staged,
                   std::function<oci::Descriptor(const StagedBlob::Whole&)> describe)
      : staged_(std::move(staged)), describe_(std::move(describe)) {}

  std::optional<oci::Descriptor> descriptor() const override {
    const std::optional<StagedBlob::Whole> whole = staged_->whole();
    if (!whole.has_value()) return std::nullopt;
    return Describe(*whole);
  }
  absl::StatusOr<oci::Descriptor> WaitDescriptor(base::CancelToken* cancel) override {
    ASSIGN_OR_RETURN(const StagedBlob::Whole whole, staged_->Wait(cancel));
    return Describe(whole);
  }
  absl::Status Read(uint64_t offset, registry::BodySink sink,
                    const contentstore::FetchContext& context) override {
    std::vector<uint8_t> buffer(kReadBytes);
    while (true) {
      ASSIGN_OR_RETURN(const size_t got,
                       staged_->ReadAt(offset, absl::MakeSpan(buffer), context.cancel.get()));
      if (got == 0) return absl::OkStatus();
      RETURN_IF_ERROR(sink(absl::MakeSpan(buffer).first(got)));
      offset += got;
    }
  }
  bool local() const override { return true; }

 private:
  oci::Descriptor Describe(const StagedBlob::Whole& whole) const ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    if (!descriptor_.has_value()) descriptor_ = describe_(whole);
    return *descriptor_;
  }

  const std::shared_ptr<StagedBlob> staged_;  // held by its writer too
  const std::function<oci::Descriptor(const StagedBlob::Whole&)> describe_;
  mutable absl::Mutex mutex_;
  mutable std::optional<oci::Descriptor> descriptor_ ABSL_GUARDED_BY(mutex_);
};

class MemoryBlob final : public WholeBlob {
 public:
  MemoryBlob(std::string bytes, oci::Descriptor descriptor)
      : WholeBlob(std::move(descriptor)), bytes_(std::move(bytes)) {}
  absl::Status Read(uint64_t offset, registry::BodySink sink, const contentstore::FetchContext&) override {
    RETURN_IF_ERROR(CheckOffset(offset, bytes_.size(), descriptor_.digest));
    const absl::string_view rest = absl::string_view(bytes_).substr(offset);
    if (rest.empty()) return absl::OkStatus();
    return sink({reinterpret_cast<const uint8_t*>(rest.data()), rest.size()});
  }
  bool local() const override { return true; }

 private:
  const std::string bytes_;
};

class LayoutBlob final : public WholeBlob {
 public:
  LayoutBlob(std::shared_ptr<const oci::Layout> layout, oci::Descriptor descriptor,
             std::vector<oci::Reference> repositories)
      : WholeBlob(std::move(descriptor)),
        layout_(std::move(layout)),
        repositories_(std::move(repositories)) {}
  absl::Status Read(uint64_t offset, registry::BodySink sink,
                    const contentstore::FetchContext& context) override {
    RETURN_IF_ERROR(CheckOffset(offset, descriptor_.size, descriptor_.digest));
    ASSIGN_OR_RETURN(const base::UniqueFd file, layout_->OpenBlob(descriptor_.digest));
    std::vector<uint8_t> buffer(kReadBytes);
    while (offset < descriptor_.size) {
      RETURN_IF_ERROR(CheckLive(context));
      const auto piece =
          absl::MakeSpan(buffer).first(std::min<uint64_t>(buffer.size(), descriptor_.size - offset));
      const absl::Status status = base::PreadFull(file.get(), offset, piece);
      if (!status.ok()) {
        return base::Annotate(status, absl::StrCat("blob ", descriptor_.digest.ToString(),
                                                   " in image layout ", layout_->directory()));
      }
      RETURN_IF_ERROR(sink(piece));
      offset += piece.size();
    }
    return absl::OkStatus();
  }
  std::vector<std::string> sources() const override {
    return {absl::StrCat("layout:", layout_->directory())};
  }
  std::vector<oci::Reference> repositories() const override { return repositories_; }
  bool local() const override { return true; }

 private:
  const std::shared_ptr<const oci::Layout> layout_;  // shared by its blobs
  const std::vector<oci::Reference> repositories_;
};

}  // namespace

std::shared_ptr<Blob> MakeLazyBlob(contentstore::ContentStore* store,
                                   std::shared_ptr<contentstore::LazyLayer> layer, oci::Descriptor descriptor,
                                   std::vector<oci::Reference> repositories, bool keep) {
  return std::make_shared<LazyBlob>(store, std::move(layer), std::move(descriptor), std::move(repositories),
                                    keep);
}

std::shared_ptr<Blob> MakeStagedBlob(std::shared_ptr<StagedBlob> staged,
                                     std::function<oci::Descriptor(const StagedBlob::Whole&)> descriptor) {
  return std::make_shared<StagedBlobReader>(std::move(staged), std::move(descriptor));
}

std::shared_ptr<Blob> MakeMemoryBlob(std::string bytes, std::string media_type) {
  oci::Descriptor descriptor;
  descriptor.media_type = std::move(media_type);
  descriptor.digest = base::Digest::Of(bytes);
  descriptor.size = bytes.size();
  return std::make_shared<MemoryBlob>(std::move(bytes), std::move(descriptor));
}

std::shared_ptr<Blob> MakeLayoutBlob(std::shared_ptr<const oci::Layout> layout, oci::Descriptor descriptor,
                                     std::vector<oci::Reference> repositories) {
  return std::make_shared<LayoutBlob>(std::move(layout), std::move(descriptor), std::move(repositories));
}

}  // namespace lazyblob::exporter
