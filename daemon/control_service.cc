#include "daemon/control_service.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <set>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "daemon/client_watcher.h"
#include "proto/control.grpc.pb.h"

namespace lazyblob::daemon {
namespace {

namespace api = ::lazyblob::control::v1;

// absl's codes are gRPC's numbers.
grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

absl::string_view NameOf(contentstore::DiffIdCheck check) {
  switch (check) {
    case contentstore::DiffIdCheck::kUnknown:
      return "unknown";
    case contentstore::DiffIdCheck::kClaimed:
      return "claimed";
    case contentstore::DiffIdCheck::kDisputed:
      return "disputed";
    case contentstore::DiffIdCheck::kVerified:
      return "verified";
  }
  return "";
}

api::LayerStatus Describe(contentstore::LazyLayer& layer, absl::string_view mode) {
  api::LayerStatus out;
  const oci::Descriptor& descriptor = layer.descriptor();
  out.set_digest(descriptor.digest.ToString());
  out.set_size(descriptor.size);
  out.set_mode(std::string(mode));
  if (auto index = layer.index()) out.set_format(std::string(layer::FormatName(index->info().format)));
  contentstore::LayerStats stats = layer.stats();
  uint64_t fetched = 0;
  for (size_t cause = 0; cause < contentstore::kFetchCauses; ++cause) {
    fetched += stats.fetched_bytes[cause];
    (*out.mutable_fetched_by_cause())[std::string(contentstore::FetchCauseName(
        static_cast<contentstore::FetchCause>(cause)))] = stats.fetched_bytes[cause];
  }
  out.set_fetched_bytes(fetched);
  out.set_served_bytes(stats.served_bytes);
  out.set_rotten_chunks(stats.rotten_chunks);
  out.set_lazy(layer.state() == contentstore::LayerState::kLazy);
  out.set_reason(layer.not_lazy_reason());
  out.set_source(stats.last_source);
  out.set_last_error(base::Printable(stats.last_error));
  out.set_data_size(layer.data_size());
  out.set_cached_bytes(stats.cached_bytes);
  out.set_diff_id(std::string(NameOf(layer.diff_id_check())));
  return out;
}

api::MountStatus Describe(const MountedImage& image, contentstore::ContentStore& store) {
  api::MountStatus out;
  out.set_reference(image.reference);
  out.set_manifest_digest(image.manifest_digest.ToString());
  out.set_directory(image.directory);
  bool mounted = !image.directory.empty();
  if (mounted) {
    out.set_mode(std::string(fuse::ModeName(image.mode)));
    out.set_mode_reason(image.mode_reason);
  }
  for (const MountedLayer& mounted_layer : image.layers) {
    if (auto layer = store.Find(mounted_layer.digest)) *out.add_layers() = Describe(*layer, out.mode());
  }
  return out;
}

api::NotLazyLayer Describe(const snapshotter::NotLazyLayer& layer) {
  api::NotLazyLayer out;
  out.set_layer(base::Printable(layer.layer));
  out.set_reference(base::Printable(layer.reference));
  out.set_reason(layer.reason);
  out.set_detail(base::Printable(layer.detail));
  out.set_times(layer.times);
  return out;
}

void Describe(const contentstore::ScrubStatus& scrub, api::ScrubStatus* out) {
  out->set_running(scrub.running);
  if (scrub.ended != absl::InfinitePast()) out->set_ended(absl::ToUnixSeconds(scrub.ended));
  out->set_chunks(scrub.chunks);
  out->set_bytes(scrub.bytes);
  out->set_rotten(scrub.rotten);
}

// " (deleted)" is the kernel's, when the file was replaced.
std::string OwnProgram() {
  char path[4096];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof path);
  return size > 0 ? std::string(path, static_cast<size_t>(size)) : "";
}

ImageRequest FromProto(const api::ImageSource& image) {
  return {image.reference(), image.platform(), image.plain_http(), image.docker_config()};
}

class Service final : public api::Control::Service {
 public:
  explicit Service(const ControlParts& parts) : parts_(parts) {}

  grpc::Status Mount(grpc::ServerContext* context, const api::MountRequest* request,
                     grpc::ServerWriter<api::MountEvent>* writer) override {
    return Stream(context, writer, [&](auto cancel, const LayerProgress& progress) {
      return Described(parts_.mounts->Mount(FromProto(request->image()), request->directory(),
                                            request->mode(), std::move(cancel), progress));
    });
  }

