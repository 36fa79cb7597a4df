#pragma once

// The seam between the makers of an index (the stream indexer, the TOC readers) and the index file: what an
// index says, and the one function that writes it. docs/LAYER_INDEX.md fixes the bytes. Pure values; no
// threads.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "layer/layer_index.h"
#include "layer/tree.h"

namespace lazyblob::layer::internal {

// A place in a gzip blob from which raw deflate can be decoded: the first bit of a block header.
struct GzipCheckpoint {
  uint64_t bit_offset = 0;   // in the blob; bit 0 of a byte is its least significant one
  uint64_t data_offset = 0;  // of the first byte decoded from here
  uint32_t window_size = 0;  // bytes of history the decoder needs, at most 32 KiB; 0 at the start of a member
  std::string window;  // them, as one zstd frame with checksum (CompressPart); empty when window_size is 0
};

// Bytes of the data area that are zero whatever the blob says (tar padding): zeroed before a chunk's digest
// is made or checked, and before anything is visible.
struct ScrubRange {
  uint64_t offset = 0;
  uint64_t length = 0;
};

struct IndexContents {
  // data_size is a multiple of kDataAlignment; inode_count, has_whiteouts and implied_directories are filled
  // in by WriteLayerFiles from the tree.
  LayerInfo info;
  std::vector<Chunk> chunks;                // ascending by data_offset, not overlapping
  std::vector<GzipCheckpoint> checkpoints;  // kGzipCheckpoint chunks name them by number
  std::vector<std::string> inline_chunks;   // kInline chunks name them by number; each made by CompressPart
  std::vector<ScrubRange> scrub;            // ascending, not overlapping
};

// One zstd frame with content size and checksum: how windows and inline chunks are stored.
std::string CompressPart(absl::Span<const uint8_t> bytes);

// Writes `meta.erofs` (WriteErofs, opaque directories as trusted.overlay.opaque) and then `index` into
// `directory`, which exists: atomically and synced, so that an `index` names a whole `meta.erofs`.
// InvalidArgument when the contents break the format's rules.
absl::Status WriteLayerFiles(const IndexContents& contents, const Tree& tree, const std::string& directory);

}  // namespace lazyblob::layer::internal
