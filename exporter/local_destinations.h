#pragma once

// Exports to this machine: image layouts and archives of one, which hold every blob whole, and directories
// with the files of an image.

#include <atomic>
#include <functional>
#include <memory>
#include <optional>

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
  // Called when the rest cannot fail by what comes from elsewhere: everything is there but its name. Its
  // error ends it. May be empty.
  std::function<absl::Status()> prepared;
  // Of layouts: an index joins the one of that name (oci::LayoutWriter::PublishPlatforms).
  bool append = false;
  // Of directories: what is unpacked must be an artifact (artifact.h); what it has for `platform`, or all.
  bool artifact = false;
  std::optional<oci::Platform> platform;
};

// Block until the destination is complete; on an error it is what it was before, except that a layout may
// have more blobs. Bytes are verified on their way. Blobs that nobody can provide are all listed in one
// error.
absl::StatusOr<v1::Ready> WriteToLayout(const Content& content, const oci::LayoutReference& destination,
                                        const LocalOptions& options);
absl::StatusOr<v1::Ready> WriteToArchive(const Content& content, const ArchiveDestination& destination,
                                         const LocalOptions& options);
// Of one image or artifact, not an index. The directory is absent or empty; docs of extract.h apply. Unpacked
// beside it and renamed, except where it is a mount point: not there, or whole, even after a kill (what that
// leaves beside is taken away by the next one).
absl::StatusOr<v1::Ready> WriteToDirectory(const Content& content, const DirectoryDestination& destination,
                                           const LocalOptions& options);

}  // namespace lazyblob::exporter
