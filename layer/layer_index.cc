#include "layer/layer_index.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "layer/internal/index_tables.h"

namespace lazyblob::layer {

absl::string_view FormatName(Format format) {
  switch (format) {
    case Format::kTar:
      return "tar";
    case Format::kTarGzip:
      return "tar+gzip";
    case Format::kTarZstd:
      return "tar+zstd";
    case Format::kEstargz:
      return "estargz";
    case Format::kZstdChunked:
      return "zstd:chunked";
  }
  return "unknown";
}

class LayerIndex::Tables {
 public:
  Tables(base::MappedFile file, const internal::IndexTables& tables)
      : file_(std::move(file)), tables_(tables) {}
  const internal::IndexTables& get() const { return tables_; }

 private:
  base::MappedFile file_;  // what tables_ looks into
  internal::IndexTables tables_;
};

LayerIndex::~LayerIndex() = default;

absl::StatusOr<std::shared_ptr<const LayerIndex>> LayerIndex::Open(const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", internal::kIndexName);
  ASSIGN_OR_RETURN(base::MappedFile file, base::MappedFile::Open(path));
  absl::StatusOr<internal::IndexTables> tables = internal::IndexTables::Parse(file.bytes());
  if (!tables.ok()) return base::Annotate(tables.status(), path);
  absl::StatusOr<LayerInfo> info = tables->Info();
  if (!info.ok()) return base::Annotate(info.status(), path);

  const std::string meta_path = absl::StrCat(directory, "/", internal::kMetaName);
  absl::StatusOr<internal::FileIdentity> meta = internal::IdentifyFile(meta_path);
  const internal::IndexHeader& header = tables->header();
  if (absl::IsNotFound(meta.status()) ||
      (meta.ok() && (meta->size != header.meta_size ||
                     !std::equal(meta->sha256.begin(), meta->sha256.end(), header.meta_sha256)))) {
    return absl::DataLossError(absl::StrCat(meta_path,
                                            ": metadata image is not the one its index names: both must "
                                            "be built again"));
  }
  if (!meta.ok()) return meta.status();

  std::shared_ptr<LayerIndex> index(new LayerIndex());
  index->directory_ = directory;
  index->info_ = *std::move(info);
  index->tables_ = std::make_unique<Tables>(std::move(file), *tables);
  return index;
}

uint64_t LayerIndex::chunk_count() const { return tables_->get().chunks().size(); }

Chunk LayerIndex::chunk(uint64_t i) const { return tables_->get().ChunkAt(i); }

uint64_t LayerIndex::FindChunk(uint64_t data_offset) const { return tables_->get().FindChunk(data_offset); }

absl::Status LayerIndex::Decode(uint64_t i, absl::Span<const uint8_t> blob_bytes,
                                absl::Span<uint8_t> out) const {
  if (absl::Status status = tables_->get().Decode(i, blob_bytes, out); !status.ok()) {
    return base::Annotate(status, info_.blob_digest.ToString());
  }
  return absl::OkStatus();
}

}  // namespace lazyblob::layer
