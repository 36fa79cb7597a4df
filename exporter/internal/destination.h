#pragma once

// The steps of an upload as the placer takes them: registry::Client and registry::Pusher, or a test's fake.
// Thread-safe; contracts are those of registry/pusher.h and Client::HeadBlob.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "registry/pusher.h"

namespace lazyblob::exporter::internal {

class Destination {
 public:
  virtual ~Destination() = default;
  virtual absl::StatusOr<uint64_t> Head(const oci::Reference& repository, const base::Digest& digest,
                                        const registry::CallContext& context) = 0;
  virtual absl::StatusOr<std::optional<registry::UploadSession>> Mount(
      const oci::Reference& repository, const base::Digest& digest, const std::string& from,
      const registry::CallContext& context) = 0;
  virtual absl::StatusOr<registry::UploadSession> Start(const oci::Reference& repository,
                                                        const registry::CallContext& context) = 0;
  virtual absl::Status PutWhole(const oci::Reference& repository, const registry::UploadSession& session,
                                const oci::Descriptor& blob, registry::BodySource body,
                                const registry::CallContext& context) = 0;
  virtual absl::Status Patch(const oci::Reference& repository, registry::UploadSession* session,
                             absl::Span<const uint8_t> bytes, const registry::CallContext& context) = 0;
  virtual absl::Status Commit(const oci::Reference& repository, const registry::UploadSession& session,
                              const base::Digest& digest, const registry::CallContext& context) = 0;
  virtual absl::Status Query(const oci::Reference& repository, registry::UploadSession* session,
                             const registry::CallContext& context) = 0;
  virtual void Cancel(const oci::Reference& repository, const registry::UploadSession& session,
                      const registry::CallContext& context) = 0;
  // The HTTP status an error of the above stands for; 0: none.
  virtual int HttpStatus(const absl::Status& status) const = 0;
};

// `client` outlives it.
std::unique_ptr<Destination> MakeRegistryDestination(registry::Client* client);

}  // namespace lazyblob::exporter::internal
