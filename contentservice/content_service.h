#pragma once

// containerd.services.content.v1 over a Content: the checks of containerd's own content service, else
// translation only (docs/CONTENT_SERVICE.md).

#include <cstddef>
#include <memory>

#include "contentservice/content.h"

namespace grpc {
class Service;
}  // namespace grpc

namespace lazyblob::contentservice {

// Threads of the service's own; what finds none waits in a queue. Reads of lazy blobs may wait for a
// registry, reads of held ones and writes for the disk; none delays another kind, or the other calls, which
// containerd makes inside its database transaction.
constexpr int kCallThreads = 16;
constexpr int kIoThreads = 16;
constexpr int kWriteThreads = 16;
constexpr int kLazyThreads = 64;
// One message of Read. A reader holds its thread while a message is sent, except for the last: so a client
// that is slow to take what fits one message holds none. A writer holds one only while a message is worked
// off.
constexpr size_t kReadPiece = 256 << 10;

// For containerd::GrpcServer. Thread-safe.
class ContentService {
 public:
  // The content outlives the service.
  static std::unique_ptr<ContentService> Create(Content* content);
  virtual ~ContentService() = default;
  virtual grpc::Service* service() = 0;
};

}  // namespace lazyblob::contentservice
