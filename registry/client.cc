#include "registry/client.h"

#include <utility>

#include "registry/internal/core.h"
#include "registry/internal/http_transport.h"
#include "registry/internal/wait.h"

namespace lazyblob::registry {
namespace {

std::unique_ptr<internal::Transport> TransportFor(const ClientOptions& options) {
  internal::HttpTransportOptions http;
  http.ca_file = options.ca_file;
  http.user_agent = options.user_agent;
  http.connect_timeout = options.connect_timeout;
  http.stall_timeout = options.stall_timeout;
  http.max_connections_per_host = options.max_connections_per_host;
  http.clock = options.clock;
  return internal::MakeHttpTransport(std::move(http));
}

}  // namespace

class Client::Impl final : public internal::ClientCore {
 public:
  explicit Impl(const ClientOptions& options)
      : ClientCore(options, TransportFor(options), internal::SleepUnlessCancelled) {}
};

Client::Client(ClientOptions options) : impl_(std::make_unique<Impl>(options)) {}
Client::~Client() = default;

internal::ClientCore* Client::core() { return impl_.get(); }

absl::StatusOr<FetchedManifest> Client::GetManifest(const oci::Reference& reference,
                                                    const CallContext& context) {
  return impl_->GetManifest(reference, context);
}

absl::StatusOr<oci::Descriptor> Client::HeadManifest(const oci::Reference& reference,
                                                     const CallContext& context) {
  return impl_->HeadManifest(reference, context);
}

absl::Status Client::ReadBlob(const oci::Reference& repository, const oci::Descriptor& blob, ByteRange range,
                              BodySink sink, const CallContext& context) {
  return impl_->ReadBlob(repository, blob, range, sink, context);
}

absl::Status Client::ReadUrl(absl::string_view url, const oci::Descriptor& blob, ByteRange range,
                             BodySink sink, const CallContext& context) {
  return impl_->ReadUrl(url, blob, range, sink, context);
}

absl::StatusOr<std::string> Client::GetSmallBlob(const oci::Reference& repository,
                                                 const oci::Descriptor& blob, uint64_t max_bytes,
                                                 const CallContext& context) {
  return impl_->GetSmallBlob(repository, blob, max_bytes, context);
}

absl::StatusOr<uint64_t> Client::HeadBlob(const oci::Reference& repository, const base::Digest& digest,
                                          const CallContext& context) {
  return impl_->HeadBlob(repository, digest, context);
}

absl::StatusOr<std::vector<oci::Descriptor>> Client::Referrers(const oci::Reference& repository,
                                                               const base::Digest& subject,
                                                               absl::string_view artifact_type,
                                                               const CallContext& context) {
  return impl_->Referrers(repository, subject, artifact_type, context);
}

Client::LinkEstimate Client::EstimateLink(const oci::Reference& repository) const {
  return impl_->EstimateLink(repository);
}

Client::LinkEstimate Client::EstimateLink(absl::string_view url) const { return impl_->EstimateLink(url); }

}  // namespace lazyblob::registry
