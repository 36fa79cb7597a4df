#include "exporter/internal/destination.h"
#include "registry/client.h"

namespace lazyblob::exporter::internal {
namespace {

class RegistryDestination final : public Destination {
 public:
  explicit RegistryDestination(registry::Client* client) : client_(*client), pusher_(client) {}

  absl::StatusOr<uint64_t> Head(const oci::Reference& repository, const base::Digest& digest,
                                const registry::CallContext& context) override {
    return client_.HeadBlob(repository, digest, context);
  }
  absl::StatusOr<std::optional<registry::UploadSession>> Mount(
      const oci::Reference& repository, const base::Digest& digest, const std::string& from,
      const registry::CallContext& context) override {
    return pusher_.Mount(repository, digest, from, context);
  }
  absl::StatusOr<registry::UploadSession> Start(const oci::Reference& repository,
                                                const registry::CallContext& context) override {
    return pusher_.Start(repository, context);
  }
  absl::Status PutWhole(const oci::Reference& repository, const registry::UploadSession& session,
                        const oci::Descriptor& blob, registry::BodySource body,
                        const registry::CallContext& context) override {
    return pusher_.PutWhole(repository, session, blob, body, context);
  }
  absl::Status Patch(const oci::Reference& repository, registry::UploadSession* session,
                     absl::Span<const uint8_t> bytes, const registry::CallContext& context) override {
    return pusher_.Patch(repository, session, bytes, context);
  }
  absl::Status Commit(const oci::Reference& repository, const registry::UploadSession& session,
                      const base::Digest& digest, const registry::CallContext& context) override {
    return pusher_.Commit(repository, session, digest, context);
  }
  absl::Status Query(const oci::Reference& repository, registry::UploadSession* session,
                     const registry::CallContext& context) override {
    return pusher_.Query(repository, session, context);
  }
  void Cancel(const oci::Reference& repository, const registry::UploadSession& session,
              const registry::CallContext& context) override {
    pusher_.Cancel(repository, session, context);
  }
  int HttpStatus(const absl::Status& status) const override {
    const std::optional<registry::Refusal> refusal = registry::RefusalOf(status);
    return refusal.has_value() ? refusal->http_status : 0;
  }

 private:
  registry::Client& client_;
  registry::Pusher pusher_;
};

}  // namespace

std::unique_ptr<Destination> MakeRegistryDestination(registry::Client* client) {
  return std::make_unique<RegistryDestination>(client);
}

}  // namespace lazyblob::exporter::internal
