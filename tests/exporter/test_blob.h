#pragma once

// A blob whose sources give what a test says. Thread-safe.

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "exporter/blob.h"
#include "tests/support/gate.h"

namespace lazyblob::exporter {

class TestBlob final : public Blob {
 public:
  explicit TestBlob(std::string bytes) : bytes_(std::move(bytes)) {
    descriptor_.media_type = "application/octet-stream";
    descriptor_.digest = base::Digest::Of(bytes_);
    descriptor_.size = bytes_.size();
  }

  // Set before use.
  std::vector<std::string> source_bytes;  // of each source; empty: one source that is right
  std::vector<oci::Reference> known_in;
  absl::Status failure;           // of every read
  support::Gate* gate = nullptr;  // at `gate_at`
  uint64_t gate_at = 0;
  bool is_local = false;
  std::string read_from;
  std::function<absl::Status(const contentstore::FetchContext&)> check;  // of the credentials, say

  std::atomic<int> reads = 0;
  std::atomic<uint64_t> bytes_read = 0;

  const base::Digest& digest() const { return descriptor_.digest; }
  std::optional<oci::Descriptor> descriptor() const override { return descriptor_; }
  absl::StatusOr<oci::Descriptor> WaitDescriptor(base::CancelToken*) override { return descriptor_; }
  absl::Status Read(uint64_t offset, registry::BodySink sink,
                    const contentstore::FetchContext& context) override {
    ++reads;
    RETURN_IF_ERROR(failure);
    if (check != nullptr) RETURN_IF_ERROR(check(context));
    const std::string& bytes = source_bytes.empty() ? bytes_ : source_bytes[context.first_source];
    while (offset < bytes.size()) {
      if (gate != nullptr && offset >= gate_at) gate->Pass();
      const auto piece = absl::string_view(bytes).substr(offset, 700);
      bytes_read += piece.size();
      offset += piece.size();
      RETURN_IF_ERROR(sink({reinterpret_cast<const uint8_t*>(piece.data()), piece.size()}));
    }
    return absl::OkStatus();
  }
  std::vector<std::string> sources() const override {
    std::vector<std::string> names;
    for (size_t i = 0; i < source_bytes.size(); ++i) names.push_back(absl::StrCat("source-", i));
    return names;
  }
  std::vector<oci::Reference> repositories() const override { return known_in; }
  std::string origin() const override { return read_from; }
  bool local() const override { return is_local; }

 private:
  const std::string bytes_;
  oci::Descriptor descriptor_;
};

inline oci::Reference Repository(const std::string& host, const std::string& name) {
  oci::Reference reference;
  reference.host = host;
  reference.repository = name;
  return reference;
}

}  // namespace lazyblob::exporter
