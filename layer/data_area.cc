#include "layer/internal/data_area.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/checked.h"
#include "base/status.h"
#include "layer/internal/extent_layout.h"
#include "layer/internal/index_tables.h"
#include "layer/internal/zstd_codec.h"

namespace lazyblob::layer::internal {
namespace {

// A group of several chunks is still decoded at random when it stays below both.
constexpr uint64_t kMaxGroupData = 64 << 20;
constexpr uint64_t kMaxGroupBlob = 1 << 20;

}  // namespace

void Chunker::Append(absl::Span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const size_t taken = std::min<uint64_t>(bytes.size(), max_chunk_bytes_ - chunk_size_);
    hasher_.Update(bytes.first(taken));
    bytes.remove_prefix(taken);
    chunk_size_ += taken;
    data_size_ += taken;
    if (chunk_size_ == max_chunk_bytes_) EndChunk();
  }
}

void Chunker::EndChunk() {
  if (chunk_size_ == 0) return;
  Chunk chunk;
  chunk.codec = codec_;
  chunk.data_offset = data_size_ - chunk_size_;
  chunk.data_size = chunk_size_;
  const base::Digest digest = hasher_.Finish();
  std::copy(digest.bytes().begin(), digest.bytes().end(), chunk.sha256.begin());
  hasher_ = base::Hasher();
  chunk_size_ = 0;
  if (codec_ == Codec::kIdentity) {
    chunk.blob_offset = chunk.data_offset;
    chunk.blob_size = chunk.data_size;
  }
  chunks_.push_back(chunk);
}

void Chunker::EndGroup(uint64_t blob_end) {
  EndChunk();
  if (codec_ == Codec::kIdentity) return;
  for (size_t i = group_first_; i < chunks_.size(); ++i) {
    Chunk& chunk = chunks_[i];
    chunk.blob_offset = group_blob_;
    chunk.blob_size = blob_end - group_blob_;
    chunk.codec_argument = codec_ == Codec::kZstdFrame ? chunk.data_offset - group_data_ : group_argument_;
  }
  const bool several = chunks_.size() > group_first_ + 1;
  if (several && (group_size() > kMaxGroupData || blob_end - group_blob_ > kMaxGroupBlob))
    random_access_ = false;
}

void Chunker::StartGroup(uint64_t blob_end, uint64_t blob_offset, uint64_t argument) {
  EndGroup(blob_end);
  group_first_ = chunks_.size();
  group_data_ = data_size_;
  group_blob_ = blob_offset;
  group_argument_ = argument;
}

void Chunker::Finish(uint64_t blob_end) { EndGroup(blob_end); }

absl::Status InlineStore::Materialise(Entry* entry) {
  const auto too_much = [&] {
    return absl::InvalidArgumentError(absl::StrCat(
        "sparse file \"", base::Printable(entry->path), "\" has runs that cannot be mapped, and more than ",
        kMaxBytes >> 20, " MiB of such runs in the layer are not supported"));
  };
  const int bits = MaterialisedChunkBits(entry->size);
  if (bits > kMaxChunkBits) return too_much();
  const uint64_t unit = uint64_t{1} << bits;
  std::vector<Extent> moved;
  uint64_t run_end = 0;  // of moved.back(), in whole units
  for (const Extent& extent : entry->extents) {
    const uint64_t start = extent.file_offset & ~(unit - 1);
    uint64_t end;
    if (!base::CheckedAlignUp(extent.file_offset + extent.length, unit, &end)) return too_much();
    // The store grows by the units that this extent is the first to touch.
    const bool continues = !moved.empty() && start <= run_end;
    const uint64_t grown_from = continues ? run_end : start;
    if (!continues) {
      moved.push_back({start, kBase + size_, 0});
      run_end = start;
    }
    if (end - grown_from > kMaxBytes - size_) return too_much();
    size_ += end - grown_from;
    run_end = end;
    Extent& run = moved.back();
    run.length = std::min(run_end, entry->size) - run.file_offset;
    copies_.push_back({extent.data_offset, extent.length,
                       run.data_offset - kBase + (extent.file_offset - run.file_offset)});
  }
  entry->extents = std::move(moved);
  return absl::OkStatus();
}

void InlineStore::Append(uint64_t stream_offset, absl::Span<const uint8_t> bytes) {
  const uint64_t end = stream_offset + bytes.size();
  while (!copies_.empty() && copies_.front().stream_offset < end) {
    Copy& copy = copies_.front();
    const uint64_t length = std::min(copy.length, end - copy.stream_offset);
    WriteAt(copy.position, bytes.subspan(copy.stream_offset - stream_offset, length));
    copy.stream_offset += length;
    copy.position += length;
    copy.length -= length;
    if (copy.length > 0) return;
    copies_.pop_front();
  }
}

void InlineStore::WriteAt(uint64_t position, absl::Span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    uint64_t start = pieces_.size() * kMaxInlineChunkBytes;
    while (position >= start + kMaxInlineChunkBytes) {
      open_.resize(kMaxInlineChunkBytes);
      Seal();
      start += kMaxInlineChunkBytes;
    }
    const uint64_t taken = std::min<uint64_t>(bytes.size(), start + kMaxInlineChunkBytes - position);
    open_.resize(std::max<uint64_t>(open_.size(), position - start + taken));
    std::memcpy(open_.data() + (position - start), bytes.data(), taken);
    bytes.remove_prefix(taken);
    position += taken;
  }
}

void InlineStore::Seal() {
  pieces_.push_back({CompressPart(open_), open_.size(), base::Sha256(open_)});
  open_.clear();
}

absl::Status InlineStore::Finish(uint64_t data_offset, IndexContents* contents,
                                 absl::FunctionRef<absl::Status(uint64_t, absl::Span<const uint8_t>)> data) {
  while (pieces_.size() * kMaxInlineChunkBytes < size_) {
    open_.resize(std::min(kMaxInlineChunkBytes, size_ - pieces_.size() * kMaxInlineChunkBytes));
    Seal();
  }
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i < pieces_.size(); ++i) {
    Chunk chunk;
    chunk.codec = Codec::kInline;
    chunk.codec_argument = contents->inline_chunks.size();
    chunk.data_offset = data_offset + i * kMaxInlineChunkBytes;
    chunk.data_size = pieces_[i].size;
    chunk.sha256 = pieces_[i].sha256;
    bytes.resize(pieces_[i].size);
    const std::string& part = pieces_[i].part;
    RETURN_IF_ERROR(
        DecompressPart({reinterpret_cast<const uint8_t*>(part.data()), part.size()}, absl::MakeSpan(bytes)));
    RETURN_IF_ERROR(data(chunk.data_offset, bytes));
    contents->chunks.push_back(chunk);
    contents->inline_chunks.push_back(std::move(pieces_[i].part));
  }
  return absl::OkStatus();
}

void InlineStore::Relocate(uint64_t data_offset, Tree* tree) {
  for (Inode& inode : tree->inodes) {
    for (Extent& extent : inode.extents) {
      if (extent.data_offset >= kBase) extent.data_offset = extent.data_offset - kBase + data_offset;
    }
  }
}

}  // namespace lazyblob::layer::internal
