#pragma once

// What registry::Client does, over an abstract transport and sleeper. Thread-safe; same contract as Client.

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "registry/client.h"
#include "registry/internal/endpoint.h"
#include "registry/internal/host_state.h"
#include "registry/internal/requester.h"
#include "registry/internal/retry.h"

namespace lazyblob::registry::internal {

class ClientCore {
 public:
  ClientCore(ClientOptions options, std::unique_ptr<Transport> transport, Sleeper sleep);

  absl::StatusOr<FetchedManifest> GetManifest(const oci::Reference& reference, const CallContext& context);
  absl::StatusOr<oci::Descriptor> HeadManifest(const oci::Reference& reference, const CallContext& context);
  absl::Status ReadBlob(const oci::Reference& repository, const oci::Descriptor& blob, ByteRange range,
                        BodySink sink, const CallContext& context);
  absl::Status ReadUrl(absl::string_view url, const oci::Descriptor& blob, ByteRange range, BodySink sink,
                       const CallContext& context);
  absl::StatusOr<std::string> GetSmallBlob(const oci::Reference& repository, const oci::Descriptor& blob,
                                           uint64_t max_bytes, const CallContext& context);
  absl::StatusOr<uint64_t> HeadBlob(const oci::Reference& repository, const base::Digest& digest,
                                    const CallContext& context);
  absl::StatusOr<std::vector<oci::Descriptor>> Referrers(const oci::Reference& repository,
                                                         const base::Digest& subject,
                                                         absl::string_view artifact_type,
                                                         const CallContext& context);
  Client::LinkEstimate EstimateLink(const oci::Reference& repository) const {
    return hosts_.Estimate(repository.host);
  }
  Client::LinkEstimate EstimateLink(absl::string_view url) const;

  // For push.h.
  const ClientOptions& options() const { return options_; }
  Requester& requester() { return requester_; }
  RetryPolicy retry_policy() const {
    return {options_.max_attempts, options_.first_backoff, options_.clock, sleep_};
  }
  // One try on one endpoint, with its retries; `last` is the host itself.
  using Operation = absl::FunctionRef<Attempt(const Endpoint&, const RetryPolicy&, const CallContext&)>;
  // Those with the capability in order, mirrors first; the last one's error is the one reported. `what` goes
  // in front of it. A context that pushes asks for that capability, whatever is `wanted`.
  absl::Status OnEndpoints(const oci::Reference& reference, const CallContext& context,
                           absl::string_view what, Operation operation,
                           Capability wanted = Capability::kPull);

 private:
  Attempt FetchManifest(const Endpoint& endpoint, const oci::Reference& reference, const RetryPolicy& policy,
                        const CallContext& context, FetchedManifest* manifest);
  Attempt ReadFrom(const Endpoint& endpoint, const oci::Reference& repository, const oci::Descriptor& blob,
                   class BlobReader* reader, const RetryPolicy& policy, const CallContext& context);
  // `host`: what it is remembered under that ranges are ignored.
  Attempt ReadWith(ApiRequest request, const std::string& host, class BlobReader* reader,
                   const RetryPolicy& policy, const CallContext& context);
  // nullopt: this registry has no Referrers API.
  absl::StatusOr<std::optional<std::vector<oci::Descriptor>>> AskReferrers(const oci::Reference& repository,
                                                                           const base::Digest& subject,
                                                                           absl::string_view artifact_type,
                                                                           const CallContext& context);

  const ClientOptions options_;
  const std::unique_ptr<Transport> transport_;
  const Sleeper sleep_;
  HostStates hosts_;
  Requester requester_;
};

}  // namespace lazyblob::registry::internal
