#include "layer/internal/index_tables.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/checked.h"
#include "base/status.h"
#include "layer/internal/gzip_codec.h"
#include "layer/internal/zstd_codec.h"

namespace lazyblob::layer::internal {
namespace {

static_assert(std::endian::native == std::endian::little, "the index is read in place");

absl::Status Damaged(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("layer index is damaged (", what, "): it must be built again"));
}

// Records of `ref`, which must lie between the header and the end of the tables.
template <typename Record>
bool Table(absl::Span<const uint8_t> file, const IndexHeader& header, const TableRef& ref,
           absl::Span<const Record>* out) {
  uint64_t bytes;
  if (!base::CheckedMul(ref.count, sizeof(Record), &bytes)) return false;
  if (ref.offset % alignof(Record) != 0 || ref.offset < sizeof(IndexHeader)) return false;
  if (!base::RangeWithin(ref.offset, bytes, header.tables_end)) return false;
  *out = {reinterpret_cast<const Record*>(file.data() + ref.offset), ref.count};
  return true;
}

absl::StatusOr<base::Digest> StoredDigest(const char (&field)[kDigestTextBytes]) {
  const absl::string_view text(field, strnlen(field, sizeof(field)));
  if (text.empty()) return base::Digest();
  return base::Digest::Parse(text);
}

}  // namespace

absl::StatusOr<IndexTables> IndexTables::Parse(absl::Span<const uint8_t> file, bool check_digest) {
  return ParseTables(file, file.size(), check_digest);
}

absl::StatusOr<IndexTables> IndexTables::ParseTables(absl::Span<const uint8_t> file, uint64_t file_size,
                                                     bool check_digest) {
  if (file.size() < sizeof(IndexHeader)) return Damaged("too short");
  IndexTables tables;
  tables.file_ = file;
  tables.file_size_ = file_size;
  tables.header_ = reinterpret_cast<const IndexHeader*>(file.data());
  const IndexHeader& header = *tables.header_;
  if (std::memcmp(header.magic, kIndexMagic, sizeof(kIndexMagic)) != 0) return Damaged("no magic number");
  if (header.version != kIndexVersion || header.header_size != sizeof(IndexHeader)) {
    return absl::DataLossError(absl::StrCat("layer index has version ", header.version,
                                            ", this program reads ", kIndexVersion,
                                            ": it must be built again"));
  }
  if (header.file_size != file_size || header.tables_end > file.size() ||
      header.tables_end < sizeof(IndexHeader)) {
    return Damaged("size");
  }
  if (check_digest) {
    const base::Sha256Bytes sum = base::Sha256(file.subspan(kHashedFrom, header.tables_end - kHashedFrom));
    if (std::memcmp(sum.data(), header.tables_sha256, sum.size()) != 0) return Damaged("checksum");
  }
  absl::Span<const char> directories;
  if (!Table(file, header, header.chunks, &tables.chunks_) ||
      !Table(file, header, header.checkpoints, &tables.checkpoints_) ||
      !Table(file, header, header.inline_chunks, &tables.inline_) ||
      !Table(file, header, header.scrub, &tables.scrub_) ||
      !Table(file, header, header.directories, &directories)) {
    return Damaged("tables");
  }
  tables.directories_ = absl::string_view(directories.data(), directories.size());
  RETURN_IF_ERROR(tables.CheckParts());
  RETURN_IF_ERROR(tables.CheckChunks());
  return tables;
}

absl::Status IndexTables::CheckParts() const {
  const uint64_t parts_start = header_->tables_end;
  const auto is_part = [&](uint64_t offset, uint64_t size) {
    return offset >= parts_start && base::RangeWithin(offset, size, file_size_);
  };
  for (const CheckpointRecord& checkpoint : checkpoints_) {
    if (checkpoint.window_size > kMaxWindowBytes || checkpoint.bit_offset / 8 >= header_->blob_size ||
        (checkpoint.window_size > 0 && !is_part(checkpoint.part_offset, checkpoint.part_size))) {
      return Damaged("checkpoints");
    }
  }
  for (const InlineRecord& record : inline_) {
    if (!is_part(record.part_offset, record.part_size)) return Damaged("inline chunks");
  }
  uint64_t end = 0;
  for (const ScrubRecord& record : scrub_) {
    if (record.offset < end || !base::RangeWithin(record.offset, record.length, header_->data_size)) {
      return Damaged("scrub ranges");
    }
    end = record.offset + record.length;
  }
  return absl::OkStatus();
}

absl::Status IndexTables::CheckChunks() const {
  if (header_->data_size % kDataAlignment != 0 || header_->data_size > kMaxDataBytes)
    return Damaged("data size");
  uint64_t end = 0;
  for (const ChunkRecord& chunk : chunks_) {
    if (chunk.data_size == 0 || chunk.data_size > kMaxChunkBytes || chunk.data_offset < end ||
        !base::RangeWithin(chunk.data_offset, chunk.data_size, header_->data_size) ||
        !base::RangeWithin(chunk.blob_offset, chunk.blob_size, header_->blob_size)) {
      return Damaged("chunk ranges");
    }
    end = chunk.data_offset + chunk.data_size;
    bool good = false;
    switch (static_cast<Codec>(chunk.codec)) {
      case Codec::kIdentity:
        good = chunk.blob_size == chunk.data_size;
        break;
      case Codec::kGzipCheckpoint:
        good = chunk.codec_argument < checkpoints_.size() &&
               checkpoints_[chunk.codec_argument].bit_offset / 8 == chunk.blob_offset &&
               checkpoints_[chunk.codec_argument].data_offset <= chunk.data_offset;
        break;
      case Codec::kGzipMember:
      case Codec::kZstdFrame:
        good = chunk.codec_argument <= kMaxDataBytes;
        break;
      case Codec::kInline:
        good = chunk.codec_argument < inline_.size() && chunk.blob_size == 0 &&
               chunk.data_size <= kMaxInlineChunkBytes;
        break;
    }
    if (!good) return Damaged("chunk codec");
  }
  return absl::OkStatus();
}

