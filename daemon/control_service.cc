#include "daemon/control_service.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "base/file.h"
#include "base/status.h"
#include "proto/control.grpc.pb.h"

namespace lazyblob::daemon {
namespace {

namespace api = ::lazyblob::control::v1;

constexpr absl::Duration kWatchInterval = absl::Milliseconds(100);

// absl's codes are gRPC's numbers.
grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
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
  out.set_lazy(layer.state() == contentstore::LayerState::kLazy);
  out.set_reason(layer.not_lazy_reason());
  out.set_source(stats.last_source);
  out.set_last_error(base::Printable(stats.last_error));
  out.set_data_size(layer.data_size());
  out.set_cached_bytes(stats.cached_bytes);
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

ImageRequest FromProto(const api::ImageSource& image) {
  return {image.reference(), image.platform(), image.plain_http(), image.docker_config()};
}

class Service final : public api::Control::Service {
 public:
  Service(MountManager* mounts, contentstore::ContentStore* store, Activity* activity)
      : mounts_(mounts), store_(store), activity_(activity) {}

  grpc::Status Mount(grpc::ServerContext* context, const api::MountRequest* request,
                     grpc::ServerWriter<api::MountEvent>* writer) override {
    return Stream(context, writer, [&](auto cancel, const LayerProgress& progress) {
      return mounts_->Mount(FromProto(request->image()), request->directory(), request->mode(),
                            std::move(cancel), progress);
    });
  }

  grpc::Status Index(grpc::ServerContext* context, const api::IndexRequest* request,
                     grpc::ServerWriter<api::MountEvent>* writer) override {
    return Stream(context, writer, [&](auto cancel, const LayerProgress& progress) {
      return mounts_->Index(FromProto(request->image()), std::move(cancel), progress);
    });
  }

  grpc::Status Unmount(grpc::ServerContext*, const api::UnmountRequest* request,
                       api::UnmountResponse*) override {
    if (!activity_->Begin()) return Ending();
    absl::Status status = mounts_->Unmount(request->directory());
    activity_->End(mounts_->List().size());
    return ToGrpc(status);
  }

  grpc::Status Status(grpc::ServerContext*, const api::StatusRequest* request,
                      api::StatusResponse* response) override {
    for (const MountedImage& image : mounts_->List()) {
      const std::string& target = request->target();
      if (!target.empty() && target != image.directory && target != image.reference) continue;
      *response->add_mounts() = Describe(image, *store_);
    }
    if (response->mounts().empty() && !request->target().empty()) {
      return ToGrpc(absl::NotFoundError(absl::StrCat(base::Printable(request->target()), ": not mounted")));
    }
    return grpc::Status::OK;
  }

 private:
  static grpc::Status Ending() { return {grpc::StatusCode::ABORTED, "the daemon is ending; try again"}; }

  // Cancels `token` when the client of `context` goes away; lives as long as the call.
  class Watcher {
   public:
    Watcher(grpc::ServerContext* context, std::shared_ptr<base::CancelToken> token)
        : thread_([this, context, token = std::move(token)] {
            while (!done_.WaitForNotificationWithTimeout(kWatchInterval)) {
              if (context->IsCancelled()) return token->Cancel();
            }
          }) {}
    ~Watcher() {
      done_.Notify();
      thread_.join();
    }

   private:
    absl::Notification done_;
    std::thread thread_;
  };

  // Runs `work`, writing progress events as they come and the result as the last one. A client that goes away
  // cancels the work, and what it mounted goes with it.
  template <typename Work>
  grpc::Status Stream(grpc::ServerContext* context, grpc::ServerWriter<api::MountEvent>* writer, Work work) {
    if (!activity_->Begin()) return Ending();
    absl::Cleanup end = [this] { activity_->End(mounts_->List().size()); };
    auto cancel = std::make_shared<base::CancelToken>();
    absl::Mutex mutex;
    Watcher watcher(context, cancel);
    auto report = [&](const oci::Descriptor& layer, uint64_t received) {
      api::MountEvent event;
      event.mutable_progress()->set_digest(layer.digest.ToString());
      event.mutable_progress()->set_received(received);
      event.mutable_progress()->set_size(layer.size);
      absl::MutexLock lock(&mutex);
      writer->Write(event);
    };
    absl::StatusOr<MountedImage> image = work(cancel, LayerProgress(report));
    if (!image.ok()) return ToGrpc(image.status());
    api::MountEvent event;
    *event.mutable_done() = Describe(*image, *store_);
    absl::MutexLock lock(&mutex);
    if (context->IsCancelled() || !writer->Write(event)) {
      if (!image->directory.empty()) mounts_->Unmount(image->directory).IgnoreError();
      return grpc::Status::CANCELLED;
    }
    return grpc::Status::OK;
  }

  MountManager* const mounts_;
  contentstore::ContentStore* const store_;
  Activity* const activity_;
};

class Server final : public ControlServer {
 public:
  Server(MountManager* mounts, contentstore::ContentStore* store, Activity* activity)
      : service_(mounts, store, activity) {}
  ~Server() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
    unlinkat(directory_.get(), name_.c_str(), 0);
  }

  absl::Status Listen(const std::string& directory, const std::string& name) {
    ASSIGN_OR_RETURN(directory_, base::OpenFile(directory, O_RDONLY | O_DIRECTORY));
    name_ = name;
    unlinkat(directory_.get(), name.c_str(), 0);
    // Through the descriptor, since a socket's path may have 107 bytes at most.
    std::string path = absl::StrCat("/proc/self/fd/", directory_.get(), "/", name);
    grpc::ServerBuilder builder;
    grpc::ResourceQuota quota("control");
    quota.SetMaxThreads(64);
    builder.SetResourceQuota(quota);
    builder.AddListeningPort("unix:" + path, grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::InternalError(absl::StrCat("listen on ", directory, "/", name));
    if (fchmodat(directory_.get(), name.c_str(), 0600, 0) != 0)
      return base::ErrnoStatus(errno, "chmod of socket");
    return absl::OkStatus();
  }

 private:
  Service service_;
  base::UniqueFd directory_;
  std::string name_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ControlServer>> ControlServer::Start(const std::string& directory,
                                                                    const std::string& name,
                                                                    MountManager* mounts,
                                                                    contentstore::ContentStore* store,
                                                                    Activity* activity) {
  auto server = std::make_unique<Server>(mounts, store, activity);
  RETURN_IF_ERROR(server->Listen(directory, name));
  return server;
}

}  // namespace lazyblob::daemon
