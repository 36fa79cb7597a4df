#pragma once

// For those who write layers: reading along in a tar stream, and undoing a layer's compression. One thread at
// a time; done after an error.

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "layer/entry.h"
#include "oci/descriptor.h"

namespace lazyblob::layer {

// Reads and refuses what the index of a plain layer does (docs/LAYER_INDEX.md).
class TarFollower {
 public:
  TarFollower();
  ~TarFollower();

  // Called when the header of an entry, extensions included, has ended just before `header_end`. The entry's
  // extents are offsets in the stream.
  using EntrySink = absl::FunctionRef<absl::Status(Entry, uint64_t header_end)>;
  // InvalidArgument names the entry, or the offset of its header.
  absl::Status Feed(absl::Span<const uint8_t> bytes, EntrySink on_entry);
  // InvalidArgument when the stream ended inside an entry.
  absl::Status Finish() const;

  // Bytes before this offset belong to entries for certain. While entries go on, less than two blocks of what
  // was fed lie behind it: they may be the end of the archive. After the archive has ended this is where its
  // end starts.
  uint64_t entries_end() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Decompresses whole streams: gzip of any number of members, zstd of any number of frames, or nothing.
class StreamDecoder {
 public:
  static constexpr uint64_t kMostZstdWindow = 128 << 20;
  // `max_zstd_window`: bytes of memory that a zstd frame may ask for.
  explicit StreamDecoder(oci::Compression compression, uint64_t max_zstd_window = kMostZstdWindow);
  ~StreamDecoder();

  using DataSink = absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)>;
  // InvalidArgument: damaged. ResourceExhausted: it takes more memory than it may.
  absl::Status Feed(absl::Span<const uint8_t> bytes, DataSink data);
  // InvalidArgument when the stream ended too early.
  absl::Status Finish();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lazyblob::layer
