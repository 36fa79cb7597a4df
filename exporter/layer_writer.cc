#include "exporter/layer_writer.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "exporter/internal/chunked_layer.h"
#include "exporter/internal/encoder.h"
#include "layer/tar_stream.h"

namespace lazyblob::exporter {
namespace {

using Bytes = absl::Span<const uint8_t>;
using internal::ChunkedLayer;
using internal::Codec;
using internal::Encoder;
using internal::TocText;

constexpr char kUncompressed[] = "containerd.io/uncompressed";
constexpr char kEstargzSize[] = "io.containers.estargz.uncompressed-size";
constexpr uint64_t kMinChunk = 4 << 10;
constexpr uint64_t kMaxChunk = 16 << 20;
constexpr size_t kPieceBytes = 1 << 20;  // between looks at the token

constexpr std::pair<LayerCompression, absl::string_view> kNames[] = {
    {LayerCompression::kNone, "none"},
    {LayerCompression::kGzip, "gzip"},
    {LayerCompression::kZstd, "zstd"},
    {LayerCompression::kEstargz, "estargz"},
    {LayerCompression::kZstdChunked, "zstdchunked"}};

bool IsZstd(LayerCompression compression) {
  return compression == LayerCompression::kZstd || compression == LayerCompression::kZstdChunked;
}

bool IsChunked(LayerCompression compression) {
  return compression == LayerCompression::kEstargz || compression == LayerCompression::kZstdChunked;
}

absl::Status CheckOptions(const LayerOptions& options) {
  const int highest = options.compression == LayerCompression::kNone ? 0
                      : IsZstd(options.compression)                  ? 19
                                                                     : 9;
  if (options.level < 0 || options.level > highest) {
    return absl::InvalidArgumentError(absl::StrCat("compression level ", options.level, " of ",
                                                   LayerCompressionName(options.compression),
                                                   ": levels are 0 (default) to ", highest));
  }
  if (options.chunk_size < kMinChunk || options.chunk_size > kMaxChunk) {
    return absl::InvalidArgumentError(
        absl::StrCat("chunk size ", options.chunk_size, ": it must be 4096 to ", kMaxChunk, " bytes"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LayerCompression> ParseLayerCompression(absl::string_view name) {
  for (const auto& [compression, known] : kNames) {
    if (name == known) return compression;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("compression \"", base::Printable(name.substr(0, 100)),
                   "\" is unknown; it is one of none, gzip, zstd, estargz, zstdchunked"));
}

absl::string_view LayerCompressionName(LayerCompression compression) {
  return kNames[static_cast<size_t>(compression)].second;
}

std::string LayerResult::MediaType(bool docker) const {
  const absl::string_view suffix = compression == LayerCompression::kNone ? ""
                                   : IsZstd(compression)                  ? "zstd"
                                                                          : "gzip";
  return absl::StrCat(
      docker ? "application/vnd.docker.image.rootfs.diff.tar" : "application/vnd.oci.image.layer.v1.tar",
      suffix.empty() ? ""
      : docker       ? "."
                     : "+",
      suffix);
}

oci::Descriptor LayerResult::Descriptor(bool docker) const {
  oci::Descriptor descriptor;
  descriptor.media_type = MediaType(docker);
  descriptor.digest = digest;
  descriptor.size = size;
  descriptor.annotations = annotations;
  return descriptor;
}

class LayerWriter::Impl {
 public:
  Impl(const LayerOptions& options, ByteSink sink) : options_(options), output_(std::move(sink)) {}

  absl::Status Init() {
    if (IsChunked(options_.compression)) {
      const auto dialect = options_.compression == LayerCompression::kEstargz
                               ? TocText::Dialect::kEstargz
                               : TocText::Dialect::kZstdChunked;
      ASSIGN_OR_RETURN(chunked_, ChunkedLayer::Create(dialect, options_.level, options_.chunk_size, &output_,
                                                      &tar_hasher_));
      return absl::OkStatus();
    }
    const Codec codec = options_.compression == LayerCompression::kNone ? Codec::kIdentity
                        : IsZstd(options_.compression)                  ? Codec::kZstd
                                                                        : Codec::kGzip;
    ASSIGN_OR_RETURN(encoder_, Encoder::Create(codec, options_.level, &output_));
    return absl::OkStatus();
  }

  absl::Status Write(Bytes bytes) {
    while (status_.ok() && !bytes.empty()) {
      const Bytes piece = bytes.first(std::min(bytes.size(), kPieceBytes));
      bytes.remove_prefix(piece.size());
      status_ = Take(piece);
    }
    return status_;
  }

  absl::StatusOr<LayerResult> Finish() {
    if (!status_.ok()) return status_;
    status_ = absl::FailedPreconditionError("the layer is finished");
    if (fed_ == 0) return absl::InvalidArgumentError("the tar is empty: not even an end of archive");
    RETURN_IF_ERROR(follower_.Finish());
    LayerResult result;
    if (chunked_ != nullptr) {
      ASSIGN_OR_RETURN(ChunkedLayer::Result end, chunked_->Finish());
      result.annotations = std::move(end.annotations);
      tar_size_ += end.added_tar_bytes;
    } else {
      RETURN_IF_ERROR(encoder_->EndFrame());
    }
    result.diff_id = tar_hasher_.Finish();
    result.tar_size = tar_size_;
    result.digest = output_.Digest();
    result.size = output_.size();
    result.compression = options_.compression;
    result.annotations[kUncompressed] = result.diff_id.ToString();
    if (options_.compression == LayerCompression::kEstargz) {
      result.annotations[kEstargzSize] = absl::StrCat(tar_size_);
    }
    return result;
  }

 private:
  absl::Status Take(Bytes bytes);
  // Bytes that are in the layer for certain.
  absl::Status Pass(Bytes bytes);

  const LayerOptions options_;
  internal::BlobOutput output_;
  base::Hasher tar_hasher_;
  layer::TarFollower follower_;
  std::unique_ptr<Encoder> encoder_;       // of the plain formats
  std::unique_ptr<ChunkedLayer> chunked_;  // of the others
  absl::Status status_;
  uint64_t fed_ = 0;           // bytes of the tar given to us
  uint64_t tar_size_ = 0;      // of those, passed on
  std::vector<uint8_t> held_;  // eStargz: given, but perhaps the end of the archive
};

absl::Status LayerWriter::Impl::Pass(Bytes bytes) {
  tar_size_ += bytes.size();
  tar_hasher_.Update(bytes);
  return chunked_ != nullptr ? chunked_->Take(bytes) : encoder_->Write(bytes);
}

absl::Status LayerWriter::Impl::Take(Bytes bytes) {
  if (options_.cancel != nullptr && options_.cancel->cancelled()) {
    return absl::CancelledError("the export was cancelled");
  }
  fed_ += bytes.size();
  RETURN_IF_ERROR(follower_.Feed(bytes, [this](layer::Entry entry, uint64_t header_end) {
    return chunked_ == nullptr ? absl::OkStatus() : chunked_->Announce(std::move(entry), header_end);
  }));
  if (options_.compression != LayerCompression::kEstargz) return Pass(bytes);
  // The table of contents becomes the last entry: the end of the archive given to us is left out.
  const uint64_t certain = follower_.entries_end() - tar_size_;
  const uint64_t of_held = std::min<uint64_t>(certain, held_.size());
  RETURN_IF_ERROR(Pass(Bytes(held_).first(of_held)));
  held_.erase(held_.begin(), held_.begin() + static_cast<ptrdiff_t>(of_held));
  if (held_.empty()) {
    const Bytes now = bytes.first(std::min<uint64_t>(certain - of_held, bytes.size()));
    RETURN_IF_ERROR(Pass(now));
    bytes.remove_prefix(now.size());
  }
  constexpr size_t kMaxHeld = 1024;  // what may still turn out to be entries; more is behind the end
  bytes = bytes.first(std::min(bytes.size(), kMaxHeld));
  if (held_.size() < kMaxHeld) held_.insert(held_.end(), bytes.begin(), bytes.end());
  return absl::OkStatus();
}

LayerWriter::LayerWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LayerWriter::~LayerWriter() = default;

absl::StatusOr<std::unique_ptr<LayerWriter>> LayerWriter::Create(const LayerOptions& options, ByteSink sink) {
  RETURN_IF_ERROR(CheckOptions(options));
  auto impl = std::make_unique<Impl>(options, std::move(sink));
  RETURN_IF_ERROR(impl->Init());
  return std::unique_ptr<LayerWriter>(new LayerWriter(std::move(impl)));
}

absl::Status LayerWriter::Write(Bytes tar_bytes) { return impl_->Write(tar_bytes); }
absl::StatusOr<LayerResult> LayerWriter::Finish() { return impl_->Finish(); }

absl::StatusOr<LayerResult> WriteLayer(const Source& source, const TreeOptions& tree,
                                       const LayerOptions& options, ByteSink sink) {
  ASSIGN_OR_RETURN(const auto writer, LayerWriter::Create(options, std::move(sink)));
  const auto write = [&writer](Bytes bytes) { return writer->Write(bytes); };
  if (source.kind == SourceKind::kTar) {
    if (!tree.first.empty() || tree.landmark != Landmark::kNone) {
      return absl::InvalidArgumentError(
          absl::StrCat(base::Printable(source.path),
                       ": a tar file keeps its order: no files to come first, and no landmark"));
    }
    RETURN_IF_ERROR(ReadTar(source, options.cancel, write));
  } else {
    TreeOptions walk = tree;
    if (walk.cancel == nullptr) walk.cancel = options.cancel;
    TarWriter tar(write);
    ASSIGN_OR_RETURN(const TreeSummary summary, WalkTree(source, walk, &tar));
    static_cast<void>(summary);
    RETURN_IF_ERROR(tar.Finish());
  }
  return writer->Finish();
}

}  // namespace lazyblob::exporter
