// From a TOC's entries to tree and chunk table. File contents lie in the data area in TOC order, each file at
// a multiple of 4 KiB.

#include <algorithm>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "base/checked.h"
#include "base/status.h"
#include "layer/internal/tar_header.h"
#include "layer/internal/toc.h"

namespace lazyblob::layer::internal {
namespace {

// What must be decoded and thrown away to reach a chunk in the middle of a member.
constexpr uint64_t kMaxInnerOffset = 16 << 20;
constexpr uint64_t kFreeDataBytes = 64 << 20;  // below this no ratio is asked

// One run of a file's bytes that the blob holds.
struct Piece {
  uint64_t data_offset = 0;
  uint64_t size = 0;
  uint64_t blob_offset = 0;
  uint64_t inner_offset = 0;
  uint64_t blob_end = 0;  // 0: not stated
  base::Sha256Bytes sha256{};
};

class Builder {
 public:
  Builder(Format format, const oci::Descriptor& layer, const Toc& toc, const BuildLimits& limits)
      : format_(format), layer_(layer), toc_(toc), limits_(limits) {
    tree_.set_max_entries(limits.max_entries);
  }

  absl::Status Add(TocEntry entry);
  absl::StatusOr<TocLayer> Finish();

 private:
  absl::Status Bad(absl::string_view why) const { return WithName(absl::StatusCode::kInvalidArgument, why); }
  absl::Status NotLazy(absl::string_view why) const {
    return WithName(absl::StatusCode::kFailedPrecondition, why);
  }
  absl::Status WithName(absl::StatusCode code, absl::string_view why) const {
    return {code, absl::StrCat("entry \"", base::Printable(name_.substr(0, 512)), "\": ", why)};
  }
  absl::StatusOr<Entry> Translate(TocEntry* from) const;
  absl::StatusOr<uint64_t> Allocate(uint64_t size);
  absl::Status AddPiece(const TocEntry& entry);
  bool IsZeros(const base::Digest& digest, uint64_t size);
  absl::Status CloseFile();
  absl::Status AddTocItself();
  absl::Status CheckPieces() const;
  void MakeChunks(IndexContents* contents) const;

  const Format format_;
  const oci::Descriptor& layer_;
  const Toc& toc_;
  const BuildLimits& limits_;
  TreeBuilder tree_;
  std::vector<Piece> pieces_;
  std::vector<uint64_t> offsets_;  // where frames or members of data start, those of zeros too
  std::vector<Chunk> toc_chunks_;
  uint64_t data_end_ = 0;
  uint64_t zeros_budget_ = uint64_t{4} << 30;  // bytes that may be hashed to find files of zeros
  uint64_t stored_ = 0;                        // bytes of the data area that chunks cover

