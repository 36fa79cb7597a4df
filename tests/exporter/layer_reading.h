#pragma once

// Reading layers back by the index of layer/: what a lazily mounted layer would show.

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/digest.h"
#include "exporter/layer_writer.h"
#include "oci/descriptor.h"
#include "tests/layer/tree_text.h"

namespace lazyblob::exporter {

inline absl::Span<const uint8_t> AsBytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

struct MadeLayer {
  std::string blob;
  LayerResult result;
};
absl::StatusOr<MadeLayer> MakeLayerOf(const Source& source, const LayerOptions& options,
                                      const TreeOptions& tree = {});

struct ReadLayer {
  layer::TreeText tree;                         // without extents, and without the files that eStargz adds
  std::map<std::string, std::string> contents;  // of regular files with any, by path: digests
};
// By table of contents where the descriptor names one (each chunk decoded from exactly its blob range), else
// streamed with blob digest and diffID checked.
absl::StatusOr<ReadLayer> ReadBack(absl::string_view blob, const oci::Descriptor& layer,
                                   const base::Digest& diff_id);
// The same by streaming, whatever the annotations say.
absl::StatusOr<ReadLayer> ReadStreamed(absl::string_view blob, const oci::Descriptor& layer,
                                       const base::Digest& diff_id);
// What is in the file system at `directory`.
ReadLayer ReadDirectory(const std::string& directory);

// "" when equal.
std::string DifferenceOf(const ReadLayer& expected, const ReadLayer& actual);

}  // namespace lazyblob::exporter
