#pragma once

// lazyblob.v1.Exporter over exporter/export_job.h: translation, and the table of what runs.

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "daemon/activity.h"
#include "daemon/plain_http_hosts.h"
#include "exporter/export_job.h"
#include "registry/credentials.h"

namespace grpc {
class Service;
}

namespace lazyblob::daemon {

// All outlive the service.
struct ExporterParts {
  exporter::ExportParts exporter;
  PlainHttpHosts* plain_http = nullptr;
  Activity* activity = nullptr;
  // Of calls that name none; null: there are none. Never those of others' mounts.
  std::shared_ptr<const registry::CredentialsProvider> credentials;
  std::function<size_t()> mounts;  // how many images are mounted: what keeps a standalone daemon
};

// Thread-safe. Outlives the servers that it is part of.
class ExporterService {
 public:
  static std::unique_ptr<ExporterService> Create(ExporterParts parts);
  virtual ~ExporterService() = default;

  virtual grpc::Service* service() = 0;
  // Ends all exports that run: their calls end with Cancelled.
  virtual void CancelAll() = 0;
};

}  // namespace lazyblob::daemon
