#pragma once

// What registry::Pusher does, over an abstract transport; same contract as Pusher. Thread-safe.

#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "registry/internal/core.h"
#include "registry/pusher.h"

namespace lazyblob::registry::internal {

// "0-1023" or "bytes=0-1023" of an upload's Range header: how many bytes the registry holds. "0-0" is none:
// registries say it for no byte and for one. nullopt if it cannot be read.
std::optional<uint64_t> ParseUploadRange(absl::string_view value);

class Push {
 public:
  explicit Push(ClientCore* core) : core_(*core) {}

  absl::StatusOr<std::optional<UploadSession>> Mount(const oci::Reference& repository,
                                                     const base::Digest& digest, const std::string& from,
                                                     const CallContext& context);
  absl::StatusOr<UploadSession> Start(const oci::Reference& repository, const CallContext& context);
  absl::Status PutWhole(const oci::Reference& repository, const UploadSession& session,
                        const oci::Descriptor& blob, BodySource body, const CallContext& context);
  absl::Status Patch(const oci::Reference& repository, UploadSession* session,
                     absl::Span<const uint8_t> bytes, const CallContext& context);
  absl::Status Commit(const oci::Reference& repository, const UploadSession& session,
                      const base::Digest& digest, const CallContext& context);
  absl::Status Query(const oci::Reference& repository, UploadSession* session, const CallContext& context);
  void Cancel(const oci::Reference& repository, const UploadSession& session, const CallContext& context);
  absl::StatusOr<Pusher::ManifestPut> PutManifest(const oci::Reference& reference,
                                                  const std::string& media_type, absl::string_view raw,
                                                  const CallContext& context);

 private:
  using SessionStep = absl::FunctionRef<Attempt(ApiRequest*, const RetryPolicy&, const CallContext&)>;
  // One step on a session: with the endpoint that opened it, as far as its URL tells.
  absl::Status OnSession(const oci::Reference& repository, const UploadSession& session,
                         const CallContext& context, const std::string& what, SessionStep step);
  // POST …/blobs/uploads/<query>; nullopt: it was mounted.
  Attempt Open(const Endpoint& endpoint, const oci::Reference& repository, const std::string& query,
               const std::string& from, const RetryPolicy& policy, const CallContext& context,
               std::optional<UploadSession>* session);

  ClientCore& core_;
};

}  // namespace lazyblob::registry::internal
