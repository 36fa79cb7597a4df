#pragma once

// The file `index` (docs/LAYER_INDEX.md): its records, how it is written and how it is read in place.
// Everything is little-endian, of fixed size and naturally aligned.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/digest.h"
#include "layer/internal/index_writer.h"
#include "layer/layer_index.h"

namespace lazyblob::layer::internal {

inline constexpr char kIndexMagic[8] = {'L', 'B', 'L', 'A', 'Y', 'E', 'R', '\n'};
inline constexpr uint32_t kIndexVersion = 1;
inline constexpr absl::string_view kIndexName = "index";
inline constexpr absl::string_view kMetaName = "meta.erofs";
inline constexpr uint32_t kMaxWindowBytes = 32 << 10;
inline constexpr uint64_t kMaxInlineChunkBytes = 1 << 20;
inline constexpr size_t kDigestTextBytes = 136;  // "sha512:" and 128 digits, padded with NUL

struct TableRef {
  uint64_t offset;  // in the file
  uint64_t count;   // of records; for directory names: of bytes
};

struct IndexHeader {
  char magic[8];
  uint32_t version;
  uint32_t header_size;
  uint8_t tables_sha256[32];  // of the bytes from `file_size` on up to `tables_end`
  uint64_t file_size;
  uint64_t tables_end;  // what follows are parts: windows and inline chunks, each with a checksum of its own
  uint8_t format;       // Format
  uint8_t flags;
  uint8_t zero[6];
  uint64_t blob_size;
  uint64_t data_size;
  uint64_t inode_count;
  char blob_digest[kDigestTextBytes];
  char diff_id[kDigestTextBytes];  // all NUL when not known
  uint64_t meta_size;
  uint8_t meta_sha256[32];
  TableRef chunks;
  TableRef checkpoints;
  TableRef inline_chunks;
  TableRef scrub;
  TableRef directories;
  uint8_t reserved[24];
};
static_assert(sizeof(IndexHeader) == 512);
inline constexpr uint8_t kFlagWhiteouts = 1;
inline constexpr uint8_t kFlagRandomAccess = 2;
inline constexpr size_t kHashedFrom = 48;  // offset of file_size

struct ChunkRecord {
  uint64_t data_offset;
  uint64_t blob_offset;
  uint64_t blob_size;
  uint64_t codec_argument;
  uint32_t data_size;
  uint8_t codec;
  uint8_t zero[3];
  uint8_t sha256[32];
};
static_assert(sizeof(ChunkRecord) == 72);

struct CheckpointRecord {
  uint64_t bit_offset;
  uint64_t data_offset;
  uint64_t part_offset;  // in the file; 0 when there is no window
  uint32_t part_size;
  uint32_t window_size;
};
static_assert(sizeof(CheckpointRecord) == 32);

struct InlineRecord {
  uint64_t part_offset;
  uint64_t part_size;
};
static_assert(sizeof(InlineRecord) == 16);

struct ScrubRecord {
  uint64_t offset;
  uint64_t length;
};
static_assert(sizeof(ScrubRecord) == 16);

// A view of the bytes of an index file; the bytes must live on. Parse checks everything that later access
// relies on.
class IndexTables {
 public:
  // DataLoss: damaged, or of another version. `check_digest` false only for fuzzing.
  static absl::StatusOr<IndexTables> Parse(absl::Span<const uint8_t> file, bool check_digest = true);
  // The rules for header and tables alone, of a file that will have `file_size` bytes.
  static absl::StatusOr<IndexTables> ParseTables(absl::Span<const uint8_t> tables, uint64_t file_size,
                                                 bool check_digest);

  const IndexHeader& header() const { return *header_; }
  absl::Span<const ChunkRecord> chunks() const { return chunks_; }
  absl::Span<const CheckpointRecord> checkpoints() const { return checkpoints_; }
  absl::Span<const InlineRecord> inline_chunks() const { return inline_; }
  absl::Span<const ScrubRecord> scrub() const { return scrub_; }
  // The stored info; inode_count and so on as the header says.
  absl::StatusOr<LayerInfo> Info() const;
  absl::Span<const uint8_t> Part(uint64_t offset, uint64_t size) const { return file_.subspan(offset, size); }

  Chunk ChunkAt(uint64_t i) const;
  uint64_t FindChunk(uint64_t data_offset) const;
  absl::Status Decode(uint64_t i, absl::Span<const uint8_t> blob_bytes, absl::Span<uint8_t> out) const;

 private:
  absl::Status CheckChunks() const;
  absl::Status CheckParts() const;
  absl::Status DecodeRaw(const ChunkRecord& chunk, absl::Span<const uint8_t> blob_bytes,
                         absl::Span<uint8_t> out) const;
  void Scrub(const ChunkRecord& chunk, absl::Span<uint8_t> out) const;

  absl::Span<const uint8_t> file_;
  uint64_t file_size_ = 0;
  const IndexHeader* header_ = nullptr;
  absl::Span<const ChunkRecord> chunks_;
  absl::Span<const CheckpointRecord> checkpoints_;
  absl::Span<const InlineRecord> inline_;
  absl::Span<const ScrubRecord> scrub_;
  absl::string_view directories_;
};

// SHA-256 and size of a file, read in pieces (it may be larger than memory should hold).
struct FileIdentity {
  uint64_t size = 0;
  base::Sha256Bytes sha256{};
};
absl::StatusOr<FileIdentity> IdentifyFile(const std::string& path);

}  // namespace lazyblob::layer::internal
