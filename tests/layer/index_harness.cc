#include "tests/layer/index_harness.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "layer/erofs.h"

namespace lazyblob::layer {
namespace {

absl::StatusOr<Format> PlainFormat(const oci::Descriptor& descriptor) {
  switch (oci::LayerCompression(descriptor.media_type).value_or(oci::Compression::kNone)) {
    case oci::Compression::kGzip:
      return Format::kTarGzip;
    case oci::Compression::kZstd:
      return Format::kTarZstd;
    default:
      return Format::kTar;
  }
}

}  // namespace

IndexRun RunIndexer(const support::Layer& layer, uint64_t step, const BuildLimits& limits,
                    absl::string_view blob) {
  IndexRun run;
  if (blob.empty()) blob = layer.blob;
  const auto sink = [&](uint64_t offset, absl::Span<const uint8_t> bytes) {
    if (run.data.size() < offset + bytes.size()) run.data.resize(offset + bytes.size());
    std::copy(bytes.begin(), bytes.end(), run.data.begin() + static_cast<ptrdiff_t>(offset));
    return absl::OkStatus();
  };
  auto indexer =
      StreamIndexer::Create(*PlainFormat(layer.descriptor), layer.descriptor, layer.diff_id, limits);
  run.status = indexer.status();
  for (size_t at = 0; run.status.ok() && at < blob.size(); at += step) {
    const std::string piece(blob.substr(at, step));  // alone in memory, so that reading beyond it shows
    run.status = (*indexer)->Feed(BytesOf(piece), sink);
  }
  if (!run.status.ok()) return run;
  run.directory = std::make_unique<support::TempDir>();
  run.status = (*indexer)->Finish(run.directory->path(), sink);
  if (!run.status.ok()) return run;
  auto index = LayerIndex::Open(run.directory->path());
  run.status = index.status();
  if (!index.ok()) return run;
  run.index = *index;
  EXPECT_LE(run.data.size(), run.index->info().data_size);
  run.data.resize(run.index->info().data_size);
  return run;
}

void ExpectRandomAccess(const IndexRun& run, absl::string_view blob) {
  ASSERT_TRUE(run.status.ok()) << run.status;
  uint64_t end = 0;
  const uint64_t count = run.index->chunk_count();
  for (uint64_t i = count; i-- > 0;) {  // backwards: nothing may depend on what was decoded before
    const Chunk chunk = run.index->chunk(i);
    std::string out(chunk.data_size, 'x');
    const absl::Status status = run.index->Decode(i, BytesOf(blob.substr(chunk.blob_offset, chunk.blob_size)),
                                                  {reinterpret_cast<uint8_t*>(out.data()), out.size()});
    ASSERT_TRUE(status.ok()) << "chunk " << i << ": " << status;
    ASSERT_TRUE(out == run.data.substr(chunk.data_offset, chunk.data_size)) << "chunk " << i;
    EXPECT_EQ(run.index->FindChunk(chunk.data_offset), i);
    EXPECT_EQ(run.index->FindChunk(chunk.data_offset + chunk.data_size - 1), i);
  }
  for (uint64_t i = 0; i < count; ++i) {
    const Chunk chunk = run.index->chunk(i);
    ASSERT_GE(chunk.data_offset, end);
    EXPECT_EQ(run.data.substr(end, chunk.data_offset - end).find_first_not_of('\0'), std::string::npos);
    end = chunk.data_offset + chunk.data_size;
  }
  EXPECT_EQ(run.data.substr(end).find_first_not_of('\0'), std::string::npos);
  EXPECT_EQ(run.index->FindChunk(end), count);
}

std::string FileContents(const IndexRun& run, absl::string_view path) {
  auto image = ErofsImage::Open(run.directory->File("meta.erofs"));
  if (!image.ok()) return image.status().ToString();
  uint64_t nid = (*image)->root();
  for (const absl::string_view name : absl::StrSplit(path, '/')) {
    auto found = (*image)->Lookup(nid, name);
    if (!found.ok()) return found.status().ToString();
    nid = *found;
  }
  auto stat = (*image)->GetInode(nid);
  if (!stat.ok()) return stat.status().ToString();
  auto extents = (*image)->MapFile(nid, 0, stat->size);
  if (!extents.ok()) return extents.status().ToString();
  std::string out(stat->size, '\0');
  for (const Extent& extent : *extents) {
    out.replace(extent.file_offset, extent.length, run.data.substr(extent.data_offset, extent.length));
  }
  return out;
}

}  // namespace lazyblob::layer
