#pragma once

// A streaming SHA-256 or SHA-512 whose state can be written down and taken up by another process. Belongs to
// one thread.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/digest.h"

namespace lazyblob::exporter::internal {

class ResumableHash {
 public:
  explicit ResumableHash(base::DigestAlgorithm algorithm = base::DigestAlgorithm::kSha256);
  ~ResumableHash();
  ResumableHash(const ResumableHash& other);
  ResumableHash& operator=(const ResumableHash& other);

  void Update(absl::Span<const uint8_t> data);
  uint64_t size() const { return size_; }
  base::DigestAlgorithm algorithm() const { return algorithm_; }
  // Of what has been given so far; more may follow.
  base::Digest Current() const;

  // Lower-case hex: the chaining words (big-endian), then the bytes of the block that is not full yet. Its
  // length follows from size().
  std::string State() const;
  // InvalidArgument unless `state` is what State() gave after `size` bytes.
  static absl::StatusOr<ResumableHash> FromState(base::DigestAlgorithm algorithm, uint64_t size,
                                                 absl::string_view state);

 private:
  struct Context;
  base::DigestAlgorithm algorithm_;
  uint64_t size_ = 0;
  std::unique_ptr<Context> context_;
};

}  // namespace lazyblob::exporter::internal
