#pragma once

// "dir:PATH": the tree of an image as files. Layers are fetched at the same time and unpacked in order; each
// is verified by digest and diffID. Blocks; any number of extractions run side by side. Wants CAP_CHOWN,
// CAP_FOWNER, CAP_MKNOD and CAP_SETFCAP for trees that need them.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/digest.h"
#include "contentstore/content_store.h"
#include "exporter/blob.h"

namespace lazyblob::exporter {

struct ExtractLayer {
  std::shared_ptr<Blob> blob;
  base::Digest diff_id;  // empty: not checked
};

// Of one layer. Both run on their own: a layer may be whole before the ones below it are unpacked.
struct ExtractProgress {
  size_t layer = 0;       // index, bottom first
  uint64_t fetched = 0;   // bytes of the blob
  uint64_t unpacked = 0;  // bytes of the blob
  uint64_t size = 0;      // of the blob
  bool done = false;      // unpacked and verified; the last report of the layer
};

struct ExtractOptions {
  int parallel_fetches = 4;
  contentstore::FetchContext context;
  std::function<void(const ExtractProgress&)>
      progress;  // any thread, one call at a time; quick; may be empty
  // Called when all is unpacked; its error is one of the extraction. May be empty.
  std::function<absl::Status()> prepared;
};

struct ExtractSummary {
  uint64_t entries = 0;
  uint64_t xattrs_skipped = 0;  // attributes that the file system does not take
};

// Bottom first into `directory`, which is absent (its parent is there) or empty. Layers that are not local
// lie, compressed and without a name, on its file system until they are unpacked. Nothing outside is touched,
// whatever the layers say. When it fails the directory is as it was before.
// FailedPrecondition: not empty. DataLoss: a digest, size or diffID is another. InvalidArgument: a layer that
// cannot be unpacked, its entry named. ResourceExhausted: disk full. Cancelled.
absl::StatusOr<ExtractSummary> ExtractLayers(const std::vector<ExtractLayer>& layers,
                                             const std::string& directory, const ExtractOptions& options);

}  // namespace lazyblob::exporter