  grpc::Status Index(grpc::ServerContext* context, const api::IndexRequest* request,
                     grpc::ServerWriter<api::MountEvent>* writer) override {
    return Stream(context, writer, [&](auto cancel, const LayerProgress& progress) {
      return Described(parts_.mounts->Index(FromProto(request->image()), std::move(cancel), progress));
    });
  }

  grpc::Status Prepare(grpc::ServerContext* context, const api::PrepareRequest* request,
                       grpc::ServerWriter<api::MountEvent>* writer) override {
    return Stream(context, writer, [&](auto cancel, const LayerProgress& progress) {
      return Prepared(FromProto(request->image()), std::move(cancel), progress);
    });
  }

  grpc::Status Unmount(grpc::ServerContext*, const api::UnmountRequest* request,
                       api::UnmountResponse*) override {
    if (!parts_.activity->Begin()) return Ending();
    absl::Status status = parts_.mounts->Unmount(request->directory());
    parts_.activity->End(parts_.mounts->List().size());
    return ToGrpc(status);
  }

  grpc::Status Status(grpc::ServerContext*, const api::StatusRequest* request,
                      api::StatusResponse* response) override {
    const std::string& target = request->target();
    for (const MountedImage& image : parts_.mounts->List()) {
      if (!target.empty() && target != image.directory && target != image.reference) continue;
      *response->add_mounts() = Describe(image, *parts_.store);
    }
    if (parts_.snapshotter != nullptr) DescribeSnapshots(target, response);
    if (parts_.fill != nullptr) TellFill(response);
    TellWaitingReads(response);
    if (request->probe()) DescribeMachine(response);
    Describe(parts_.store->scrub_status(), response->mutable_scrub());
    response->set_generation(parts_.generation);
    response->set_program(OwnProgram());
    if (!target.empty() && response->mounts().empty() && response->not_lazy().empty()) {
      return ToGrpc(absl::NotFoundError(absl::StrCat(base::Printable(target), ": not mounted")));
    }
    return grpc::Status::OK;
  }

  grpc::Status Upgrade(grpc::ServerContext*, const api::UpgradeRequest* request,
                       api::UpgradeResponse*) override {
    return ToGrpc(parts_.replace(request->program()));
  }

 private:
  absl::StatusOr<api::MountStatus> Described(const absl::StatusOr<MountedImage>& image) {
    if (!image.ok()) return image.status();
    return Describe(*image, *parts_.store);
  }

  // Fails only when the image cannot be resolved: a layer that cannot be lazy is the client's to unpack.
  absl::StatusOr<api::MountStatus> Prepared(const ImageRequest& request,
                                            std::shared_ptr<base::CancelToken> cancel,
                                            const LayerProgress& progress) {
    ASSIGN_OR_RETURN(auto use, parts_.prepared->Resolve(request, /*afresh=*/true, cancel));
    const ResolvedImage& image = use->image();
    api::MountStatus out;
    out.set_reference(image.reference);
    out.set_manifest_digest(image.manifest_digest.ToString());
    for (size_t i = 0; i < image.layers.size(); ++i) {
      const absl::Status status = use->AwaitLayer(i, progress);
      if (cancel->cancelled()) return absl::CancelledError("the client has gone");
      api::LayerStatus& layer = *out.add_layers();
      layer.set_digest(image.layers[i].digest.ToString());
      layer.set_size(image.layers[i].size);
      if (auto known = parts_.store->Find(image.layers[i].digest)) layer = Describe(*known, "");
      if (status.ok()) continue;
      layer.set_lazy(false);
      layer.set_reason(snapshotter::NotLazyReason(status));
      layer.set_last_error(base::Printable(status.message()));
    }
    return out;
  }

  void DescribeSnapshots(const std::string& target, api::StatusResponse* response) {
    std::set<base::Digest> seen;
    for (const snapshotter::LayerMount& mount : parts_.snapshotter->LazyMounts()) {
      if (!target.empty() || !seen.insert(mount.layer).second) continue;
      if (auto layer = parts_.store->Find(mount.layer)) {
        *response->add_snapshot_layers() = Describe(*layer, fuse::ModeName(mount.mode));
      }
    }
    for (const snapshotter::NotLazyLayer& layer : parts_.snapshotter->NotLazyLayers()) {
      if (target.empty() || target == layer.reference) *response->add_not_lazy() = Describe(layer);
    }
  }

