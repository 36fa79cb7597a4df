#include "exporter/extract.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/cancel.h"
#include "base/file.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "exporter/internal/layer_applier.h"
#include "exporter/staged_blob.h"
#include "layer/tar_stream.h"

namespace lazyblob::exporter {
namespace {

constexpr size_t kPiece = 1 << 20;

absl::Status CheckBlob(const oci::Descriptor& descriptor, uint64_t size, const base::Digest& actual) {
  if (size == descriptor.size && actual == descriptor.digest) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the source gave ", size, " bytes with digest ", actual.ToString(),
                                          ", wanted ", descriptor.size, " bytes"));
}

class Extraction {
 public:
  Extraction(const std::vector<ExtractLayer>& layers, const std::string& directory,
             const ExtractOptions& options)
      : layers_(layers),
        directory_(directory),
        options_(options),
        context_(options.context),
        slots_(layers.size()) {
    context_.cancel = std::make_shared<base::CancelToken>();
  }

  absl::StatusOr<ExtractSummary> Run(int root) {
    base::CancelToken none;
    const base::CancelToken::Registration forward =
        (options_.context.cancel == nullptr ? &none : options_.context.cancel.get())
            ->OnCancel([cancel = context_.cancel] { cancel->Cancel(); });
    base::ThreadPool fetchers("lb-extract", std::max(1, options_.parallel_fetches));
    for (size_t i = 0; i < layers_.size(); ++i) {
      if (!layers_[i].blob->local()) fetchers.Schedule([this, i] { Fetch(i); });
    }
    absl::Status status;
    for (size_t i = 0; i < layers_.size() && status.ok(); ++i) status = Unpack(i, root);
    if (!status.ok()) context_.cancel->Cancel();
    if (!status.ok()) return status;
    return summary_;
  }

 private:
  struct Slot {
    absl::Mutex mutex;
    std::optional<absl::StatusOr<std::shared_ptr<StagedBlob>>> staged ABSL_GUARDED_BY(mutex);
  };

  void Report(size_t i, uint64_t size, std::optional<uint64_t> fetched, std::optional<uint64_t> unpacked,
              bool done) {
    const absl::MutexLock lock(&progress_mutex_);
    ExtractProgress& progress = slots_progress_[i];
    progress.layer = i;
    progress.size = size;
    if (fetched) progress.fetched = *fetched;
    if (unpacked) progress.unpacked = *unpacked;
    progress.done = done;
    if (options_.progress) options_.progress(progress);
  }

