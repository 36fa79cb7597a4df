#pragma once

// Exports to this machine: image layouts and archives of one, which hold every blob whole, and directories
// with the files of an image.

#include <atomic>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "base/cancel.h"
#include "exporter/content.h"
#include "exporter/spec.h"
#include "proto/exporter.pb.h"

namespace lazyblob::exporter {

struct LocalOptions {
  std::shared_ptr<base::CancelToken> cancel;  // of the caller; never null
  std::shared_ptr<const registry::CredentialsProvider> credentials;
  std::function<void(const v1::Progress&)> progress;  // any thread
  bool cache = false;                                 // for progress
};

// Block until the destination is complete; on an error it is what it was before, except that a layout may
// have more blobs. Bytes are verified on their way. Blobs that nobody can provide are all listed in one
// error.
absl::StatusOr<v1::Ready> WriteToLayout(const Content& content, const oci::LayoutReference& destination,
                                        const LocalOptions& options);
absl::StatusOr<v1::Ready> WriteToArchive(const Content& content, const ArchiveDestination& destination,
                                         const LocalOptions& options);
// Of one image, not an index. The directory is absent or empty; docs of extract.h apply.
absl::StatusOr<v1::Ready> WriteToDirectory(const Content& content, const DirectoryDestination& destination,
                                           const LocalOptions& options);

}  // namespace lazyblob::exporter