  void TellWaitingReads(api::StatusResponse* response) {
    if (!parts_.waiting_reads) return;
    for (const fuse::FuseServer::LayerReads& reads : parts_.waiting_reads()) {
      const std::string digest = reads.layer.ToString();
      auto tell = [&](api::LayerStatus& layer) {
        if (layer.digest() != digest) return;
        layer.set_waiting_reads(reads.reads);
        layer.set_oldest_read_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(reads.oldest)));
      };
      for (api::MountStatus& mount : *response->mutable_mounts()) {
        for (api::LayerStatus& layer : *mount.mutable_layers()) tell(layer);
      }
      for (api::LayerStatus& layer : *response->mutable_snapshot_layers()) tell(layer);
    }
  }

  void TellFill(api::StatusResponse* response) {
    const auto tell = [this](api::LayerStatus& layer) {
      const auto digest = base::Digest::Parse(layer.digest());
      if (digest.ok()) layer.set_fill(parts_.fill->StateOf(*digest));
    };
    for (api::MountStatus& mount : *response->mutable_mounts()) {
      for (api::LayerStatus& layer : *mount.mutable_layers()) tell(layer);
    }
    for (api::LayerStatus& layer : *response->mutable_snapshot_layers()) tell(layer);
  }

  void DescribeMachine(api::StatusResponse* response) {
    absl::StatusOr<fuse::ProbeResult> probe = parts_.layers->Probe();
    if (probe.ok()) response->set_mode(std::string(fuse::ModeName(probe->mode)));
    response->set_mode_reason(base::Printable(probe.ok() ? probe->why : probe.status().message()));
  }

  static grpc::Status Ending() { return {grpc::StatusCode::ABORTED, "the daemon is ending; try again"}; }

  // Runs `work`, writing progress events as they come and the result as the last one. A client that goes away
  // cancels the work, and what it mounted goes with it.
  template <typename Work>
  grpc::Status Stream(grpc::ServerContext* context, grpc::ServerWriter<api::MountEvent>* writer, Work work) {
    if (!parts_.activity->Begin()) return Ending();
    absl::Cleanup end = [this] { parts_.activity->End(parts_.mounts->List().size()); };
    auto cancel = std::make_shared<base::CancelToken>();
    absl::Mutex mutex;
    ClientWatcher watcher([context] { return context->IsCancelled(); }, cancel);
    auto report = [&](const oci::Descriptor& layer, uint64_t received) {
      api::MountEvent event;
      event.mutable_progress()->set_digest(layer.digest.ToString());
      event.mutable_progress()->set_received(received);
      event.mutable_progress()->set_size(layer.size);
      absl::MutexLock lock(&mutex);
      writer->Write(event);
    };
    absl::StatusOr<api::MountStatus> image = work(cancel, LayerProgress(report));
    if (!image.ok()) return ToGrpc(image.status());
    api::MountEvent event;
    *event.mutable_done() = *image;
    absl::MutexLock lock(&mutex);
    if (context->IsCancelled() || !writer->Write(event)) {
      if (!image->directory().empty()) parts_.mounts->Unmount(image->directory()).IgnoreError();
      return grpc::Status::CANCELLED;
    }
    return grpc::Status::OK;
  }

  const ControlParts parts_;
};

class Server final : public ControlServer {
 public:
  explicit Server(const ControlParts& parts) : service_(parts), beside_(parts.beside) {}

  absl::Status Listen(const std::string& address, const containerd::SocketHolder& holder) {
    std::vector<grpc::Service*> services = beside_;
    services.push_back(&service_);
    ASSIGN_OR_RETURN(server_, containerd::GrpcServer::Start(address, services, nullptr, holder));
    return absl::OkStatus();
  }
  void LeaveSocket() override { server_->LeaveSocket(); }

 private:
  Service service_;
  const std::vector<grpc::Service*> beside_;
  std::unique_ptr<containerd::GrpcServer> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ControlServer>> ControlServer::Start(const std::string& address,
                                                                    const ControlParts& parts,
                                                                    const containerd::SocketHolder& holder) {
  auto server = std::make_unique<Server>(parts);
  RETURN_IF_ERROR(server->Listen(address, holder));
  return server;
}

}  // namespace lazyblob::daemon
