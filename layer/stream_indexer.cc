#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/checked.h"
#include "base/status.h"
#include "layer/index_builder.h"
#include "layer/internal/data_area.h"
#include "layer/internal/extent_layout.h"
#include "layer/internal/gzip_codec.h"
#include "layer/internal/index_writer.h"
#include "layer/internal/tar_reader.h"
#include "layer/internal/zstd_codec.h"
#include "layer/tree.h"

namespace lazyblob::layer {
namespace {

using Bytes = absl::Span<const uint8_t>;
using internal::ScrubRange;

constexpr uint64_t kFreeOfRatio = 64 << 20;      // data bytes that the ratio limit does not count
constexpr uint64_t kMaxTextBytes = 1 << 30;      // of names, link targets and xattrs in a layer
constexpr uint64_t kMaxSparseExtents = 8 << 20;  // in a layer

Codec CodecOf(Format format) {
  switch (format) {
    case Format::kTarGzip:
      return Codec::kGzipCheckpoint;
    case Format::kTarZstd:
      return Codec::kZstdFrame;
    default:
      return Codec::kIdentity;
  }
}

class Indexer final : public StreamIndexer {
 public:
  Indexer(Format format, const oci::Descriptor& layer, const base::Digest& diff_id, const BuildLimits& limits)
      : format_(format),
        layer_(layer),
        diff_id_(diff_id),
        limits_(limits),
        blob_hasher_(layer.digest.algorithm()),
        diff_is_blob_(format == Format::kTar && diff_id.algorithm() == layer.digest.algorithm()),
        diff_hasher_(diff_id.algorithm()),
        chunker_(CodecOf(format),
                 format == Format::kTar
                     ? std::clamp<uint64_t>(limits.checkpoint_spacing, kDataAlignment, kMaxChunkBytes)
                     : kMaxChunkBytes) {
    tree_.set_max_entries(limits.max_entries);
    if (format == Format::kTarGzip) gzip_.emplace(limits.checkpoint_spacing);
    if (format == Format::kTarZstd) zstd_.emplace(limits.max_zstd_window);
  }

  absl::Status Feed(Bytes blob_bytes, DataSink data) override {
    if (!status_.ok()) return status_;
    status_ = FeedStep(blob_bytes, data);
    if (!status_.ok()) status_ = base::Annotate(status_, layer_.digest.ToString());
    return status_;
  }

  absl::Status Finish(const std::string& directory, DataSink data) override {
    if (!status_.ok()) return status_;
    absl::Status status = FinishStep(directory, data);
    status_ = absl::FailedPreconditionError("the stream is finished");
    return status.ok() ? status : base::Annotate(status, layer_.digest.ToString());
  }

 private:
  absl::Status FeedStep(Bytes bytes, DataSink data);
  absl::Status FinishStep(const std::string& directory, DataSink data);
  absl::Status CheckDigests();
  // Takes decoded bytes of the tar stream.
  absl::Status TakeData(Bytes bytes, DataSink data);
  absl::Status TakeEntry(Entry entry);
  // `bytes`, which start at data_offset, with the ranges zeroed; they are remembered for the index.
  Bytes Scrubbed(Bytes bytes, uint64_t data_offset, const std::vector<ScrubRange>& ranges);

  const Format format_;
  const oci::Descriptor layer_;
  const base::Digest diff_id_;
  const BuildLimits limits_;

