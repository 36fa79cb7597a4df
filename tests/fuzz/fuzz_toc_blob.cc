// The end of a blob: where its table of contents lies, and the table. First byte: bit 0 zstd:chunked, else
// eStargz; bit 1 its place comes from an annotation (24 bytes) instead of a footer; bit 2 the bytes are also
// the external table. Digests are not in the way: the manifest of a hostile image names the one of its table.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "layer/internal/toc.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lazyblob;  // NOLINT: a fuzz target is one function
  if (size == 0) return 0;
  const uint8_t flags = data[0];
  absl::Span<const uint8_t> blob(data + 1, size - 1);
  layer::internal::TocNames names;
  if ((flags & 2) != 0) {
    uint64_t words[3];
    if (blob.size() < sizeof(words)) return 0;
    std::memcpy(words, blob.data(), sizeof(words));
    names.position = {words[0], words[1], words[2]};
    blob.remove_prefix(sizeof(words));
  }
  const auto format = (flags & 1) != 0 ? layer::Format::kZstdChunked : layer::Format::kEstargz;
  oci::Descriptor descriptor;
  descriptor.size = blob.size();
  layer::BuildLimits limits;
  limits.max_entries = 10'000;
  limits.max_toc_bytes = 1 << 20;
  layer::ExternalToc external;
  if ((flags & 4) != 0) external = [blob] { return std::string(blob.begin(), blob.end()); };
  const auto read = [blob](uint64_t offset, absl::Span<uint8_t> out) {
    if (offset > blob.size() || out.size() > blob.size() - offset) __builtin_trap();
    std::copy_n(blob.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return absl::OkStatus();
  };
  const auto toc = layer::internal::ReadToc(format, descriptor, names, read, external, limits);
  if (!toc.ok()) return 0;
  if (toc->payload_end > blob.size() || toc->member_offset > blob.size() ||
      toc->member_size > blob.size() - toc->member_offset ||
      toc->json.size() > limits.max_toc_bytes + (64 << 10)) {
    __builtin_trap();
  }
  const auto built = layer::internal::BuildTocLayer(format, descriptor, *toc, limits);
  if (!built.ok()) return 0;
  for (const layer::Chunk& chunk : built->contents.chunks) {
    if (chunk.blob_offset > toc->payload_end || chunk.blob_size > toc->payload_end - chunk.blob_offset) {
      if (chunk.codec != layer::Codec::kInline && chunk.blob_offset != toc->member_offset) __builtin_trap();
    }
  }
  return 0;
}
