#include "registry/pusher.h"

#include "registry/internal/push.h"

namespace lazyblob::registry {

using internal::Push;

Pusher::Pusher(Client* client) : client_(*client) {}

absl::StatusOr<std::optional<UploadSession>> Pusher::Mount(const oci::Reference& repository,
                                                           const base::Digest& digest,
                                                           const std::string& from,
                                                           const CallContext& context) {
  return Push(client_.core()).Mount(repository, digest, from, context);
}

absl::StatusOr<UploadSession> Pusher::Start(const oci::Reference& repository, const CallContext& context) {
  return Push(client_.core()).Start(repository, context);
}

absl::Status Pusher::PutWhole(const oci::Reference& repository, const UploadSession& session,
                              const oci::Descriptor& blob, BodySource body, const CallContext& context) {
  return Push(client_.core()).PutWhole(repository, session, blob, body, context);
}

absl::Status Pusher::Patch(const oci::Reference& repository, UploadSession* session,
                           absl::Span<const uint8_t> bytes, const CallContext& context) {
  return Push(client_.core()).Patch(repository, session, bytes, context);
}

absl::Status Pusher::Commit(const oci::Reference& repository, const UploadSession& session,
                            const base::Digest& digest, const CallContext& context) {
  return Push(client_.core()).Commit(repository, session, digest, context);
}

absl::Status Pusher::Query(const oci::Reference& repository, UploadSession* session,
                           const CallContext& context) {
  return Push(client_.core()).Query(repository, session, context);
}

void Pusher::Cancel(const oci::Reference& repository, const UploadSession& session,
                    const CallContext& context) {
  Push(client_.core()).Cancel(repository, session, context);
}

absl::StatusOr<Pusher::ManifestPut> Pusher::PutManifest(const oci::Reference& reference,
                                                        const std::string& media_type, absl::string_view raw,
                                                        const CallContext& context) {
  return Push(client_.core()).PutManifest(reference, media_type, raw, context);
}

}  // namespace lazyblob::registry
