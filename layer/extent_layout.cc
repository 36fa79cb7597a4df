#include "layer/internal/extent_layout.h"

#include <algorithm>
#include <bit>

namespace lazyblob::layer::internal {
namespace {

uint64_t ChunksOf(uint64_t size, int bits) { return size == 0 ? 0 : ((size - 1) >> bits) + 1; }

}  // namespace

std::optional<int> ChunkBits(uint64_t size, const std::vector<Extent>& extents) {
  uint64_t edges = 0;  // a bit below the alignment is set as soon as one edge has it
  for (const Extent& extent : extents) {
    if (extent.data_offset % kErofsBlockBytes != 0) return std::nullopt;
    edges |= extent.file_offset;
    if (const uint64_t end = extent.file_offset + extent.length; end != size) edges |= end;
  }
  const int bits = std::min(edges == 0 ? kMaxChunkBits : std::countr_zero(edges), kMaxChunkBits);
  if (bits < kMinSparseChunkBits || ChunksOf(size, bits) > kMaxChunkIndexes) return std::nullopt;
  return bits;
}

int MaterialisedChunkBits(uint64_t size) {
  int bits = kMinSparseChunkBits;
  while (bits < 63 && ChunksOf(size, bits) > kMaxChunkIndexes) ++bits;
  return bits;
}

}  // namespace lazyblob::layer::internal
