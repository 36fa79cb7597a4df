#include "snapshotter/snapshots_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cerrno>
#include <exception>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/cancel.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "proto/snapshots.grpc.pb.h"
#include "snapshotter/internal/socket_place.h"
#include "snapshotter/labels.h"

namespace lazyblob::snapshotter {
namespace {

namespace api = ::containerd::services::snapshots::v1;
using google::protobuf::Empty;
using google::protobuf::Timestamp;

grpc::Status ToGrpc(const absl::Status& status) {
  absl::Status wire = WireStatus(status);
  // absl's codes are gRPC's numbers.
  return grpc::Status(static_cast<grpc::StatusCode>(wire.code()), std::string(wire.message()));
}

absl::Status Guard(absl::FunctionRef<absl::Status()> work) {
  try {
    return work();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("exception: ", error.what()));
  } catch (...) {
    return absl::InternalError("exception");
  }
}

Labels FromProto(const google::protobuf::Map<std::string, std::string>& labels) {
  return Labels(labels.begin(), labels.end());
}

// Timestamps know the years 1 to 9999.
Timestamp ToProto(absl::Time time) {
  const absl::Time lowest = absl::FromUnixSeconds(-62'135'596'800);
  const absl::Time highest = absl::FromUnixSeconds(253'402'300'799);
  timespec spec = absl::ToTimespec(std::clamp(time, lowest, highest));
  Timestamp out;
  out.set_seconds(spec.tv_sec);
  out.set_nanos(static_cast<int32_t>(spec.tv_nsec));
  return out;
}

api::Info ToProto(const Info& info) {
  api::Info out;
  out.set_name(info.name);
  out.set_parent(info.parent);
  out.set_kind(static_cast<api::Kind>(info.kind));
  *out.mutable_created_at() = ToProto(info.created);
  *out.mutable_updated_at() = ToProto(info.updated);
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

int64_t Clamp(uint64_t value) {
  return static_cast<int64_t>(std::min<uint64_t>(value, std::numeric_limits<int64_t>::max()));
}

// A unary call; ends with Finish. Its client going away cancels the token.
class Call final : public grpc::ServerUnaryReactor {
 public:
  const std::shared_ptr<base::CancelToken>& token() const { return token_; }
  void End(const absl::Status& status) { Finish(ToGrpc(status)); }

 private:
  void OnCancel() override { token_->Cancel(); }
  void OnDone() override { delete this; }

  const std::shared_ptr<base::CancelToken> token_ = std::make_shared<base::CancelToken>();
};

// The messages of one List, sent at the client's pace.
class ListStream final : public grpc::ServerWriteReactor<api::ListSnapshotsResponse> {
 public:
  // Fills the messages, on a thread of the server's; then they go out without one.
  void Run(Snapshotter* snapshotter, const std::vector<std::string>& filters) {
    absl::Status status = Guard([&] {
      return snapshotter->List(filters, [&](const Info& info) {
        if (cancelled()) return absl::CancelledError("the client went away");
        Add(ToProto(info));
        return absl::OkStatus();
      });
    });
    if (!status.ok()) return Finish(ToGrpc(status));
    Next();
  }

 private:
  void Add(api::Info info) {
    const size_t bytes = info.ByteSizeLong();
    if (messages_.empty() || messages_.back().info_size() == kListBatch || bytes_ + bytes > kListBatchBytes) {
      messages_.emplace_back();
      bytes_ = 0;
    }
    bytes_ += bytes;
    *messages_.back().add_info() = std::move(info);
  }

  void Next() {
    if (next_ == messages_.size()) return Finish(grpc::Status::OK);
    StartWrite(&messages_[next_++]);
  }

  bool cancelled() const {
    absl::MutexLock lock(&mutex_);
    return cancelled_;
  }

  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::CANCELLED);
    Next();
  }
  void OnCancel() override {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
  }
  void OnDone() override { delete this; }

  std::vector<api::ListSnapshotsResponse> messages_;
  size_t bytes_ = 0;  // of the last message
  size_t next_ = 0;
  mutable absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
};

class Service final : public api::Snapshots::CallbackService {
 public:
  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  explicit Service(Snapshotter* snapshotter) : snapshotter_(snapshotter) {}

  Reactor* Prepare(Context*, const api::PrepareSnapshotRequest* request,
                   api::PrepareSnapshotResponse* response) override {
    const bool layer = request->labels().contains(kLabelSnapshotRef);
    return Run(layer ? &layers_ : &calls_, [=, this](Call* call) {
      return SetMounts(snapshotter_->Prepare(request->key(), request->parent(), FromProto(request->labels()),
                                             call->token()),
                       response);
    });
  }

  Reactor* View(Context*, const api::ViewSnapshotRequest* request,
                api::ViewSnapshotResponse* response) override {
    return Run(&calls_, [=, this](Call*) {
      return SetMounts(snapshotter_->View(request->key(), request->parent(), FromProto(request->labels())),
                       response);
    });
  }

  Reactor* Mounts(Context*, const api::MountsRequest* request, api::MountsResponse* response) override {
    return Run(&calls_,
               [=, this](Call*) { return SetMounts(snapshotter_->Mounts(request->key()), response); });
  }

  Reactor* Commit(Context*, const api::CommitSnapshotRequest* request, Empty*) override {
    return Run(&calls_, [=, this](Call*) {
      return snapshotter_->Commit(request->name(), request->key(), FromProto(request->labels()),
                                  request->parent());
    });
  }

  Reactor* Remove(Context*, const api::RemoveSnapshotRequest* request, Empty*) override {
    return Run(&calls_, [=, this](Call*) { return snapshotter_->Remove(request->key()); });
  }

  Reactor* Stat(Context*, const api::StatSnapshotRequest* request,
                api::StatSnapshotResponse* response) override {
    return Run(&calls_, [=, this](Call*) -> absl::Status {
      ASSIGN_OR_RETURN(Info info, snapshotter_->Stat(request->key()));
      *response->mutable_info() = ToProto(info);
      return absl::OkStatus();
    });
  }

  Reactor* Update(Context*, const api::UpdateSnapshotRequest* request,
                  api::UpdateSnapshotResponse* response) override {
    return Run(&calls_, [=, this](Call*) -> absl::Status {
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
    auto* stream = new ListStream;
    calls_.Schedule([this, stream, request] {
      stream->Run(snapshotter_, {request->filters().begin(), request->filters().end()});
    });
    return stream;
  }

  Reactor* Usage(Context*, const api::UsageRequest* request, api::UsageResponse* response) override {
    return Run(&calls_, [=, this](Call*) -> absl::Status {
      ASSIGN_OR_RETURN(snapshotter::Usage usage, snapshotter_->GetUsage(request->key()));
      response->set_size(Clamp(usage.bytes));
      response->set_inodes(Clamp(usage.inodes));
      return absl::OkStatus();
    });
  }

  Reactor* Cleanup(Context*, const api::CleanupRequest*, Empty*) override {
    return Run(&calls_, [this](Call*) { return snapshotter_->Cleanup(); });
  }

 private:
  // Requests and responses live until the reactor has finished.
  template <typename Work>
  static Reactor* Run(base::ThreadPool* pool, Work work) {
    auto* call = new Call;
    pool->Schedule([call, work = std::move(work)] {
      if (call->token()->cancelled()) return call->End(absl::CancelledError("the client went away"));
      call->End(Guard([&] { return work(call); }));
    });
    return call;
  }

  Snapshotter* const snapshotter_;
  base::ThreadPool layers_{"lb-layers", kLayerThreads};
  base::ThreadPool calls_{"lb-calls", kCallThreads};
};

class Server final : public SnapshotServer {
 public:
  Server(internal::SocketPlace place, Snapshotter* snapshotter)
      : place_(std::move(place)), service_(snapshotter) {}
  ~Server() override {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
    server_->Wait();
    place_.Remove();
  }

  absl::Status Listen(const std::string& address, const std::vector<grpc::Service*>& services,
                      grpc::CallbackGenericService* others) {
    grpc::ServerBuilder builder;
    grpc::ResourceQuota quota("snapshots");
    quota.SetMaxThreads(128);  // of the further services
    builder.SetResourceQuota(quota);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    builder.AddListeningPort("unix:" + place_.ShortPath(), grpc::InsecureServerCredentials());
    builder.RegisterService(&service_);
    for (grpc::Service* service : services) builder.RegisterService(service);
    if (others != nullptr) builder.RegisterCallbackGenericService(others);
    if (others != nullptr) builder.RegisterCallbackGenericService(others);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::InternalError(absl::StrCat("cannot listen on ", address));
    return place_.Secure();
  }

 private:
  internal::SocketPlace place_;
  Service service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::Status WireStatus(const absl::Status& status) {
  if (status.ok()) return status;
  absl::StatusCode code = status.code();
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kUnavailable:
      if (base::HasErrno(status)) code = absl::StatusCode::kInternal;
      break;
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnimplemented:
      break;
    default:
      code = absl::StatusCode::kInternal;
  }
  std::string message(status.message().substr(0, kMaxStatusMessage));
  for (int i = 0; i < 3 && !base::IsUtf8(message); ++i) message.pop_back();  // cut inside a character
  // Clients tell some errors by how their text ends, and would take this one for another.
  if (absl::EndsWith(message, "conflict") || absl::EndsWith(message, "not modified")) message.push_back('.');
  return absl::Status(code, message);
}

absl::StatusOr<std::unique_ptr<SnapshotServer>> SnapshotServer::Start(
    const std::string& address, Snapshotter* snapshotter, const std::vector<grpc::Service*>& services,
    grpc::CallbackGenericService* others) {
  ASSIGN_OR_RETURN(internal::SocketPlace place, internal::SocketPlace::Take(address));
  auto server = std::make_unique<Server>(std::move(place), snapshotter);
  RETURN_IF_ERROR(server->Listen(address, services, others));
  return server;
}

}  // namespace lazyblob::snapshotter
