#include "tests/exporter/layer_reading.h"

#include <sys/stat.h>

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "layer/erofs.h"
#include "layer/index_builder.h"
#include "layer/layer_index.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::exporter {
namespace {

using Bytes = absl::Span<const uint8_t>;

absl::StatusOr<std::string> Contents(const layer::LayerIndex& index, Bytes blob, const layer::Inode& inode) {
  std::string contents(inode.size, '\0');
  for (const layer::Extent& extent : inode.extents) {
    const uint64_t extent_end = extent.data_offset + extent.length;
    for (uint64_t i = index.FindChunk(extent.data_offset); i < index.chunk_count(); ++i) {
      const layer::Chunk chunk = index.chunk(i);
      if (chunk.data_offset >= extent_end) break;
      std::string bytes(chunk.data_size, '\0');
      RETURN_IF_ERROR(index.Decode(i, blob.subspan(chunk.blob_offset, chunk.blob_size),
                                   {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}));
      const uint64_t from = std::max(chunk.data_offset, extent.data_offset);
      const uint64_t to = std::min(chunk.data_offset + chunk.data_size, extent_end);
      contents.replace(extent.file_offset + (from - extent.data_offset), to - from, bytes,
                       from - chunk.data_offset, to - from);
    }
  }
  return contents;
}

bool IsAdded(const std::string& path) {
  return path == "stargz.index.json" || path == ".prefetch.landmark" || path == ".no.prefetch.landmark";
}

absl::StatusOr<ReadLayer> ReadIndexed(const std::string& directory, Bytes blob) {
  ASSIGN_OR_RETURN(const auto index, layer::LayerIndex::Open(directory));
  ASSIGN_OR_RETURN(const auto image, layer::ErofsImage::Open(directory + "/meta.erofs"));
  ASSIGN_OR_RETURN(const layer::Tree tree, image->ToTree());
  ReadLayer read;
  layer::TreeTextOptions options;
  options.extents = false;
  read.tree = layer::DescribeTree(tree, options);
  std::vector<std::pair<std::string, uint32_t>> stack = {{"", 0}};
  while (!stack.empty()) {
    const auto [path, number] = stack.back();
    stack.pop_back();
    const layer::Inode& inode = tree.inodes[number];
    if (S_ISREG(inode.mode) && inode.size > 0 && !IsAdded(path)) {
      auto contents = Contents(*index, blob, inode);
      if (!contents.ok()) return base::Annotate(contents.status(), path);
      read.contents[path] = base::Digest::Of(*contents).ToString();
    }
    for (const auto& [name, child] : inode.children) {
      stack.emplace_back(path.empty() ? name : absl::StrCat(path, "/", name), child);
    }
  }
  for (auto it = read.tree.begin(); it != read.tree.end();) {
    it = IsAdded(it->first) ? read.tree.erase(it) : std::next(it);
  }
  return read;
}

}  // namespace

absl::StatusOr<MadeLayer> MakeLayerOf(const Source& source, const LayerOptions& options,
                                      const TreeOptions& tree) {
  MadeLayer made;
  ASSIGN_OR_RETURN(made.result, WriteLayer(source, tree, options, [&made](Bytes bytes) {
                     made.blob.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
                     return absl::OkStatus();
                   }));
  return made;
}

absl::StatusOr<ReadLayer> ReadBack(absl::string_view blob, const oci::Descriptor& layer,
                                   const base::Digest& diff_id) {
  ASSIGN_OR_RETURN(const layer::Format format, layer::FormatOf(layer));
  ASSIGN_OR_RETURN(const layer::Format plain, layer::PlainFormatOf(layer));
  if (format == plain) return ReadStreamed(blob, layer, diff_id);
  const support::TempDir directory;
  RETURN_IF_ERROR(layer::IndexFromToc(
      format, layer,
      [&](uint64_t offset, absl::Span<uint8_t> out) {
        if (offset > blob.size() || out.size() > blob.size() - offset) {
          return absl::OutOfRangeError("read outside the blob");
        }
        std::copy_n(blob.data() + offset, out.size(), out.begin());
        return absl::OkStatus();
      },
      {}, directory.path()));
  return ReadIndexed(directory.path(), AsBytes(blob));
}

absl::StatusOr<ReadLayer> ReadStreamed(absl::string_view blob, const oci::Descriptor& layer,
                                       const base::Digest& diff_id) {
  ASSIGN_OR_RETURN(const layer::Format plain, layer::PlainFormatOf(layer));
  const support::TempDir directory;
  const auto none = [](uint64_t, Bytes) { return absl::OkStatus(); };
  ASSIGN_OR_RETURN(const auto indexer, layer::StreamIndexer::Create(plain, layer, diff_id, {}));
  RETURN_IF_ERROR(indexer->Feed(AsBytes(blob), none));
  RETURN_IF_ERROR(indexer->Finish(directory.path(), none));
  return ReadIndexed(directory.path(), AsBytes(blob));
}

ReadLayer ReadDirectory(const std::string& directory) {
  ReadLayer read;
  read.tree = layer::DescribeDirectory(directory);
  for (const auto& [path, line] : read.tree) {
    struct stat st{};
    const std::string full = absl::StrCat(directory, "/", path);
    if (::lstat(full.c_str(), &st) != 0 || !S_ISREG(st.st_mode) || st.st_size == 0) continue;
    const auto file = base::MappedFile::Open(full);
    read.contents[path] = file.ok() ? base::Digest::Of(file->bytes()).ToString() : file.status().ToString();
  }
  return read;
}

std::string DifferenceOf(const ReadLayer& expected, const ReadLayer& actual) {
  std::string difference = layer::Difference(expected.tree, actual.tree);
  if (expected.contents != actual.contents) {
    for (const auto& [path, digest] : expected.contents) {
      const auto found = actual.contents.find(path);
      if (found == actual.contents.end() || found->second != digest) {
        absl::StrAppend(&difference, "contents of ", path, "\n");
      }
    }
    for (const auto& [path, digest] : actual.contents) {
      if (!expected.contents.contains(path)) absl::StrAppend(&difference, "surplus contents of ", path, "\n");
    }
  }
  return difference;
}

}  // namespace lazyblob::exporter
