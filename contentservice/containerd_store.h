#pragma once

// Moving between containerd's own content store (the directory io.containerd.content.v1.content, its blobs in
// blobs/<algorithm>/<hex>) and ours. Neither side may be in use by containerd meanwhile.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/digest.h"
#include "contentservice/content.h"

namespace lazyblob::contentservice {

struct ImportResult {
  uint64_t blobs = 0;                // that were not there before
  uint64_t present = 0;              // that were
  std::vector<std::string> skipped;  // paths that are no blobs
};

// All blobs of `directory` become held blobs (Content::Adopt). containerd's metadata database, with labels,
// is the same before and after; ingests begin anew.
absl::StatusOr<ImportResult> Import(Content& content, const std::string& directory);

struct ExportResult {
  uint64_t blobs = 0;              // written
  uint64_t present = 0;            // that were there, with the right size
  std::vector<base::Digest> lazy;  // of those written, the ones that came from their sources
};

// All blobs, and the lazy ones that containerd may hold, become files of `directory`, which is created. With
// `unlazy` lazy ones are read from their sources; without, FailedPrecondition names them before anything is
// written. Begun again, it goes on.
absl::StatusOr<ExportResult> Export(Content& content, const std::string& directory, bool unlazy,
                                    const std::shared_ptr<base::CancelToken>& cancel);

}  // namespace lazyblob::contentservice
