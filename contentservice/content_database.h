#pragma once

// content.db: what is known of the blobs of a content store (docs/CONTENT_SERVICE.md has its tables).
// Functions over base::Sqlite, with its errors; thread-safe as it is.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/sqlite.h"
#include "contentservice/content.h"

namespace lazyblob::contentservice {

struct BlobRecord {
  Info info;
  bool verified = true;  // false: imported, believed until somebody reads it
};

// Opens or creates content.db below `root`, which is created 0700.
absl::StatusOr<std::unique_ptr<base::Sqlite>> OpenDatabase(const std::string& root);

absl::StatusOr<std::vector<BlobRecord>> LoadBlobs(base::Sqlite& database);
// All in one transaction; a record of the same digest is replaced.
absl::Status PutBlobs(base::Sqlite& database, absl::Span<const BlobRecord> records);
absl::Status DeleteBlobs(base::Sqlite& database, absl::Span<const base::Digest> digests);

}  // namespace lazyblob::contentservice
