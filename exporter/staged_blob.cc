#include "exporter/staged_blob.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/fault.h"
#include "base/status.h"

namespace lazyblob::exporter {

template <typename Done>
absl::Status StagedBlob::WaitUntil(Done done, base::CancelToken* cancel) {
  while (failure_.ok() && !done()) {
    if (cancel != nullptr && cancel->cancelled()) return absl::CancelledError("the wait was cancelled");
    changed_.Wait(&mutex_);
  }
  return failure_;
}

absl::StatusOr<size_t> StagedBlob::ReadAt(uint64_t offset, absl::Span<uint8_t> out,
                                          base::CancelToken* cancel) {
  uint64_t available = 0;
  {
    base::CancelToken none;
    const base::CancelToken::Registration wake = (cancel == nullptr ? &none : cancel)->OnCancel([this] {
      const absl::MutexLock lock(&mutex_);
      changed_.SignalAll();
    });
    const absl::MutexLock lock(&mutex_);
    RETURN_IF_ERROR(WaitUntil(
        [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return size_ > offset || whole_.has_value(); },
        cancel));
    if (offset > size_) {
      return absl::OutOfRangeError(absl::StrCat("offset ", offset, " of a blob of ", size_, " bytes"));
    }
    available = size_ - offset;
  }
  const size_t wanted = std::min<uint64_t>(available, out.size());
  if (wanted > 0) RETURN_IF_ERROR(base::PreadFull(file_.get(), offset, out.first(wanted)));
  return wanted;
}

absl::StatusOr<StagedBlob::Whole> StagedBlob::Wait(base::CancelToken* cancel) {
  base::CancelToken none;
  const base::CancelToken::Registration wake = (cancel == nullptr ? &none : cancel)->OnCancel([this] {
    const absl::MutexLock lock(&mutex_);
    changed_.SignalAll();
  });
  const absl::MutexLock lock(&mutex_);
  RETURN_IF_ERROR(
      WaitUntil([&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return whole_.has_value(); }, cancel));
  return *whole_;
}

uint64_t StagedBlob::size() const {
  const absl::MutexLock lock(&mutex_);
  return size_;
}

std::optional<StagedBlob::Whole> StagedBlob::whole() const {
  const absl::MutexLock lock(&mutex_);
  return whole_;
}

absl::StatusOr<std::unique_ptr<StagedBlobWriter>> StagedBlobWriter::Create(const std::string& directory) {
  ASSIGN_OR_RETURN(base::UniqueFd file, base::OpenNamelessFile(directory));
  return std::unique_ptr<StagedBlobWriter>(
      new StagedBlobWriter(std::shared_ptr<StagedBlob>(new StagedBlob(std::move(file))), directory));
}

StagedBlobWriter::~StagedBlobWriter() { Fail(absl::AbortedError("the blob was abandoned before its end")); }

absl::Status StagedBlobWriter::Append(absl::Span<const uint8_t> bytes) {
  {
    const absl::MutexLock lock(&blob_->mutex_);
    if (!blob_->failure_.ok()) return blob_->failure_;
    if (blob_->whole_.has_value()) return absl::FailedPreconditionError("the blob is complete");
  }
  absl::Status status = base::FaultPoint("exporter.stage");
  if (status.ok()) status = base::PwriteFull(blob_->file_.get(), offset_, bytes);
  if (!status.ok()) {
    status = base::Annotate(status, absl::StrCat("stage a layer in ", directory_));
    Fail(status);
    return status;
  }
  offset_ += bytes.size();
  const absl::MutexLock lock(&blob_->mutex_);
  blob_->size_ = offset_;
  blob_->changed_.SignalAll();
  return absl::OkStatus();
}

absl::Status StagedBlobWriter::Finish(const base::Digest& digest, uint64_t size) {
  if (size != offset_) {
    const absl::Status status = absl::FailedPreconditionError(
        absl::StrCat("a blob of ", offset_, " bytes cannot end as one of ", size));
    Fail(status);
    return status;
  }
  const absl::MutexLock lock(&blob_->mutex_);
  if (!blob_->failure_.ok()) return blob_->failure_;
  if (blob_->whole_.has_value()) return absl::FailedPreconditionError("the blob is complete");
  blob_->whole_ = StagedBlob::Whole{digest, size};
  blob_->changed_.SignalAll();
  return absl::OkStatus();
}

void StagedBlobWriter::Fail(const absl::Status& reason) {
  const absl::MutexLock lock(&blob_->mutex_);
  if (blob_->whole_.has_value() || !blob_->failure_.ok()) return;
  blob_->failure_ = reason;
  blob_->changed_.SignalAll();
}

}  // namespace lazyblob::exporter
