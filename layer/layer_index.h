#pragma once

// The layer index: what every layer format is reduced to. A table of chunks (how to get each part of the data
// area from the blob, and its SHA-256) and an EROFS image of the tree whose files lie in the data area.
// docs/LAYER_INDEX.md fixes the bytes of the file; nothing above this folder knows formats.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/digest.h"
#include "base/file.h"

namespace lazyblob::layer {

enum class Format : uint8_t { kTar = 1, kTarGzip = 2, kTarZstd = 3, kEstargz = 4, kZstdChunked = 5 };
// "tar", "tar+gzip", "tar+zstd", "estargz", "zstd:chunked".
absl::string_view FormatName(Format format);

// How a chunk's bytes come out of its blob range.
enum class Codec : uint8_t {
  kIdentity = 0,  // copied
  kGzipCheckpoint =
      1,  // inflated from checkpoint `codec_argument`; blob range starts at the byte that holds its bit
  kGzipMember =
      2,  // gzip member(s) that start at the blob range; the first `codec_argument` bytes are skipped
  kZstdFrame = 3,  // zstd frame(s) that start at the blob range; the first `codec_argument` bytes are skipped
  kInline = 4,     // held by the index itself (materialised parts of sparse files): no blob range
};

struct Chunk {
  uint64_t data_offset = 0;  // data area
  uint64_t data_size = 0;    // 1 … kMaxChunkBytes
  uint64_t blob_offset = 0;  // blob bytes needed to decode it
  uint64_t blob_size = 0;
  uint64_t codec_argument = 0;
  Codec codec = Codec::kIdentity;
  base::Sha256Bytes sha256{};  // of the data_size bytes, as stored in the data area
};

inline constexpr uint64_t kMaxChunkBytes = 16 << 20;
inline constexpr uint64_t kDataAlignment = 4096;
inline constexpr uint64_t kMaxDataBytes = uint64_t{2} << 40;  // 2^32 EROFS blocks of 512 bytes

struct LayerInfo {
  Format format = Format::kTar;
  base::Digest blob_digest;
  uint64_t blob_size = 0;
  base::Digest diff_id;  // of the uncompressed tar; empty when not known (TOC formats)
  uint64_t data_size =
      0;  // of the data area, a multiple of kDataAlignment; parts that no chunk covers are zeros
  uint64_t inode_count = 0;
  // False: a chunk costs decoding more of the blob than is sensible (a zstd layer of one big frame), so the
  // layer should be streamed whole; Decode() of its chunks is right, but slow, and their blob ranges overlap.
  bool random_access = true;
  bool has_whiteouts = false;                    // whiteouts or opaque directories
  std::vector<std::string> implied_directories;  // without entries of their own; "" is the root. Sorted
};

// Immutable after Open, memory-mapped; thread-safe.
class LayerIndex {
 public:
  // Opens the files `index` and `meta.erofs` in `directory`. DataLoss when damaged (own checksum) or of an
  // unknown version: the caller builds it again.
  static absl::StatusOr<std::shared_ptr<const LayerIndex>> Open(const std::string& directory);
  ~LayerIndex();

  const LayerInfo& info() const { return info_; }
  const std::string& directory() const { return directory_; }

  uint64_t chunk_count() const;
  Chunk chunk(uint64_t i) const;  // i < chunk_count()
  // The first chunk that ends after `data_offset`; chunk_count() if there is none. Chunks are sorted by
  // data_offset and do not overlap, but may leave gaps.
  uint64_t FindChunk(uint64_t data_offset) const;

  // Decodes chunk `i` from `blob_bytes` (exactly its blob range) into `out` (exactly data_size bytes) and
  // checks its SHA-256. DataLoss, and `out` zeroed, when the bytes are not the right ones.
  absl::Status Decode(uint64_t i, absl::Span<const uint8_t> blob_bytes, absl::Span<uint8_t> out) const;

 private:
  class Tables;
  LayerIndex() = default;
  std::string directory_;
  LayerInfo info_;
  std::unique_ptr<Tables> tables_;
};

}  // namespace lazyblob::layer
