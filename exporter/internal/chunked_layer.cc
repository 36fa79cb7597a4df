#include "exporter/internal/chunked_layer.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "exporter/tar_writer.h"

namespace lazyblob::exporter::internal {
namespace {

using Bytes = absl::Span<const uint8_t>;

constexpr char kTocName[] = "stargz.index.json";
constexpr char kTocDigest[] = "containerd.io/snapshot/stargz/toc.digest";
constexpr char kChunkedPrefix[] = "io.github.containers.zstd-chunked.";
constexpr uint32_t kSkippableMagic = 0x184D2A50;
constexpr uint64_t kSkippableHeader = 8;
constexpr uint64_t kManifestTypeCrfs = 1;
constexpr absl::string_view kChunkedMagic = "GNUlInUx";

Bytes AsBytes(absl::string_view text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

template <typename T>
std::string Little(T value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

bool AllZeros(Bytes bytes) {
  static constexpr uint8_t kZeros[4096] = {};
  while (!bytes.empty()) {
    const size_t piece = std::min(bytes.size(), sizeof(kZeros));
    if (std::memcmp(bytes.data(), kZeros, piece) != 0) return false;
    bytes.remove_prefix(piece);
  }
  return true;
}

// Whether an entry's bytes in the tar are its contents, all in one run.
bool IsPlain(const layer::Entry& entry) {
  if (entry.size == 0) return entry.extents.empty();
  return entry.extents.size() == 1 && entry.extents[0].length == entry.size;
}

// An empty gzip member whose extra field tells where the table of contents starts.
std::string EstargzFooter(uint64_t toc_offset) {
  return absl::StrCat(absl::string_view("\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0", 16),
                      absl::StrFormat("%016xSTARGZ", toc_offset), absl::string_view("\x01\0\0\xff\xff", 5),
                      std::string(8, '\0'));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ChunkedLayer>> ChunkedLayer::Create(TocText::Dialect dialect, int level,
                                                                   uint64_t chunk_size, BlobOutput* output,
                                                                   base::Hasher* tar_hasher) {
  std::unique_ptr<ChunkedLayer> layer(new ChunkedLayer(dialect, chunk_size, output, tar_hasher));
  const bool estargz = dialect == TocText::Dialect::kEstargz;
  ASSIGN_OR_RETURN(layer->encoder_, Encoder::Create(estargz ? Codec::kGzip : Codec::kZstd, level, output));
  if (!estargz) {
    ASSIGN_OR_RETURN(layer->split_, TarSplit::Create());
  }
  return layer;
}

absl::Status ChunkedLayer::Announce(layer::Entry entry, uint64_t header_end) {
  RETURN_IF_ERROR(TocText::Check(entry));
  if (!IsPlain(entry)) {
    return absl::InvalidArgumentError(
        absl::StrCat(base::Printable(entry.path),
                     ": it is a sparse file, which a table of contents cannot describe; use gzip or zstd"));
  }
  absl::string_view name = entry.path;
  while (!name.empty() && (name[0] == '/' || (name[0] == '.' && name.substr(0, 2) == "./"))) {
    name.remove_prefix(1);
  }
  if (dialect_ == TocText::Dialect::kEstargz && name == kTocName) {
    return absl::InvalidArgumentError(
        absl::StrCat(kTocName, " is the name of eStargz's own table of contents; remove the file"));
  }
  announced_.push_back({std::move(entry), header_end});
  return absl::OkStatus();
}

absl::Status ChunkedLayer::Take(Bytes bytes) {
  while (!bytes.empty()) {
    uint64_t piece = bytes.size();
    if (file_left_ > 0) {
      piece = std::min({piece, file_left_, chunk_left_});
      RETURN_IF_ERROR(TakeContents(bytes.first(piece)));
    } else {
      if (!announced_.empty()) piece = std::min(piece, announced_.front().header_end - position_);
      RETURN_IF_ERROR(TakeRaw(bytes.first(piece)));
    }
    bytes.remove_prefix(piece);
  }
  return absl::OkStatus();
}

absl::Status ChunkedLayer::TakeRaw(Bytes bytes) {
  position_ += bytes.size();
  RETURN_IF_ERROR(encoder_->Write(bytes));
  if (split_ != nullptr) RETURN_IF_ERROR(split_->Raw(bytes));
  if (announced_.empty() || announced_.front().header_end != position_) return absl::OkStatus();
  return BeginEntry();
}

absl::Status ChunkedLayer::BeginEntry() {
  file_ = std::move(announced_.front().entry);
  announced_.pop_front();
  file_left_ = file_.type == layer::EntryType::kRegular ? file_.size : 0;
  file_hasher_ = base::Hasher();
  chunks_.clear();
  if (split_ != nullptr) RETURN_IF_ERROR(split_->BeginFile(file_.path, file_left_));
  return file_left_ > 0 ? BeginChunk() : EndFile();
}

absl::Status ChunkedLayer::BeginChunk() {
  RETURN_IF_ERROR(encoder_->EndFrame());
  TocChunk chunk;
  chunk.blob_offset = output_->size();
  chunk.file_offset = file_.size - file_left_;
  chunk.size = chunk_left_ = std::min(chunk_size_, file_left_);
  chunks_.push_back(chunk);
  chunk_hasher_ = base::Hasher();
  chunk_zeros_ = true;
  return absl::OkStatus();
}

absl::Status ChunkedLayer::TakeContents(Bytes bytes) {
  position_ += bytes.size();
  RETURN_IF_ERROR(encoder_->Write(bytes));
  if (split_ != nullptr) split_->Contents(bytes);
  chunk_hasher_.Update(bytes);
  if (file_.size > chunk_size_) file_hasher_.Update(bytes);
  chunk_zeros_ = chunk_zeros_ && AllZeros(bytes);
  file_left_ -= bytes.size();
  chunk_left_ -= bytes.size();
  if (chunk_left_ > 0) return absl::OkStatus();
  EndChunk();
  return file_left_ > 0 ? BeginChunk() : EndFile();
}

void ChunkedLayer::EndChunk() {
  chunks_.back().digest = chunk_hasher_.Finish();
  chunks_.back().zeros = chunk_zeros_;
}

absl::Status ChunkedLayer::EndFile() {
  // eStargz keeps padding and the headers that follow in the last chunk's member; zstd:chunked states where
  // the last frame ends.
  if (split_ != nullptr) {
    if (!chunks_.empty()) RETURN_IF_ERROR(encoder_->EndFrame());
    RETURN_IF_ERROR(split_->EndFile());
  }
  const base::Digest digest = chunks_.size() == 1 ? chunks_.front().digest : file_hasher_.Finish();
  toc_.Add(file_, digest, chunks_, output_->size());
  return absl::OkStatus();
}

absl::StatusOr<ChunkedLayer::Result> ChunkedLayer::Finish() {
  RETURN_IF_ERROR(encoder_->EndFrame());
  return dialect_ == TocText::Dialect::kEstargz ? FinishEstargz() : FinishZstdChunked();
}

absl::StatusOr<ChunkedLayer::Result> ChunkedLayer::FinishEstargz() {
  const std::string toc = toc_.Finish({});
  const uint64_t toc_offset = output_->size();
  TarWriter tar([this](Bytes bytes) {
    tar_hasher_->Update(bytes);
    return encoder_->Write(bytes);
  });
  layer::Entry entry;
  entry.path = kTocName;
  entry.mode = 0444;
  entry.size = toc.size();
  RETURN_IF_ERROR(tar.Begin(entry));
  RETURN_IF_ERROR(tar.Data(AsBytes(toc)));
  RETURN_IF_ERROR(tar.Finish());
  RETURN_IF_ERROR(encoder_->EndFrame());
  RETURN_IF_ERROR(output_->Write(AsBytes(EstargzFooter(toc_offset))));
  Result result;
  result.added_tar_bytes = tar.bytes_written();
  result.annotations[kTocDigest] = base::Digest::Of(toc).ToString();
  return result;
}

absl::Status ChunkedLayer::WriteSkippable(absl::string_view bytes) {
  if (bytes.size() > std::numeric_limits<uint32_t>::max()) {
    return absl::FailedPreconditionError(
        "the table of contents is larger than 4 GiB compressed; use gzip or zstd");
  }
  RETURN_IF_ERROR(output_->Write(
      AsBytes(absl::StrCat(Little(kSkippableMagic), Little(static_cast<uint32_t>(bytes.size()))))));
  return output_->Write(AsBytes(bytes));
}

absl::StatusOr<ChunkedLayer::Result> ChunkedLayer::FinishZstdChunked() {
  ASSIGN_OR_RETURN(const TarSplit::Result split, split_->Finish());
  const std::string toc = toc_.Finish(split.digest);
  std::string compressed;
  BlobOutput compressed_output([&compressed](Bytes bytes) {
    compressed.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return absl::OkStatus();
  });
  ASSIGN_OR_RETURN(const auto toc_encoder, Encoder::Create(Codec::kZstd, 0, &compressed_output));
  RETURN_IF_ERROR(toc_encoder->Write(AsBytes(toc)));
  RETURN_IF_ERROR(toc_encoder->EndFrame());

  const uint64_t toc_offset = output_->size() + kSkippableHeader;
  RETURN_IF_ERROR(WriteSkippable(compressed));
  const uint64_t split_offset = output_->size() + kSkippableHeader;
  RETURN_IF_ERROR(WriteSkippable(split.compressed));
  std::string footer;
  for (const uint64_t number :
       {toc_offset, uint64_t{compressed.size()}, uint64_t{toc.size()}, kManifestTypeCrfs, split_offset,
        uint64_t{split.compressed.size()}, split.size}) {
    footer += Little(number);
  }
  RETURN_IF_ERROR(WriteSkippable(footer + std::string(kChunkedMagic)));
  Result result;
  const std::string prefix = kChunkedPrefix;
  result.annotations[prefix + "manifest-checksum"] = compressed_output.Digest().ToString();
  result.annotations[prefix + "manifest-position"] =
      absl::StrCat(toc_offset, ":", compressed.size(), ":", toc.size(), ":", kManifestTypeCrfs);
  result.annotations[prefix + "tarsplit-position"] =
      absl::StrCat(split_offset, ":", split.compressed.size(), ":", split.size);
  return result;
}

}  // namespace lazyblob::exporter::internal
