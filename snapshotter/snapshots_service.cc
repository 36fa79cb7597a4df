#include "snapshotter/snapshots_service.h"

#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "containerd/calls_service.h"
#include "proto/snapshots.grpc.pb.h"
#include "snapshotter/labels.h"

namespace lazyblob::snapshotter {
namespace {

namespace api = ::containerd::services::snapshots::v1;
using containerd::Call;
using google::protobuf::Empty;
using ListStream = containerd::ListStream<api::ListSnapshotsResponse>;

Labels FromProto(const google::protobuf::Map<std::string, std::string>& labels) {
  return Labels(labels.begin(), labels.end());
}

api::Info ToProto(const Info& info) {
  api::Info out;
  out.set_name(info.name);
  out.set_parent(info.parent);
  out.set_kind(static_cast<api::Kind>(info.kind));
  *out.mutable_created_at() = containerd::ToProto(info.created);
  *out.mutable_updated_at() = containerd::ToProto(info.updated);
  for (const auto& [key, value] : info.labels) (*out.mutable_labels())[key] = value;
  return out;
}

template <typename Response>
absl::Status SetMounts(absl::StatusOr<std::vector<MountSpec>> mounts, Response* response) {
  if (!mounts.ok()) return std::move(mounts).status();
  for (MountSpec& mount : *mounts) {
    auto* out = response->add_mounts();
    out->set_type(std::move(mount.type));
    out->set_source(std::move(mount.source));
    for (std::string& option : mount.options) out->add_options(std::move(option));
  }
  return absl::OkStatus();
}

class Service final : public SnapshotsService, public api::Snapshots::CallbackService {
 public:
  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  explicit Service(Snapshotter* snapshotter) : snapshotter_(snapshotter) {}
  grpc::Service* service() override { return this; }

  Reactor* Prepare(Context*, const api::PrepareSnapshotRequest* request,
                   api::PrepareSnapshotResponse* response) override {
    const bool layer = request->labels().contains(kLabelSnapshotRef);
    return Call::Run(layer ? &layers_ : &calls_, [=, this](Call* call) {
      return SetMounts(snapshotter_->Prepare(request->key(), request->parent(), FromProto(request->labels()),
                                             call->token()),
                       response);
    });
  }

  Reactor* View(Context*, const api::ViewSnapshotRequest* request,
                api::ViewSnapshotResponse* response) override {
    return Call::Run(&calls_, [=, this](Call*) {
      return SetMounts(snapshotter_->View(request->key(), request->parent(), FromProto(request->labels())),
                       response);
    });
  }

  Reactor* Mounts(Context*, const api::MountsRequest* request, api::MountsResponse* response) override {
    return Call::Run(&calls_,
                     [=, this](Call*) { return SetMounts(snapshotter_->Mounts(request->key()), response); });
  }

  Reactor* Commit(Context*, const api::CommitSnapshotRequest* request, Empty*) override {
    return Call::Run(&calls_, [=, this](Call*) {
      return snapshotter_->Commit(request->name(), request->key(), FromProto(request->labels()),
                                  request->parent());
    });
  }

  Reactor* Remove(Context*, const api::RemoveSnapshotRequest* request, Empty*) override {
    return Call::Run(&calls_, [=, this](Call*) { return snapshotter_->Remove(request->key()); });
  }

  Reactor* Stat(Context*, const api::StatSnapshotRequest* request,
                api::StatSnapshotResponse* response) override {
    return Call::Run(&calls_, [=, this](Call*) -> absl::Status {
      ASSIGN_OR_RETURN(Info info, snapshotter_->Stat(request->key()));
      *response->mutable_info() = ToProto(info);
      return absl::OkStatus();
    });
  }

  Reactor* Update(Context*, const api::UpdateSnapshotRequest* request,
                  api::UpdateSnapshotResponse* response) override {
    return Call::Run(&calls_, [=, this](Call*) -> absl::Status {
      Info wanted;  // all else of an Info cannot be changed
      wanted.name = request->info().name();
      wanted.labels = FromProto(request->info().labels());
      const auto& paths = request->update_mask().paths();
      ASSIGN_OR_RETURN(Info info, snapshotter_->Update(wanted, {paths.begin(), paths.end()}));
      *response->mutable_info() = ToProto(info);
      return absl::OkStatus();
    });
  }

  grpc::ServerWriteReactor<api::ListSnapshotsResponse>* List(
      Context*, const api::ListSnapshotsRequest* request) override {
    return ListStream::Run(&calls_, [this, request](ListStream* stream) {
      return snapshotter_->List({request->filters().begin(), request->filters().end()},
                                [&](const Info& info) { return stream->Add(ToProto(info)); });
    });
  }

  Reactor* Usage(Context*, const api::UsageRequest* request, api::UsageResponse* response) override {
    return Call::Run(&calls_, [=, this](Call*) -> absl::Status {
      ASSIGN_OR_RETURN(snapshotter::Usage usage, snapshotter_->GetUsage(request->key()));
      response->set_size(containerd::ClampToWire(usage.bytes));
      response->set_inodes(containerd::ClampToWire(usage.inodes));
      return absl::OkStatus();
    });
  }

  Reactor* Cleanup(Context*, const api::CleanupRequest*, Empty*) override {
    return Call::Run(&calls_, [this](Call*) { return snapshotter_->Cleanup(); });
  }

 private:
  Snapshotter* const snapshotter_;
  base::ThreadPool layers_{"lb-layers", kLayerThreads};
  base::ThreadPool calls_{"lb-calls", kCallThreads};
};

}  // namespace

std::unique_ptr<SnapshotsService> SnapshotsService::Create(Snapshotter* snapshotter) {
  return std::make_unique<Service>(snapshotter);
}

}  // namespace lazyblob::snapshotter