absl::StatusOr<LayerInfo> IndexTables::Info() const {
  LayerInfo info;
  if (header_->format < static_cast<uint8_t>(Format::kTar) ||
      header_->format > static_cast<uint8_t>(Format::kZstdChunked)) {
    return Damaged("format");
  }
  info.format = static_cast<Format>(header_->format);
  const absl::StatusOr<base::Digest> blob = StoredDigest(header_->blob_digest),
                                     diff = StoredDigest(header_->diff_id);
  if (!blob.ok() || !diff.ok() || blob->empty()) return Damaged("digests");
  info.blob_digest = *blob;
  info.diff_id = *diff;
  info.blob_size = header_->blob_size;
  info.data_size = header_->data_size;
  info.inode_count = header_->inode_count;
  info.has_whiteouts = (header_->flags & kFlagWhiteouts) != 0;
  info.random_access = (header_->flags & kFlagRandomAccess) != 0;
  // Each name is followed by a NUL.
  for (absl::string_view names = directories_; !names.empty();) {
    const size_t end = names.find('\0');
    if (end == absl::string_view::npos) return Damaged("directory names");
    info.implied_directories.emplace_back(names.substr(0, end));
    names.remove_prefix(end + 1);
  }
  return info;
}

Chunk IndexTables::ChunkAt(uint64_t i) const {
  const ChunkRecord& record = chunks_[i];
  Chunk chunk;
  chunk.data_offset = record.data_offset;
  chunk.data_size = record.data_size;
  chunk.blob_offset = record.blob_offset;
  chunk.blob_size = record.blob_size;
  chunk.codec_argument = record.codec_argument;
  chunk.codec = static_cast<Codec>(record.codec);
  std::memcpy(chunk.sha256.data(), record.sha256, chunk.sha256.size());
  return chunk;
}

uint64_t IndexTables::FindChunk(uint64_t data_offset) const {
  const auto found = std::partition_point(chunks_.begin(), chunks_.end(), [&](const ChunkRecord& chunk) {
    return chunk.data_offset + chunk.data_size <= data_offset;
  });
  return static_cast<uint64_t>(found - chunks_.begin());
}

absl::Status IndexTables::Decode(uint64_t i, absl::Span<const uint8_t> blob_bytes,
                                 absl::Span<uint8_t> out) const {
  if (i >= chunks_.size() || blob_bytes.size() != chunks_[i].blob_size ||
      out.size() != chunks_[i].data_size) {
    return absl::InvalidArgumentError("buffers do not have the sizes of the chunk");
  }
  const ChunkRecord& chunk = chunks_[i];
  absl::Status status = DecodeRaw(chunk, blob_bytes, out);
  if (status.ok()) {
    Scrub(chunk, out);
    const base::Sha256Bytes sum = base::Sha256(out);
    if (std::memcmp(sum.data(), chunk.sha256, sum.size()) == 0) return absl::OkStatus();
    status = absl::DataLossError("bytes do not match their digest");
  }
  std::memset(out.data(), 0, out.size());
  return absl::Status(status.code(), absl::StrCat("chunk ", i, " (blob bytes ", chunk.blob_offset, "+",
                                                  chunk.blob_size, "): ", status.message()));
}

absl::Status IndexTables::DecodeRaw(const ChunkRecord& chunk, absl::Span<const uint8_t> blob_bytes,
                                    absl::Span<uint8_t> out) const {
  switch (static_cast<Codec>(chunk.codec)) {
    case Codec::kIdentity:
      std::memcpy(out.data(), blob_bytes.data(), out.size());
      return absl::OkStatus();
    case Codec::kGzipCheckpoint: {
      const CheckpointRecord& checkpoint = checkpoints_[chunk.codec_argument];
      std::vector<uint8_t> window(checkpoint.window_size);
      if (!window.empty()) {
        RETURN_IF_ERROR(
            DecompressPart(Part(checkpoint.part_offset, checkpoint.part_size), absl::MakeSpan(window)));
      }
      return InflateFromCheckpoint(blob_bytes, static_cast<unsigned>(checkpoint.bit_offset % 8), window,
                                   chunk.data_offset - checkpoint.data_offset, out);
    }
    case Codec::kGzipMember:
      return InflateMembers(blob_bytes, chunk.codec_argument, out);
    case Codec::kZstdFrame:
      return DecodeZstdFrames(blob_bytes, chunk.codec_argument, out);
    case Codec::kInline: {
      const InlineRecord& record = inline_[chunk.codec_argument];
      return DecompressPart(Part(record.part_offset, record.part_size), out);
    }
  }
  return Damaged("codec");
}

void IndexTables::Scrub(const ChunkRecord& chunk, absl::Span<uint8_t> out) const {
  const uint64_t chunk_end = chunk.data_offset + chunk.data_size;
  auto range = std::partition_point(scrub_.begin(), scrub_.end(), [&](const ScrubRecord& record) {
    return record.offset + record.length <= chunk.data_offset;
  });
  for (; range != scrub_.end() && range->offset < chunk_end; ++range) {
    const uint64_t from = std::max(range->offset, chunk.data_offset);
    const uint64_t to = std::min(range->offset + range->length, chunk_end);
    std::memset(out.data() + (from - chunk.data_offset), 0, to - from);
  }
}

}  // namespace lazyblob::layer::internal
