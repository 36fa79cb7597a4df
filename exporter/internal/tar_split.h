#pragma once

// The skeleton of a tar: all its bytes but the contents of files, so that the tar can be made again from the
// files. containers/storage wants it of a zstd:chunked layer before it fetches only parts of it. Format:
// vbatts/tar-split, tar/storage (JSON lines; "type" 2: raw bytes, "type" 1: a file with its CRC-64/ISO), with
// one type 2 line before each file that ends with that file's header. One thread at a time.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/digest.h"
#include "exporter/internal/encoder.h"

namespace lazyblob::exporter::internal {

class TarSplit {
 public:
  static absl::StatusOr<std::unique_ptr<TarSplit>> Create();

  // Bytes of the tar that are no file's contents.
  absl::Status Raw(absl::Span<const uint8_t> bytes);
  // The entry whose header has just ended; `size` bytes of contents follow.
  absl::Status BeginFile(absl::string_view name, uint64_t size);
  void Contents(absl::Span<const uint8_t> bytes);
  // After all of them; for every entry.
  absl::Status EndFile();

  struct Result {
    std::string compressed;  // a zstd frame
    base::Digest digest;     // of it
    uint64_t size = 0;       // before compression
  };
  absl::StatusOr<Result> Finish();

 private:
  TarSplit() : output_([this](absl::Span<const uint8_t> bytes) { return Keep(bytes); }) {}
  absl::Status Keep(absl::Span<const uint8_t> bytes);
  absl::Status FlushRaw();
  absl::Status WriteLine(absl::string_view fields, absl::string_view payload);

  std::string compressed_;
  BlobOutput output_;
  std::unique_ptr<Encoder> encoder_;
  uint64_t size_ = 0;
  uint64_t position_ = 0;
  std::string raw_;
  std::string file_;  // fields of the file's line
  bool has_contents_ = false;
  uint64_t crc_ = 0;
};

}  // namespace lazyblob::exporter::internal
