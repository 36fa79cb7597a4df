// The JSON of a TOC, and what is built from it. First byte: even eStargz, odd zstd:chunked.

#include <cstdint>
#include <string>

#include "layer/internal/toc.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lazyblob;  // NOLINT: a fuzz target is one function
  if (size == 0) return 0;
  layer::internal::Toc toc;
  toc.json.assign(reinterpret_cast<const char*>(data) + 1, size - 1);
  toc.payload_end = uint64_t{1} << 30;
  oci::Descriptor descriptor;
  descriptor.size = (uint64_t{1} << 30) + 1000;
  layer::BuildLimits limits;
  limits.max_entries = 10'000;
  const layer::Format format = data[0] % 2 == 0 ? layer::Format::kEstargz : layer::Format::kZstdChunked;
  auto built = layer::internal::BuildTocLayer(format, descriptor, toc, limits);
  if (!built.ok()) return 0;
  uint64_t end = 0;
  for (const layer::Chunk& chunk : built->contents.chunks) {
    if (chunk.data_size == 0 || chunk.data_size > layer::kMaxChunkBytes || chunk.data_offset < end ||
        chunk.blob_size == 0 || chunk.blob_offset + chunk.blob_size > toc.payload_end) {
      __builtin_trap();
    }
    end = chunk.data_offset + chunk.data_size;
  }
  if (end > built->contents.info.data_size) __builtin_trap();
  return 0;
}
