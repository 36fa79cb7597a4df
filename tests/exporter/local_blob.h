#pragma once

// A Blob of bytes in memory, as local as a test wants it.

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "exporter/blob.h"

namespace lazyblob::exporter {

class TestBlob final : public Blob {
 public:
  TestBlob(oci::Descriptor descriptor, std::string bytes, bool local)
      : descriptor_(std::move(descriptor)), bytes_(std::move(bytes)), local_(local) {}

  std::optional<oci::Descriptor> descriptor() const override { return descriptor_; }
  absl::StatusOr<oci::Descriptor> WaitDescriptor(base::CancelToken*) override { return descriptor_; }
  absl::Status Read(uint64_t offset, registry::BodySink sink,
                    const contentstore::FetchContext& context) override {
    if (before_read) {
      if (absl::Status status = before_read(context); !status.ok()) return status;
    }
    constexpr size_t kPiece = 4096;
    for (size_t at = offset; at < bytes_.size(); at += kPiece) {
      const size_t size = std::min(kPiece, bytes_.size() - at);
      const absl::Status status = sink({reinterpret_cast<const uint8_t*>(bytes_.data()) + at, size});
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
  bool local() const override { return local_; }

  std::function<absl::Status(const contentstore::FetchContext&)> before_read;

 private:
  const oci::Descriptor descriptor_;
  const std::string bytes_;
  const bool local_;
};

}  // namespace lazyblob::exporter
