#pragma once

// Images of several platforms in one index: those of one export, and those that a registry has already.
// Registries take whatever is put last: within a process one writer at a time changes an index, and across
// processes a change in between is found where that is possible. docs/EXPORT_FORMATS.md.

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "exporter/content.h"
#include "oci/descriptor.h"
#include "oci/reference.h"
#include "proto/exporter.pb.h"
#include "registry/client.h"

namespace lazyblob::exporter {

// One index over the images of `request`, whose contents are `contents`; an image alone stays what it is
// unless request.index says otherwise. What says no platform in the request has that of its config, or is all
// that its index lists. InvalidArgument: no platform, another one than the config's, or two images of one.
absl::StatusOr<Content> JoinPlatforms(std::vector<Content> contents, const v1::ExportRequest& request,
                                      const contentstore::FetchContext& context);

// What the index `document` lists.
absl::StatusOr<std::vector<oci::Descriptor>> ListedIn(const Document& document);

// Thread-safe; one per daemon. Calls block.
class IndexWriter {
 public:
  explicit IndexWriter(registry::Client* client);  // which outlives it
  ~IndexWriter();

  // Puts `index` under the tag; with `append`, merged into the index that is there, or with the image that is
  // there beside it (oci::MergePlatforms). What it lists is in the repository. Returns what the tag names
  // now, looked at after the PUT: if others wrote at the same time it is merged again, a few times.
  // FailedPrecondition: they wrote something else each time (or, without `append`, once); or what is there
  // says no platform.
  absl::StatusOr<oci::Descriptor> PutPlatforms(const oci::Reference& tag, const Document& index, bool append,
                                               const registry::CallContext& context);

  // Lists `referrer` under the tag that clients keep for `subject` where the registry has no referrers API.
  // The subject need not be there.
  absl::Status AddReferrer(const oci::Reference& repository, const base::Digest& subject,
                           const oci::Descriptor& referrer, const registry::CallContext& context);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lazyblob::exporter
