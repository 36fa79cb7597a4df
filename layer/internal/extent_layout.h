#pragma once

// Which files EROFS can map onto the data area as they are, and which must be materialised (written out
// again, with their runs moved to multiples of 4 KiB). Pure functions.

#include <cstdint>
#include <optional>
#include <vector>

#include "layer/entry.h"

namespace lazyblob::layer::internal {

inline constexpr uint64_t kErofsBlockBytes = 512;
inline constexpr int kMinSparseChunkBits = 12;         // chunks of sparse files are 4 KiB or larger …
inline constexpr int kMaxChunkBits = 40;               // … EROFS: 512 << 31
inline constexpr uint64_t kMaxChunkIndexes = 1 << 20;  // … and a file has at most so many of them

// log2 of the largest chunk size with which the file can be mapped: every extent starts (in the file) at a
// multiple of it and ends at one or at the end of the file, and starts (in the data area) at a multiple of
// 512. nullopt: there is none within the three limits above. A file of one run that starts at 0 and fills it
// always has one; so has a file without extents. Extents are ascending, do not overlap and lie inside `size`.
std::optional<int> ChunkBits(uint64_t size, const std::vector<Extent>& extents);

// Chunk size (log2) for a file that is materialised: the smallest of at least 4 KiB with few enough chunks.
int MaterialisedChunkBits(uint64_t size);

}  // namespace lazyblob::layer::internal
