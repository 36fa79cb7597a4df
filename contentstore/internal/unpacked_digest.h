#pragma once

// What a layer unpacks to, found out while its blob passes by: the diffIDs that images may claim for it.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/digest.h"
#include "layer/index_builder.h"
#include "layer/tar_stream.h"
#include "oci/descriptor.h"

namespace lazyblob::contentstore {

// One thread at a time.
class UnpackedDigest {
 public:
  // `algorithms`: those of the claims.
  UnpackedDigest(const oci::Descriptor& blob, oci::Compression compression,
                 const std::vector<base::DigestAlgorithm>& algorithms, const layer::BuildLimits& limits);

  // The blob's bytes, in order.
  void Feed(absl::Span<const uint8_t> blob_bytes);
  // All bytes are there: a digest for each algorithm. InvalidArgument: they cannot be unpacked.
  // ResourceExhausted: not within our limits, which says nothing of what images claim.
  absl::StatusOr<std::vector<base::Digest>> Finish();

 private:
  absl::Status Take(absl::Span<const uint8_t> bytes);

  const std::string subject_;  // of a crash
  const uint64_t blob_size_;
  const layer::BuildLimits limits_;
  layer::StreamDecoder decoder_;
  std::vector<base::Hasher> hashers_;
  uint64_t bytes_ = 0;
  absl::Status status_;  // sticky
};

}  // namespace lazyblob::contentstore
