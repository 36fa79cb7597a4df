// layers_agree BLOB MEDIA_TYPE [ANNOTATION=VALUE...]
//
// Judges a layer that other programs made: the index from its TOC and the one from streaming it as a plain
// tar must show the same tree with the same contents, every chunk decoded from exactly its blob range. Whole
// seconds are compared where the TOC keeps no fractions. Exit 0: they agree.

#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "layer/erofs.h"
#include "layer/index_builder.h"
#include "layer/layer_index.h"
#include "tests/layer/tree_text.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::layer {
namespace {

using Bytes = absl::Span<const uint8_t>;

absl::StatusOr<std::string> ReadFileOf(const LayerIndex& index, Bytes blob, const Inode& inode) {
  std::string contents(inode.size, '\0');
  for (const Extent& extent : inode.extents) {
    for (uint64_t i = index.FindChunk(extent.data_offset); i < index.chunk_count(); ++i) {
      const Chunk chunk = index.chunk(i);
      if (chunk.data_offset >= extent.data_offset + extent.length) break;
      std::string bytes(chunk.data_size, '\0');
      RETURN_IF_ERROR(index.Decode(i, blob.subspan(chunk.blob_offset, chunk.blob_size),
                                   {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}));
      const uint64_t from = std::max(chunk.data_offset, extent.data_offset);
      const uint64_t to = std::min(chunk.data_offset + chunk.data_size, extent.data_offset + extent.length);
      contents.replace(extent.file_offset + (from - extent.data_offset), to - from, bytes,
                       from - chunk.data_offset, to - from);
    }
  }
  return contents;
}

struct Side {
  std::shared_ptr<const LayerIndex> index;
  Tree tree;
};

absl::StatusOr<Side> OpenSide(const std::string& directory) {
  Side side;
  ASSIGN_OR_RETURN(side.index, LayerIndex::Open(directory));
  ASSIGN_OR_RETURN(const auto image, ErofsImage::Open(directory + "/meta.erofs"));
  ASSIGN_OR_RETURN(side.tree, image->ToTree());
  return side;
}

// Contents of all files by path, as digests.
absl::Status Digests(const Side& side, Bytes blob, std::map<std::string, std::string>* digests) {
  std::vector<std::pair<std::string, uint32_t>> stack = {{"", 0}};
  while (!stack.empty()) {
    const auto [path, number] = stack.back();
    stack.pop_back();
    const Inode& inode = side.tree.inodes[number];
    if (inode.size > 0 && inode.symlink.empty()) {
      auto contents = ReadFileOf(*side.index, blob, inode);
      if (!contents.ok()) return base::Annotate(contents.status(), path);
      (*digests)[path] = base::Digest::Of(*contents).ToString();
    }
    for (const auto& [name, child] : inode.children) stack.emplace_back(absl::StrCat(path, "/", name), child);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Compare(const oci::Descriptor& layer, Bytes blob) {
  ASSIGN_OR_RETURN(const Format format, FormatOf(layer));
  ASSIGN_OR_RETURN(const Format plain, PlainFormatOf(layer));
  support::TempDir lazy_directory;
  support::TempDir plain_directory;
  uint64_t read = 0;
  uint64_t reads = 0;
  RETURN_IF_ERROR(IndexFromToc(
      format, layer,
      [&](uint64_t offset, absl::Span<uint8_t> out) {
        if (offset > blob.size() || out.size() > blob.size() - offset)
          return absl::OutOfRangeError("read outside");
        std::copy_n(blob.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
        read += out.size();
        ++reads;
        return absl::OkStatus();
      },
      {}, lazy_directory.path()));
  auto none = [](uint64_t, Bytes) { return absl::OkStatus(); };
  BuildLimits limits;
  limits.max_zstd_window = 128 << 20;
  ASSIGN_OR_RETURN(auto indexer, StreamIndexer::Create(plain, layer, {}, limits));
  RETURN_IF_ERROR(indexer->Feed(blob, none));
  RETURN_IF_ERROR(indexer->Finish(plain_directory.path(), none));
  ASSIGN_OR_RETURN(Side lazy, OpenSide(lazy_directory.path()));
  ASSIGN_OR_RETURN(Side streamed, OpenSide(plain_directory.path()));
  const bool whole_seconds = std::all_of(lazy.tree.inodes.begin(), lazy.tree.inodes.end(),
                                         [](const Inode& inode) { return inode.mtime_nanoseconds == 0; });
  if (whole_seconds) {
    for (Side* side : {&lazy, &streamed}) {
      for (Inode& inode : side->tree.inodes) {
        // stargz-snapshotter rounds to the nearest second.
        if (inode.mtime_nanoseconds >= 500'000'000) ++inode.mtime_seconds;
        inode.mtime_nanoseconds = 0;
      }
    }
  }
  TreeTextOptions options;
  options.extents = false;
  std::string difference = Difference(DescribeTree(streamed.tree, options), DescribeTree(lazy.tree, options));
  std::map<std::string, std::string> expected;
  std::map<std::string, std::string> actual;
  RETURN_IF_ERROR(base::Annotate(Digests(streamed, blob, &expected), "streamed"));
  RETURN_IF_ERROR(base::Annotate(Digests(lazy, blob, &actual), "from the TOC"));
  for (const auto& [path, digest] : expected) {
    if (actual[path] != digest) absl::StrAppend(&difference, "contents of ", path, "\n");
  }
  std::cout << FormatName(format) << ": " << lazy.tree.inodes.size() << " inodes, "
            << lazy.index->chunk_count() << " chunks, " << expected.size() << " files compared; TOC took "
            << reads << " reads of " << read << " bytes\n";
  return difference;
}

int Main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: layers_agree BLOB MEDIA_TYPE [ANNOTATION=VALUE...]\n";
    return 2;
  }
  auto file = base::MappedFile::Open(argv[1]);
  if (!file.ok()) {
    std::cerr << file.status() << "\n";
    return 1;
  }
  oci::Descriptor layer;
  layer.media_type = argv[2];
  layer.digest = base::Digest::Of(file->bytes());
  layer.size = file->bytes().size();
  for (int i = 3; i < argc; ++i) {
    const std::string text = argv[i];
    const size_t equals = text.find('=');
    layer.annotations[text.substr(0, equals)] = text.substr(equals + 1);
  }
  auto difference = Compare(layer, file->bytes());
  if (!difference.ok()) {
    std::cerr << difference.status() << "\n";
    return 1;
  }
  std::cerr << *difference;
  return difference->empty() ? 0 : 1;
}

}  // namespace
}  // namespace lazyblob::layer

int main(int argc, char** argv) { return lazyblob::layer::Main(argc, argv); }
