#pragma once

// The compressed side of a layer: what has been given out, and encoders that cut it into gzip members or zstd
// frames. One thread at a time.

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/digest.h"
#include "exporter/tar_writer.h"

namespace lazyblob::exporter::internal {

// Counts and hashes a blob on its way to a sink.
class BlobOutput {
 public:
  explicit BlobOutput(ByteSink sink) : sink_(std::move(sink)) {}

  absl::Status Write(absl::Span<const uint8_t> bytes);
  uint64_t size() const { return size_; }
  // Once, at the end.
  base::Digest Digest() { return hasher_.Finish(); }

 private:
  ByteSink sink_;
  base::Hasher hasher_;
  uint64_t size_ = 0;
};

enum class Codec : uint8_t { kIdentity, kGzip, kZstd };

class Encoder {
 public:
  // `level` as in LayerOptions. ResourceExhausted: no memory.
  static absl::StatusOr<std::unique_ptr<Encoder>> Create(Codec codec, int level, BlobOutput* output);
  virtual ~Encoder() = default;

  // Opens a frame if none is open.
  virtual absl::Status Write(absl::Span<const uint8_t> bytes) = 0;
  // All that was written is in the output now, and can be decoded from where the frame began. Nothing happens
  // when no frame is open.
  virtual absl::Status EndFrame() = 0;
};

}  // namespace lazyblob::exporter::internal
