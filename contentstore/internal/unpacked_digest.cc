#include "contentstore/internal/unpacked_digest.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/checked.h"
#include "base/crash_record.h"
#include "base/fault.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

constexpr uint64_t kFreeOfRatio = 64 << 20;  // as for layers that are indexed while they are streamed

}  // namespace

UnpackedDigest::UnpackedDigest(const oci::Descriptor& blob, oci::Compression compression,
                               const std::vector<base::DigestAlgorithm>& algorithms,
                               const layer::BuildLimits& limits)
    : subject_(blob.digest.ToString()),
      blob_size_(blob.size),
      limits_(limits),
      decoder_(compression, limits.max_zstd_window) {
  for (const base::DigestAlgorithm algorithm : algorithms) hashers_.emplace_back(algorithm);
}

absl::Status UnpackedDigest::Take(absl::Span<const uint8_t> bytes) {
  bytes_ += bytes.size();
  // Of the whole blob: it may begin with nothing but zeros.
  uint64_t most = 0;
  if (!base::CheckedMul(blob_size_, limits_.max_ratio, &most) ||
      !base::CheckedAdd(most, kFreeOfRatio, &most)) {
    most = limits_.max_data_bytes;
  }
  most = std::min(most, limits_.max_data_bytes);
  if (bytes_ > most) {
    return absl::ResourceExhaustedError(
        absl::StrCat("its ", blob_size_, " bytes unpack to more than the limit of ", most));
  }
  for (base::Hasher& hasher : hashers_) hasher.Update(bytes);
  return absl::OkStatus();
}

void UnpackedDigest::Feed(absl::Span<const uint8_t> blob_bytes) {
  if (!status_.ok()) return;
  const base::CrashSubject subject(subject_);
  base::FaultPoint("contentstore.unpack").IgnoreError();
  status_ = decoder_.Feed(blob_bytes, [this](absl::Span<const uint8_t> bytes) { return Take(bytes); });
}

absl::StatusOr<std::vector<base::Digest>> UnpackedDigest::Finish() {
  RETURN_IF_ERROR(status_);
  RETURN_IF_ERROR(decoder_.Finish());
  std::vector<base::Digest> digests;
  for (base::Hasher& hasher : hashers_) digests.push_back(hasher.Finish());
  return digests;
}

}  // namespace lazyblob::contentstore