  // On a thread of the pool: the blob into a file without a name.
  void Fetch(size_t i) {
    absl::StatusOr<std::unique_ptr<StagedBlobWriter>> writer = StagedBlobWriter::Create(directory_);
    {
      const absl::MutexLock lock(&slots_[i].mutex);
      if (writer.ok()) {
        slots_[i].staged = (*writer)->blob();
      } else {
        slots_[i].staged = writer.status();
      }
    }
    if (!writer.ok()) return;
    auto fetch = [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const oci::Descriptor descriptor,
                       layers_[i].blob->WaitDescriptor(context_.cancel.get()));
      base::Hasher hasher(descriptor.digest.algorithm());
      uint64_t size = 0;
      RETURN_IF_ERROR(layers_[i].blob->Read(
          0,
          [&](absl::Span<const uint8_t> bytes) -> absl::Status {
            size += bytes.size();
            if (size > descriptor.size) return CheckBlob(descriptor, size, base::Digest());
            hasher.Update(bytes);
            Report(i, descriptor.size, size, std::nullopt, false);
            return (*writer)->Append(bytes);
          },
          context_));
      RETURN_IF_ERROR(CheckBlob(descriptor, size, hasher.Finish()));
      return (*writer)->Finish(descriptor.digest, descriptor.size);
    };
    const absl::Status status = fetch();
    if (!status.ok()) (*writer)->Fail(status);
  }

  absl::Status Unpack(size_t i, int root) {
    absl::StatusOr<oci::Descriptor> descriptor = layers_[i].blob->WaitDescriptor(context_.cancel.get());
    if (!descriptor.ok()) return base::Annotate(descriptor.status(), absl::StrCat("layer ", i + 1));
    return base::Annotate(
        UnpackBlob(i, *descriptor, root),
        absl::StrCat("layer ", i + 1, " of ", layers_.size(), " (", descriptor->digest.ToString(), ")"));
  }

  absl::Status UnpackBlob(size_t i, const oci::Descriptor& descriptor, int root) {
    const std::optional<oci::Compression> compression = oci::LayerCompression(descriptor.media_type);
    if (!compression) {
      return absl::InvalidArgumentError(absl::StrCat(
          "media type \"", base::Printable(descriptor.media_type.substr(0, 120)), "\" cannot be unpacked"));
    }
    internal::LayerApplier applier(root);
    layer::StreamDecoder decoder(*compression);
    base::Hasher tar_hasher(layers_[i].diff_id.algorithm());
    uint64_t unpacked = 0;
    auto consume = [&](absl::Span<const uint8_t> bytes) -> absl::Status {
      RETURN_IF_ERROR(decoder.Feed(bytes, [&](absl::Span<const uint8_t> tar) -> absl::Status {
        if (context_.cancel->cancelled()) return absl::CancelledError("unpacking was cancelled");
        tar_hasher.Update(tar);
        return applier.Feed(tar);
      }));
      unpacked += bytes.size();
      Report(i, descriptor.size, std::nullopt, unpacked, false);
      return absl::OkStatus();
    };
    if (layers_[i].blob->local()) {
      RETURN_IF_ERROR(ReadLocal(i, descriptor, consume));
    } else {
      RETURN_IF_ERROR(ReadStaged(i, consume));
    }
    RETURN_IF_ERROR(decoder.Finish());
    RETURN_IF_ERROR(applier.Finish());
    const base::Digest diff_id = tar_hasher.Finish();
    if (!layers_[i].diff_id.empty() && diff_id != layers_[i].diff_id) {
      return absl::DataLossError(absl::StrCat("its tar has digest ", diff_id.ToString(), ", the image says ",
                                              layers_[i].diff_id.ToString()));
    }
    summary_.entries += applier.entries();
    summary_.xattrs_skipped += applier.xattrs_skipped();
    Report(i, descriptor.size, descriptor.size, descriptor.size, true);
    return absl::OkStatus();
  }

  absl::Status ReadLocal(size_t i, const oci::Descriptor& descriptor,
                         absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)> consume) {
    base::Hasher hasher(descriptor.digest.algorithm());
    uint64_t size = 0;
    RETURN_IF_ERROR(layers_[i].blob->Read(
        0,
        [&](absl::Span<const uint8_t> bytes) -> absl::Status {
          size += bytes.size();
          hasher.Update(bytes);
          return consume(bytes);
        },
        context_));
    return CheckBlob(descriptor, size, hasher.Finish());
  }

  absl::Status ReadStaged(size_t i, absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)> consume) {
    std::shared_ptr<StagedBlob> staged;
    {
      Slot& slot = slots_[i];
      const absl::MutexLock lock(&slot.mutex);
      // Fetches begin in order, so the one of the lowest layer that is not unpacked has begun or begins next.
      auto begun = [&slot]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(slot.mutex) { return slot.staged.has_value(); };
      slot.mutex.Await(absl::Condition(&begun));
      RETURN_IF_ERROR(slot.staged->status());
      staged = std::move(**slot.staged);
    }
    std::vector<uint8_t> piece(kPiece);
    for (uint64_t offset = 0;;) {
      ASSIGN_OR_RETURN(const size_t size,
                       staged->ReadAt(offset, absl::MakeSpan(piece), context_.cancel.get()));
      if (size == 0) break;
      RETURN_IF_ERROR(consume(absl::MakeSpan(piece).first(size)));
      offset += size;
    }
    return staged->Wait(context_.cancel.get()).status();  // its digest was right
  }

  const std::vector<ExtractLayer>& layers_;
  const std::string& directory_;
  const ExtractOptions& options_;
  contentstore::FetchContext context_;  // with a token of our own: an error ends the fetches
  std::vector<Slot> slots_;
  ExtractSummary summary_;
  absl::Mutex progress_mutex_;
  std::vector<ExtractProgress> slots_progress_ ABSL_GUARDED_BY(progress_mutex_) =
      std::vector<ExtractProgress>(layers_.size());
};

}  // namespace

absl::StatusOr<ExtractSummary> ExtractLayers(const std::vector<ExtractLayer>& layers,
                                             const std::string& directory, const ExtractOptions& options) {
  const std::string what = absl::StrCat("directory ", directory);
  const bool made = ::mkdir(directory.c_str(), 0755) == 0;
  if (!made && errno != EEXIST) return base::ErrnoStatus(errno, absl::StrCat("mkdir ", directory));
  ASSIGN_OR_RETURN(const base::UniqueFd root, base::OpenFile(directory, O_RDONLY | O_DIRECTORY));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, base::ListDirectory(directory));
  if (!names.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(what, ": not empty (holds ", base::Printable(names[0]),
                                                      "); name a directory that is empty or absent"));
  }
  struct stat before{};
  if (::fstat(root.get(), &before) != 0) return base::ErrnoStatus(errno, what);
  absl::StatusOr<ExtractSummary> summary = Extraction(layers, directory, options).Run(root.get());
  if (summary.ok() && options.prepared) {
    if (const absl::Status prepared = options.prepared(); !prepared.ok()) summary = prepared;
  }
  if (summary.ok()) return summary;
  if (absl::StatusOr<std::vector<std::string>> left = base::ListDirectory(directory); left.ok()) {
    for (const std::string& name : *left) base::RemoveTree(absl::StrCat(directory, "/", name)).IgnoreError();
  }
  if (made) {
    ::rmdir(directory.c_str());
  } else if (::fchown(root.get(), before.st_uid, before.st_gid) == 0) {
    static_cast<void>(::fchmod(root.get(), before.st_mode & 07777));
  }
  return base::Annotate(summary.status(), what);
}

}  // namespace lazyblob::exporter