  // The file whose chunks are coming.
  std::string name_;
  bool open_ = false;
  bool last_is_data_ = false;
  uint64_t size_ = 0;
  uint64_t data_offset_ = 0;
  uint64_t covered_ = 0;
  uint64_t blob_end_ = 0;
};

absl::StatusOr<Entry> Builder::Translate(TocEntry* from) const {
  static constexpr std::pair<const char*, EntryType> kTypes[] = {
      {"reg", EntryType::kRegular},     {"dir", EntryType::kDirectory},
      {"symlink", EntryType::kSymlink}, {"hardlink", EntryType::kHardLink},
      {"char", EntryType::kCharDevice}, {"block", EntryType::kBlockDevice},
      {"fifo", EntryType::kFifo}};
  constexpr uint64_t kMax32 = std::numeric_limits<uint32_t>::max();
  Entry entry;
  const auto type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                 [from](const auto& known) { return from->type == known.first; });
  if (type == std::end(kTypes)) return Bad("its type is unknown");
  entry.type = type->second;
  if (from->mode > kMax32 || from->uid > kMax32 || from->gid > kMax32 || from->device_major > kMax32 ||
      from->device_minor > kMax32) {
    return Bad("its mode, an owner or a device number does not fit 32 bits");
  }
  entry.path = std::move(from->name);
  entry.mode = static_cast<uint32_t>(from->mode & 07777);
  entry.uid = static_cast<uint32_t>(from->uid);
  entry.gid = static_cast<uint32_t>(from->gid);
  entry.device_major = static_cast<uint32_t>(from->device_major);
  entry.device_minor = static_cast<uint32_t>(from->device_minor);
  entry.link_target = std::move(from->link_name);
  entry.xattrs = std::move(from->xattrs);
  if (entry.type == EntryType::kRegular) entry.size = from->size;
  if (!from->modtime.empty()) {
    const std::optional<TocTime> time = ParseTocTime(from->modtime);
    if (!time.has_value()) return Bad("its modification time is malformed");
    entry.mtime_seconds = time->seconds;
    entry.mtime_nanoseconds = time->nanoseconds;
  }
  return entry;
}

// Room for a file in the data area.
absl::StatusOr<uint64_t> Builder::Allocate(uint64_t size) {
  uint64_t start = 0;
  uint64_t end = 0;
  if (!base::CheckedAlignUp(data_end_, kDataAlignment, &start) || !base::CheckedAdd(start, size, &end) ||
      end > std::min(limits_.max_data_bytes, kMaxDataBytes)) {
    return absl::FailedPreconditionError("the layer's files are larger than supported");
  }
  data_end_ = end;
  return start;
}

absl::Status Builder::Add(TocEntry entry) {
  if (entry.type == "chunk") {
    if (!open_ || (!entry.name.empty() && entry.name != name_)) {
      name_ = std::move(entry.name);
      return Bad("a chunk that follows no file of that name");
    }
    return AddPiece(entry);
  }
  RETURN_IF_ERROR(CloseFile());
  name_ = entry.name;
  ASSIGN_OR_RETURN(Entry translated, Translate(&entry));
  if (translated.type == EntryType::kRegular && entry.size > 0) {
    ASSIGN_OR_RETURN(data_offset_, Allocate(entry.size));
    translated.extents = {{0, data_offset_, entry.size}};
    open_ = true;
    size_ = entry.size;
    covered_ = 0;
    blob_end_ = entry.end_offset;
    RETURN_IF_ERROR(AddPiece(entry));
  }
  return tree_.Add(std::move(translated));
}

absl::Status Builder::AddPiece(const TocEntry& entry) {
  if (entry.chunk_offset != covered_ || covered_ == size_) return Bad("its chunks overlap or leave a gap");
  const uint64_t left = size_ - covered_;
  const uint64_t size = entry.chunk_size == 0 ? left : entry.chunk_size;
  if (size > left) return Bad("a chunk reaches beyond the end of the file");
  if (entry.offset >= toc_.payload_end || (entry.offset == 0 && entry.inner_offset == 0)) {
    return Bad(absl::StrCat("blob offset ", entry.offset, " is not one of file contents"));
  }
  offsets_.push_back(entry.offset);
  const uint64_t data_offset = data_offset_ + covered_;
  const bool whole = covered_ == 0 && size == size_;
  covered_ += size;
  last_is_data_ = entry.chunk_type.empty();
  if (entry.chunk_type == "zeros") return absl::OkStatus();  // parts without a chunk are zeros
  if (!entry.chunk_type.empty()) return NotLazy("a chunk of unknown type");
  if (entry.inner_offset > kMaxInnerOffset) return NotLazy("a chunk more than 16 MiB into its gzip member");
  const std::string& text = entry.chunk_digest.empty() && whole ? entry.digest : entry.chunk_digest;
  if (text.empty()) return NotLazy("a chunk without digest");
  auto digest = base::Digest::Parse(text);
  if (!digest.ok()) return Bad("a chunk's digest is malformed");
  if (digest->algorithm() != base::DigestAlgorithm::kSha256)
    return NotLazy("a chunk's digest is not SHA-256");
  if (size > kMaxChunkBytes) {
    if (!IsZeros(*digest, size)) return NotLazy("a chunk larger than 16 MiB");
    last_is_data_ = false;
    return absl::OkStatus();
  }
  Piece piece{data_offset, size, entry.offset, entry.inner_offset, 0, {}};
  std::copy(digest->bytes().begin(), digest->bytes().end(), piece.sha256.begin());
  pieces_.push_back(piece);
  stored_ += size;
  return absl::OkStatus();
}

// Whether `digest` is that of `size` zeros. containers/storage does not say so of a file that is one run of
// them, and those are the files whose chunks are larger than any we take.
bool Builder::IsZeros(const base::Digest& digest, uint64_t size) {
  if (size > zeros_budget_) return false;
  zeros_budget_ -= size;
  static constexpr uint8_t kZeros[64 << 10] = {};
  base::Hasher hasher;
  for (uint64_t left = size; left > 0; left -= std::min<uint64_t>(left, sizeof(kZeros))) {
    hasher.Update(absl::MakeConstSpan(kZeros, std::min<uint64_t>(left, sizeof(kZeros))));
  }
  return hasher.Finish() == digest;
}

absl::Status Builder::CloseFile() {
  if (!open_) return absl::OkStatus();
  open_ = false;
  if (covered_ != size_) return Bad("its chunks do not cover it");
  if (blob_end_ == 0 || !last_is_data_) return absl::OkStatus();
  if (blob_end_ <= pieces_.back().blob_offset || blob_end_ > toc_.payload_end) {
    return Bad("its end in the blob is not after its start");
  }
  pieces_.back().blob_end = blob_end_;
  return absl::OkStatus();
}

// The file stargz.index.json, which every unpacker makes.
absl::Status Builder::AddTocItself() {
  ASSIGN_OR_RETURN(
      const TarHeader header,
      ParseTarHeader({reinterpret_cast<const uint8_t*>(toc_.tar_header.data()), kTarBlockBytes}));
  name_ = header.name;
  Entry entry;
  entry.path = header.name;
  entry.mode = static_cast<uint32_t>(header.mode & 07777);
  entry.uid = static_cast<uint32_t>(header.uid);
  entry.gid = static_cast<uint32_t>(header.gid);
  entry.mtime_seconds = header.mtime;
  entry.size = toc_.json.size();
  ASSIGN_OR_RETURN(const uint64_t data_offset, Allocate(entry.size));
  entry.extents = {{0, data_offset, entry.size}};
  const absl::Span<const uint8_t> json(reinterpret_cast<const uint8_t*>(toc_.json.data()), toc_.json.size());
  for (uint64_t at = 0; at < json.size(); at += kMaxChunkBytes) {
    Chunk chunk;
    chunk.data_offset = data_offset + at;
    chunk.data_size = std::min<uint64_t>(kMaxChunkBytes, json.size() - at);
    chunk.blob_offset = toc_.member_offset;
    chunk.blob_size = toc_.member_size;
    chunk.codec = Codec::kGzipMember;
    chunk.codec_argument = kTarBlockBytes + at;
    chunk.sha256 = base::Sha256(json.subspan(at, chunk.data_size));
    toc_chunks_.push_back(chunk);
  }
  return tree_.Add(std::move(entry));
}

// No two chunks may claim the same decoded bytes, nor the whole be more than the blob can plausibly hold.
absl::Status Builder::CheckPieces() const {
  std::vector<uint32_t> order(pieces_.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [this](uint32_t a, uint32_t b) {
    return std::make_pair(pieces_[a].blob_offset, pieces_[a].inner_offset) <
           std::make_pair(pieces_[b].blob_offset, pieces_[b].inner_offset);
  });
  for (size_t i = 1; i < order.size(); ++i) {
    const Piece& before = pieces_[order[i - 1]];
    const Piece& piece = pieces_[order[i]];
    if (before.blob_offset == piece.blob_offset && piece.inner_offset < before.inner_offset + before.size) {
      return absl::InvalidArgumentError(
          absl::StrCat("two chunks overlap at blob offset ", piece.blob_offset));
    }
  }
  if (stored_ > kFreeDataBytes && (stored_ - kFreeDataBytes) / limits_.max_ratio > layer_.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("it claims ", stored_, " bytes of files in a blob of ", layer_.size));
  }
  return absl::OkStatus();
}

