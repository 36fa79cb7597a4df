#include "daemon/blobs_service.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "daemon/client_watcher.h"
#include "daemon/credential_chain.h"
#include "daemon/error_details.h"
#include "daemon/event_stream.h"
#include "exporter/spec.h"
#include "exporter/unlazy.h"
#include "proto/blobs.grpc.pb.h"

namespace lazyblob::daemon {
namespace {

using LayerPtr = std::shared_ptr<contentstore::LazyLayer>;

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
          ErrorDetailsOf(status)};
}

v1::BlobState StateOf(const contentstore::LazyLayer& layer) {
  switch (layer.state()) {
    case contentstore::LayerState::kNeedsIndex:
    case contentstore::LayerState::kLazy:
      return v1::LAZY;
    case contentstore::LayerState::kComplete:
      return v1::LOCAL;
    case contentstore::LayerState::kQuarantined:
      return v1::QUARANTINED;
  }
  return v1::BLOB_STATE_UNSPECIFIED;
}

class Service final : public v1::Blobs::Service, public BlobsService {
 public:
  explicit Service(BlobsParts parts) : parts_(std::move(parts)) {}

  grpc::Service* service() override { return this; }
  void CancelAll() override { stop_.Cancel(); }

  grpc::Status Register(grpc::ServerContext*, const v1::RegisterBlobsRequest* request,
                        v1::StatBlobsResponse* response) override {
    return Call([&]() -> absl::Status {
      RETURN_IF_ERROR(exporter::CheckLeaseName(request->lease()));
      if (request->blobs().empty()) return absl::InvalidArgumentError("register: no blobs");
      std::vector<contentstore::DescriptorHandler> handlers;
      for (const v1::Blob& blob : request->blobs()) {
        ASSIGN_OR_RETURN(auto handler, exporter::HandlerOf(blob, parts_.sources));
        handlers.push_back(std::move(handler));
      }
      exporter::Leases::Layers layers;
      for (const contentstore::DescriptorHandler& handler : handlers) {
        ASSIGN_OR_RETURN(LayerPtr layer, parts_.store->AddHandler(handler));
        layers.push_back(std::move(layer));
      }
      RETURN_IF_ERROR(parts_.leases->Hold(request->lease(), layers));
      for (const LayerPtr& layer : layers) Describe(*layer, response->add_blobs());
      return absl::OkStatus();
    });
  }

  grpc::Status Stat(grpc::ServerContext*, const v1::StatBlobsRequest* request,
                    v1::StatBlobsResponse* response) override {
    return Call([&]() -> absl::Status {
      for (const std::string& text : request->digests()) {
        ASSIGN_OR_RETURN(const base::Digest digest, base::Digest::Parse(text));
        v1::BlobStatus* status = response->add_blobs();
        if (const LayerPtr layer = parts_.store->Find(digest)) {
          Describe(*layer, status);
        } else {
          status->mutable_blob()->set_digest(text);
          status->set_state(v1::ABSENT);
        }
      }
      return absl::OkStatus();
    });
  }

  grpc::Status Unlazy(grpc::ServerContext* context, const v1::UnlazyBlobsRequest* request,
                      grpc::ServerWriter<v1::Progress>* writer) override {
    return Call([&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::vector<LayerPtr> layers, Provided(*request));
      for (const std::string& host : request->access().plain_http_hosts()) {
        RETURN_IF_ERROR(parts_.plain_http->Add(host));
      }
      contentstore::FetchContext fetch;
      fetch.cause = contentstore::FetchCause::kStream;
      fetch.cancel = std::make_shared<base::CancelToken>();
      fetch.credentials = CredentialsOfCall(request->access().docker_config(), parts_.credentials);
      auto stopped = stop_.OnCancel([token = fetch.cancel] { token->Cancel(); });
      ClientWatcher watcher([context] { return context->IsCancelled(); }, fetch.cancel);
      EventStream<v1::Progress> stream(
          [writer](const v1::Progress& progress) { return writer->Write(progress); },
          [context] { context->TryCancel(); });
      const absl::Status status = exporter::UnlazyLayers(
          layers, parts_.store, fetch, [&](const v1::Progress& progress) { stream.Put(progress, progress); });
      stream.Finish(*fetch.cancel);
      return status;
    });
  }

  grpc::Status ListLeases(grpc::ServerContext*, const v1::ListLeasesRequest*,
                          v1::ListLeasesResponse* response) override {
    return Call([&] {
      for (v1::Lease& lease : parts_.leases->List()) *response->add_leases() = std::move(lease);
      return absl::OkStatus();
    });
  }

  grpc::Status Release(grpc::ServerContext*, const v1::ReleaseLeaseRequest* request,
                       v1::ReleaseLeaseResponse*) override {
    return Call([&] { return parts_.leases->Release(request->name()); });
  }

 private:
  grpc::Status Call(absl::FunctionRef<absl::Status()> work) {
    if (!parts_.activity->Begin()) {
      return ToGrpc(absl::AbortedError("the daemon is just ending; try again"));
    }
    absl::Cleanup end = [this] { parts_.activity->End(parts_.mounts ? parts_.mounts() : 0); };
    return ToGrpc(work());
  }

  void Describe(contentstore::LazyLayer& layer, v1::BlobStatus* status) {
    *status->mutable_blob() = exporter::DescribeLayer(*parts_.store, layer);
    status->set_state(StateOf(layer));
    const contentstore::LayerStats stats = layer.stats();
    status->set_cached_bytes(stats.cached_bytes);
    status->set_data_size(layer.data_size());
    status->set_last_error(base::Printable(stats.last_error));
  }

  // Each layer once; ProviderMissing lists all that neither are local nor have a source.
  absl::StatusOr<std::vector<LayerPtr>> Provided(const v1::UnlazyBlobsRequest& request) {
    std::vector<LayerPtr> layers;
    std::vector<contentstore::MissingProvider> missing;
    std::set<base::Digest> seen;
    for (const std::string& text : request.digests()) {
      ASSIGN_OR_RETURN(const base::Digest digest, base::Digest::Parse(text));
      if (!seen.insert(digest).second) continue;
      LayerPtr layer = parts_.store->Find(digest);
      if (layer == nullptr) {
        missing.push_back({digest, 0, "unlazy"});
      } else if (layer->state() != contentstore::LayerState::kComplete &&
                 parts_.store->SourceNames(*layer).empty()) {
        missing.push_back({digest, layer->descriptor().size, "unlazy"});
      } else {
        layers.push_back(std::move(layer));
      }
    }
    if (!missing.empty()) return contentstore::ProviderMissingError(missing);
    if (layers.empty()) return absl::InvalidArgumentError("unlazy: no digests");
    return layers;
  }

  const BlobsParts parts_;
  base::CancelToken stop_;
};

}  // namespace

std::unique_ptr<BlobsService> BlobsService::Create(BlobsParts parts) {
  return std::make_unique<Service>(std::move(parts));
}

}  // namespace lazyblob::daemon
