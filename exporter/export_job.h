#pragma once

// One export, from a request to destinations that are complete: what is asked for is checked, images are
// resolved, layers made, blobs placed, documents and tags put, in this order. docs/EXPORT_COMMANDS.md.

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "base/cancel.h"
#include "contentstore/content_store.h"
#include "exporter/leases.h"
#include "exporter/make.h"
#include "exporter/placer.h"
#include "exporter/publish.h"
#include "proto/exporter.pb.h"
#include "registry/client.h"

namespace lazyblob::exporter {

// What an export works with; all outlive it.
struct ExportParts {
  registry::Client* client = nullptr;
  contentstore::ContentStore* store = nullptr;
  Placer* placer = nullptr;
  PutDocument put;
  std::string staging;             // directory for layers while they are made; is made if need be
  SnapshotDirectory snapshot;      // may be empty: there are none
  IndexWriter* indexes = nullptr;  // null: indexes cannot be changed in registries
  Leases* leases = nullptr;        // for "store:NAME"; may be null: there are none
};

// Who asks for it.
struct ExportCaller {
  std::shared_ptr<const registry::CredentialsProvider> credentials;  // null: the client's
  std::shared_ptr<base::CancelToken> cancel;                         // never null
};

// Events come in order, one at a time, on any thread; the last one holds the report.
using OnEvent = std::function<void(const v1::ExportEvent&)>;

// Blocks until everything has ended, also what failed beside the rest. The result follows the request's
// on_failure; ProviderMissing lists every blob that nobody can provide. Nothing is tagged that is not
// complete.
absl::Status RunExport(const v1::ExportRequest& request, const ExportParts& parts, const ExportCaller& caller,
                       const OnEvent& on_event);

}  // namespace lazyblob::exporter
