#pragma once

// A file written from front to back through one buffer. Not thread-safe.

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "base/file.h"

namespace lazyblob::layer::internal {

class ImageFile {
 public:
  explicit ImageFile(base::UniqueFd fd) : fd_(std::move(fd)) { buffer_.reserve(kBufferBytes); }

  uint64_t position() const { return flushed_ + buffer_.size(); }
  // The first failure stays; later calls do nothing.
  void Append(absl::Span<const uint8_t> bytes) {
    if (buffer_.size() + bytes.size() > kBufferBytes) Flush();
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  }
  template <typename T>
  void AppendStruct(const T& value) {
    Append({reinterpret_cast<const uint8_t*>(&value), sizeof(value)});
  }
  void ZeroUntil(uint64_t position_wanted) {
    static constexpr uint8_t kZeros[4096] = {};
    while (position() < position_wanted) {
      Append({kZeros, static_cast<size_t>(std::min<uint64_t>(sizeof(kZeros), position_wanted - position()))});
    }
  }
  void Flush() {
    if (status_.ok() && !buffer_.empty()) status_ = base::WriteFull(fd_.get(), buffer_);
    flushed_ += buffer_.size();
    buffer_.clear();
  }
  const absl::Status& status() const { return status_; }
  int fd() const { return fd_.get(); }

 private:
  static constexpr size_t kBufferBytes = 1 << 20;
  base::UniqueFd fd_;
  std::vector<uint8_t> buffer_;
  uint64_t flushed_ = 0;
  absl::Status status_;
};

}  // namespace lazyblob::layer::internal