  absl::Status status_;  // sticky
  uint64_t blob_bytes_ = 0;
  base::Hasher blob_hasher_;
  const bool diff_is_blob_;  // a plain tar's diffID is its digest: hashed once
  base::Hasher diff_hasher_;
  std::optional<internal::GzipDecoder> gzip_;
  std::optional<internal::ZstdDecoder> zstd_;
  internal::TarReader tar_;
  TreeBuilder tree_;
  internal::Chunker chunker_;
  internal::InlineStore inline_;
  std::vector<ScrubRange> scrub_;
  std::vector<uint8_t> scrub_buffer_;
  uint64_t text_bytes_ = 0;
  uint64_t sparse_extents_ = 0;
};

absl::Status Indexer::FeedStep(Bytes bytes, DataSink data) {
  if (bytes.size() > layer_.size - std::min(layer_.size, blob_bytes_)) {
    return absl::DataLossError(absl::StrCat("more bytes came than the ", layer_.size, " of the descriptor"));
  }
  blob_bytes_ += bytes.size();
  blob_hasher_.Update(bytes);
  const auto take = [&](Bytes decoded) { return TakeData(decoded, data); };
  switch (format_) {
    case Format::kTarGzip:
      return gzip_->Feed(bytes, take, [&](uint64_t number, const internal::GzipCheckpoint& checkpoint) {
        // The block before may end in the byte in which this one starts.
        chunker_.StartGroup((checkpoint.bit_offset + 7) / 8, checkpoint.bit_offset / 8, number);
      });
    case Format::kTarZstd:
      return zstd_->Feed(bytes, take, [&](uint64_t blob_offset) {
        if (chunker_.group_size() >= limits_.checkpoint_spacing)
          chunker_.StartGroup(blob_offset, blob_offset, 0);
      });
    default:
      return take(bytes);
  }
}

absl::Status Indexer::TakeData(Bytes bytes, DataSink data) {
  const uint64_t data_offset = chunker_.data_size();
  const uint64_t after = data_offset + bytes.size();
  if (after > std::min(limits_.max_data_bytes, kMaxDataBytes)) {
    return absl::InvalidArgumentError(absl::StrCat("the layer unpacks to more than the limit of ",
                                                   std::min(limits_.max_data_bytes, kMaxDataBytes),
                                                   " bytes"));
  }
  uint64_t allowed;
  if (after > kFreeOfRatio && base::CheckedMul(blob_bytes_, limits_.max_ratio, &allowed) &&
      after - kFreeOfRatio > allowed) {
    return absl::InvalidArgumentError(absl::StrCat("decompression bomb: ", blob_bytes_,
                                                   " bytes unpack to more than ", after, ", over ",
                                                   limits_.max_ratio, " times as many"));
  }
  if (!diff_is_blob_) diff_hasher_.Update(bytes);
  std::vector<ScrubRange> scrub;
  RETURN_IF_ERROR(tar_.Feed(
      bytes, [&](Entry entry) { return TakeEntry(std::move(entry)); },
      [&](const ScrubRange& range) { scrub.push_back(range); }));
  inline_.Append(data_offset, bytes);
  if (!scrub.empty()) bytes = Scrubbed(bytes, data_offset, scrub);
  chunker_.Append(bytes);
  return data(data_offset, bytes);
}

Bytes Indexer::Scrubbed(Bytes bytes, uint64_t data_offset, const std::vector<ScrubRange>& ranges) {
  scrub_buffer_.assign(bytes.begin(), bytes.end());
  for (const ScrubRange& range : ranges) {
    std::memset(scrub_buffer_.data() + (range.offset - data_offset), 0, range.length);
    if (!scrub_.empty() && scrub_.back().offset + scrub_.back().length == range.offset) {
      scrub_.back().length += range.length;
    } else {
      scrub_.push_back(range);
    }
  }
  return scrub_buffer_;
}

absl::Status Indexer::TakeEntry(Entry entry) {
  text_bytes_ += entry.path.size() + entry.link_target.size();
  for (const auto& [name, value] : entry.xattrs) text_bytes_ += name.size() + value.size();
  if (text_bytes_ > kMaxTextBytes) {
    return absl::InvalidArgumentError(absl::StrCat("names, links and xattrs take more than ",
                                                   kMaxTextBytes >> 20, " MiB, at entry \"",
                                                   base::Printable(entry.path), "\""));
  }
  if (entry.type == EntryType::kRegular && !internal::ChunkBits(entry.size, entry.extents).has_value()) {
    RETURN_IF_ERROR(inline_.Materialise(&entry));
  }
  sparse_extents_ += entry.extents.size() > 1 ? entry.extents.size() : 0;
  if (sparse_extents_ > kMaxSparseExtents) {
    return absl::InvalidArgumentError(absl::StrCat("sparse files have more than ", kMaxSparseExtents,
                                                   " runs, at entry \"", base::Printable(entry.path), "\""));
  }
  return tree_.Add(std::move(entry));
}

absl::Status Indexer::CheckDigests() {
  if (blob_bytes_ != layer_.size) {
    return absl::DataLossError(
        absl::StrCat("the layer has ", blob_bytes_, " bytes, its descriptor says ", layer_.size));
  }
  const base::Digest blob = blob_hasher_.Finish();
  if (blob != layer_.digest) {
    return absl::DataLossError(absl::StrCat("the layer's bytes have the digest ", blob.ToString()));
  }
  const base::Digest diff = diff_is_blob_ ? blob : diff_hasher_.Finish();
  if (!diff_id_.empty() && diff != diff_id_) {
    return absl::DataLossError(absl::StrCat("the unpacked layer has the diffID ", diff.ToString(),
                                            ", the image config says ", diff_id_.ToString()));
  }
  return absl::OkStatus();
}

absl::Status Indexer::FinishStep(const std::string& directory, DataSink data) {
  // Digests first: of a damaged stream, that it is damaged is the better message.
  RETURN_IF_ERROR(CheckDigests());
  if (gzip_) RETURN_IF_ERROR(gzip_->Finish());
  if (zstd_) RETURN_IF_ERROR(zstd_->Finish());
  RETURN_IF_ERROR(tar_.Finish());
  chunker_.Finish(blob_bytes_);
  ASSIGN_OR_RETURN(Tree tree, tree_.Finish());

  internal::IndexContents contents;
  contents.chunks = std::move(chunker_.chunks());
  contents.scrub = std::move(scrub_);
  if (gzip_) contents.checkpoints = gzip_->TakeCheckpoints();
  uint64_t inline_at, data_size;
  if (!base::CheckedAlignUp(chunker_.data_size(), kDataAlignment, &inline_at) ||
      !base::CheckedAlignUp(inline_at + inline_.size(), kDataAlignment, &data_size) ||
      data_size > kMaxDataBytes) {
    return absl::InvalidArgumentError("the data area is larger than 2 TiB");
  }
  RETURN_IF_ERROR(inline_.Finish(inline_at, &contents, data));
  internal::InlineStore::Relocate(inline_at, &tree);

  LayerInfo& info = contents.info;
  info.format = format_;
  info.blob_digest = layer_.digest;
  info.blob_size = layer_.size;
  info.diff_id = diff_id_;
  info.data_size = std::max(data_size, kDataAlignment);  // an empty layer has a page of zeros
  info.random_access = chunker_.random_access();
  return internal::WriteLayerFiles(contents, tree, directory);
}

}  // namespace

absl::StatusOr<std::unique_ptr<StreamIndexer>> StreamIndexer::Create(Format format,
                                                                     const oci::Descriptor& layer,
                                                                     const base::Digest& diff_id,
                                                                     const BuildLimits& limits) {
  if (format != Format::kTar && format != Format::kTarGzip && format != Format::kTarZstd) {
    return absl::InvalidArgumentError(absl::StrCat(FormatName(format), " is not a plain format"));
  }
  if (limits.max_zstd_window > internal::kMaxZstdWindow) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_zstd_window may be ", internal::kMaxZstdWindow >> 20, " MiB at most"));
  }
  return std::make_unique<Indexer>(format, layer, diff_id, limits);
}

}  // namespace lazyblob::layer
