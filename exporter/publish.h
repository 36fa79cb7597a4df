#pragma once

// The last phases of an export to registries: every blob is placed in every repository, then documents
// follow, what they name first, and tags last: until then nobody can pull anything that is not complete.

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/cancel.h"
#include "exporter/assemble.h"
#include "exporter/content.h"
#include "exporter/placer.h"
#include "oci/reference.h"
#include "proto/exporter.pb.h"

namespace lazyblob::exporter {

// PUT of a document: by tag if the reference has one and no digest, else by digest.
using PutDocument = std::function<absl::Status(const oci::Reference& reference, const Document& document,
                                               const registry::CallContext& context)>;
// Over registry::Pusher; `client` outlives it. Manifests with a subject are listed as its referrers, by us
// where the registry does not do it; one object per daemon, for that has one writer at a time.
PutDocument MakePutDocument(registry::Client* client);

struct PublishOptions {
  Placer* placer = nullptr;
  PutDocument put;
  Priority priority = Priority::kImage;
  std::shared_ptr<base::CancelToken> cancel;  // of the caller; never null
  std::shared_ptr<const registry::CredentialsProvider> credentials;
  std::function<void(const v1::Progress&)> progress;  // any thread
  std::atomic<uint64_t>* uploaded = nullptr;          // gets the body bytes of blobs sent; may be null
  std::atomic<uint64_t>* read = nullptr;              // gets the bytes that were read for that; may be null
  // Called when everything is there but the tags; its error ends it. May be empty.
  std::function<absl::Status()> prepared;
  // Set: the content is an index, which is put as IndexWriter::PutPlatforms does it; and whether it joins
  // what is there.
  IndexWriter* indexes = nullptr;
  bool append = false;
};

// Gives the documents and all blobs, once they are known; asked when the early blobs are made.
using WholeContentSource = absl::FunctionRef<absl::StatusOr<const Content*>()>;

// `early`: blobs that can be placed before `whole` is known, also such as are being made.
// Blocks until every destination is complete, and tells of each. All or nothing as far as tags go: none is
// set before every repository has every document. The first failure ends what still runs, and is returned;
// blobs that nobody can provide are all listed in one error.
absl::StatusOr<std::vector<v1::Ready>> Publish(const Content& early, WholeContentSource whole,
                                               absl::Span<const oci::Reference> destinations,
                                               const PublishOptions& options);

}  // namespace lazyblob::exporter
