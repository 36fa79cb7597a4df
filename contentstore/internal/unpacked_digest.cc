#include "contentstore/internal/unpacked_digest.h"

#include "absl/strings/str_cat.h"
#include "base/checked.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

constexpr uint64_t kFreeOfRatio = 64 << 20;  // as for layers that are indexed while they are streamed

}  // namespace

UnpackedDigest::UnpackedDigest(oci::Compression compression,
                               const std::vector<base::DigestAlgorithm>& algorithms,
                               const layer::BuildLimits& limits)
    : limits_(limits), decoder_(compression) {
  for (const base::DigestAlgorithm algorithm : algorithms) hashers_.emplace_back(algorithm);
}

absl::Status UnpackedDigest::Take(absl::Span<const uint8_t> bytes) {
  bytes_ += bytes.size();
  uint64_t allowed = 0;
  const bool bomb = bytes_ > kFreeOfRatio && base::CheckedMul(blob_bytes_, limits_.max_ratio, &allowed) &&
                    bytes_ - kFreeOfRatio > allowed;
  if (bomb || bytes_ > limits_.max_data_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("its first ", blob_bytes_, " bytes unpack to more than ", bytes_));
  }
  for (base::Hasher& hasher : hashers_) hasher.Update(bytes);
  return absl::OkStatus();
}

void UnpackedDigest::Feed(absl::Span<const uint8_t> blob_bytes) {
  if (!status_.ok()) return;
  blob_bytes_ += blob_bytes.size();
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
