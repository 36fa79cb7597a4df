#pragma once

// What of lazy blobs outlives a restart: `lazy.db` (docs/CONTENT_SERVICE.md has the tables). Which layers the
// images have is read again from their manifests.

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/digest.h"
#include "base/sqlite.h"
#include "contentservice/content.h"
#include "oci/descriptor.h"

namespace lazyblob::contentservice {

struct LazyRecord {
  oci::Descriptor blob;                   // media type, digest, size, annotations
  std::vector<std::string> repositories;  // "host/name", in the order in which they are asked
  std::set<std::string> failed;           // repositories that turned out not to have it
  bool held = false;                      // by a namespace of containerd
  Labels labels;
  absl::Time created;
  absl::Time updated;
};

struct ImageRecord {
  base::Digest manifest;
  std::set<std::string> namespaces;
  std::vector<std::string> repositories;
};

// Thread-safe; errors as of base::Sqlite.
class LazyRecords {
 public:
  static absl::StatusOr<std::unique_ptr<LazyRecords>> Open(const std::string& path);

  absl::StatusOr<std::vector<LazyRecord>> Blobs();
  absl::StatusOr<std::vector<ImageRecord>> Images();
  // Instead of what was recorded.
  absl::Status Put(const LazyRecord& record);
  absl::Status Put(const ImageRecord& record);
  absl::Status RemoveBlob(const base::Digest& digest);
  absl::Status RemoveImage(const base::Digest& manifest);

 private:
  explicit LazyRecords(std::unique_ptr<base::Sqlite> database) : database_(std::move(database)) {}
  const std::unique_ptr<base::Sqlite> database_;
};

}  // namespace lazyblob::contentservice
