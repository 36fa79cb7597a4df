#pragma once

// lazyblob.v1.Blobs over the content store and exporter/leases.h: translation. docs/BLOBS_SERVICE.md.

#include <functional>
#include <memory>

#include "contentstore/content_store.h"
#include "daemon/activity.h"
#include "daemon/plain_http_hosts.h"
#include "exporter/leases.h"
#include "registry/credentials.h"

namespace grpc {
class Service;
}

namespace lazyblob::daemon {

// All outlive the service.
struct BlobsParts {
  contentstore::ContentStore* store = nullptr;
  exporter::Leases* leases = nullptr;
  contentstore::SourceFactory sources;
  PlainHttpHosts* plain_http = nullptr;
  Activity* activity = nullptr;
  // Of calls that name none; null: there are none. Never those of others' mounts.
  std::shared_ptr<const registry::CredentialsProvider> credentials;
  std::function<size_t()> mounts;  // how many images are mounted: what keeps a standalone daemon
};

// Thread-safe. Outlives the servers that it is part of.
class BlobsService {
 public:
  static std::unique_ptr<BlobsService> Create(BlobsParts parts);
  virtual ~BlobsService() = default;

  virtual grpc::Service* service() = 0;
  // Ends all calls that run, and those to come: they end with Cancelled.
  virtual void CancelAll() = 0;
};

}  // namespace lazyblob::daemon
