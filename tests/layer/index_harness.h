#pragma once

// Runs a layer through StreamIndexer into a directory of its own, keeps the data area it gave out, and
// compares it with what the index gives by random access.

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "layer/index_builder.h"
#include "layer/layer_index.h"
#include "tests/support/layer_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::layer {

inline absl::Span<const uint8_t> BytesOf(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

struct IndexRun {
  absl::Status status;  // of the first call that failed
  std::string data;     // what came out, by data offset
  std::unique_ptr<support::TempDir> directory;
  std::shared_ptr<const LayerIndex> index;  // null when status is an error
};

// Feeds pieces of `step` bytes. `blob` in place of the layer's own when not empty.
IndexRun RunIndexer(const support::Layer& layer, uint64_t step = 64 << 10, const BuildLimits& limits = {},
                    absl::string_view blob = "");

// Expects: chunks in order, every chunk decodes (from exactly its blob range) to the bytes of `run.data`,
// FindChunk finds them, and what no chunk covers is zero.
void ExpectRandomAccess(const IndexRun& run, absl::string_view blob);

// The contents of a regular file of the layer, holes included; the error of looking it up as text.
std::string FileContents(const IndexRun& run, absl::string_view path);

}  // namespace lazyblob::layer