void Builder::MakeChunks(IndexContents* contents) const {
  std::vector<uint64_t> offsets = offsets_;
  std::sort(offsets.begin(), offsets.end());
  contents->chunks.reserve(pieces_.size() + toc_chunks_.size());
  for (const Piece& piece : pieces_) {
    const auto next = std::upper_bound(offsets.begin(), offsets.end(), piece.blob_offset);
    uint64_t end = next == offsets.end() ? toc_.payload_end : *next;
    if (piece.blob_end != 0) end = std::min(end, piece.blob_end);
    Chunk chunk;
    chunk.data_offset = piece.data_offset;
    chunk.data_size = piece.size;
    chunk.blob_offset = piece.blob_offset;
    chunk.blob_size = end - piece.blob_offset;
    chunk.codec = format_ == Format::kEstargz ? Codec::kGzipMember : Codec::kZstdFrame;
    chunk.codec_argument = piece.inner_offset;
    chunk.sha256 = piece.sha256;
    contents->chunks.push_back(chunk);
  }
  contents->chunks.insert(contents->chunks.end(), toc_chunks_.begin(), toc_chunks_.end());
}

absl::StatusOr<TocLayer> Builder::Finish() {
  RETURN_IF_ERROR(CloseFile());
  if (!toc_.tar_header.empty()) RETURN_IF_ERROR(AddTocItself());
  RETURN_IF_ERROR(CheckPieces());
  TocLayer layer;
  MakeChunks(&layer.contents);
  LayerInfo& info = layer.contents.info;
  info.format = format_;
  info.blob_digest = layer_.digest;
  info.blob_size = layer_.size;
  if (!base::CheckedAlignUp(data_end_, kDataAlignment, &info.data_size)) return Bad("too large");
  info.random_access = true;
  ASSIGN_OR_RETURN(layer.tree, tree_.Finish());
  return layer;
}

}  // namespace

absl::StatusOr<TocLayer> BuildTocLayer(Format format, const oci::Descriptor& layer, const Toc& toc,
                                       const BuildLimits& limits) {
  Builder builder(format, layer, toc, limits);
  RETURN_IF_ERROR(ParseToc(toc.json, limits.max_entries,
                           [&builder](TocEntry entry) { return builder.Add(std::move(entry)); }));
  return builder.Finish();
}

}  // namespace lazyblob::layer::internal
