#pragma once

// Records and layers of a cache as graphs: links lead to what a record's inputs may be, parents to the layers
// below. Pure.

#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/digest.h"
#include "exporter/build_cache.h"

namespace lazyblob::exporter::internal {

// InvalidArgument: an index that is out of range, a loop, an input without links.
absl::Status CheckGraph(const Cache& cache);

// The blobs of a layer and all below, bottom first. Of a checked graph.
std::vector<base::Digest> ChainOf(const Cache& cache, int layer);

// The records, each behind those it links to. InvalidArgument: a loop.
absl::StatusOr<std::vector<size_t>> InOrder(const Cache& cache);

}  // namespace lazyblob::exporter::internal
