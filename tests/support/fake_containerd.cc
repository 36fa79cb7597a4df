#include "tests/support/fake_containerd.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <set>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/digest.h"
#include "proto/containerd_content.grpc.pb.h"
#include "proto/containerd_diff.grpc.pb.h"
#include "proto/containerd_images.grpc.pb.h"
#include "proto/containerd_introspection.grpc.pb.h"
#include "proto/containerd_leases.grpc.pb.h"
#include "proto/containerd_namespaces.grpc.pb.h"
#include "proto/containerd_version.grpc.pb.h"
#include "proto/snapshots.grpc.pb.h"
#include "tests/support/gate.h"

namespace lazyblob::support {
namespace {

namespace content = ::containerd::services::content::v1;
namespace diff = ::containerd::services::diff::v1;
namespace images = ::containerd::services::images::v1;
namespace introspection = ::containerd::services::introspection::v1;
namespace leases = ::containerd::services::leases::v1;
namespace namespaces = ::containerd::services::namespaces::v1;
namespace snapshots = ::containerd::services::snapshots::v1;
namespace version = ::containerd::services::version::v1;
using google::protobuf::Empty;
using grpc::ServerContext;
using grpc::Status;
using grpc::StatusCode;
using Labels = FakeContainerd::Labels;

std::string Header(const ServerContext* context, const char* name) {
  auto found = context->client_metadata().find(name);
  return found == context->client_metadata().end() ? ""
                                                   : std::string(found->second.data(), found->second.size());
}

struct State {
  mutable absl::Mutex mutex;
  std::map<std::string, FakeContainerd::Blob> blobs ABSL_GUARDED_BY(mutex);
  std::map<std::string, std::string> ingests ABSL_GUARDED_BY(mutex);
  std::set<std::string> written ABSL_GUARDED_BY(mutex);  // references that a stream holds now
  std::map<std::string, std::string> images ABSL_GUARDED_BY(mutex);
  std::map<std::string, FakeContainerd::Snapshot> snapshots ABSL_GUARDED_BY(mutex);
  std::map<std::string, std::string> leases ABSL_GUARDED_BY(mutex);
  std::vector<std::string> log ABSL_GUARDED_BY(mutex);
  std::set<std::string> namespaces ABSL_GUARDED_BY(mutex);

  void Log(const ServerContext* context, const std::string& line) ABSL_LOCKS_EXCLUDED(mutex) {
    absl::MutexLock lock(&mutex);
    namespaces.insert(Header(context, "containerd-namespace"));
    log.push_back(line);
  }
};

class Content final : public content::Content::Service {
 public:
  Content(State* state, FakeContainerd* knobs) : state_(*state), knobs_(*knobs) {}

  grpc::Status Info(ServerContext* context, const content::InfoRequest* request,
                    content::InfoResponse* response) override {
    state_.Log(context, "Info " + request->digest());
    absl::MutexLock lock(&state_.mutex);
    auto blob = state_.blobs.find(request->digest());
    if (blob == state_.blobs.end()) return {StatusCode::NOT_FOUND, "not found"};
    response->mutable_info()->mutable_labels()->insert(blob->second.labels.begin(),
                                                       blob->second.labels.end());
    return grpc::Status::OK;
  }

  grpc::Status Update(ServerContext* context, const content::UpdateRequest* request,
                      content::UpdateResponse*) override {
    state_.Log(context, "Update " + request->info().digest());
    absl::MutexLock lock(&state_.mutex);
    auto blob = state_.blobs.find(request->info().digest());
    if (blob == state_.blobs.end()) return {StatusCode::NOT_FOUND, "not found"};
    for (const std::string& path : request->update_mask().paths()) {
      if (!absl::StartsWith(path, "labels.")) return {StatusCode::INVALID_ARGUMENT, path};
      std::string key = path.substr(7);
      blob->second.labels[key] = request->info().labels().at(key);
    }
    return grpc::Status::OK;
  }

  grpc::Status Delete(ServerContext* context, const content::DeleteContentRequest* request, Empty*) override {
    state_.Log(context, "Delete " + request->digest());
    absl::MutexLock lock(&state_.mutex);
    return state_.blobs.erase(request->digest()) > 0 ? grpc::Status::OK
                                                     : grpc::Status(StatusCode::NOT_FOUND, "blob");
  }

  grpc::Status Abort(ServerContext* context, const content::AbortRequest* request, Empty*) override {
    state_.Log(context, "Abort " + request->ref());
    absl::MutexLock lock(&state_.mutex);
    state_.ingests.erase(request->ref());
    return grpc::Status::OK;
  }

  grpc::Status Write(ServerContext* context,
                     grpc::ServerReaderWriter<content::WriteContentResponse, content::WriteContentRequest>*
                         stream) override {
    content::WriteContentRequest request;
    std::string ref;
    std::string expected;
    absl::Cleanup release = [&] {
      absl::MutexLock lock(&state_.mutex);
      state_.written.erase(ref);
    };
    while (stream->Read(&request)) {
      if (!request.expected().empty()) expected = request.expected();
      if (request.action() == content::STAT) state_.Log(context, "Write " + expected);
      absl::MutexLock lock(&state_.mutex);
      if (knobs_.locked > 0) {
        --knobs_.locked;
        return {StatusCode::UNAVAILABLE, "ref locked"};
      }
      if (ref.empty()) {
        if (!state_.written.insert(request.ref()).second) return {StatusCode::UNAVAILABLE, "ref locked"};
        ref = request.ref();
      }
      if (state_.blobs.contains(expected)) return {StatusCode::ALREADY_EXISTS, expected};
      const std::string lease = Header(context, "containerd-lease");
      if (!lease.empty() && !state_.leases.contains(lease)) return {StatusCode::NOT_FOUND, "lease"};
      std::string& bytes = state_.ingests[ref];
      if (auto behind = knobs_.shared.find(expected); behind != knobs_.shared.end()) bytes = behind->second;
      if (request.action() != content::STAT && request.offset() != static_cast<int64_t>(bytes.size())) {
        return {StatusCode::OUT_OF_RANGE, "offset"};
      }
      bytes += request.data();
      content::WriteContentResponse response;
      response.set_action(request.action());
      response.set_offset(static_cast<int64_t>(bytes.size()));
      if (request.action() == content::COMMIT) {
        std::string digest = base::Digest::Of(absl::string_view(bytes)).ToString();
        if (digest != expected || request.total() != static_cast<int64_t>(bytes.size())) {
          return {StatusCode::FAILED_PRECONDITION, "unexpected commit digest " + digest};
        }
        state_.blobs[expected] = {
            bytes, {request.labels().begin(), request.labels().end()}, Header(context, "containerd-lease")};
        state_.ingests.erase(ref);
        stream->Write(response);
        return grpc::Status::OK;
      }
      stream->Write(response);
    }
    return grpc::Status::OK;
  }

 private:
  State& state_;
  FakeContainerd& knobs_;
};

class Snapshots final : public snapshots::Snapshots::Service {
 public:
  Snapshots(State* state, FakeContainerd* knobs) : state_(*state), knobs_(*knobs) {}

  Status Prepare(ServerContext* context, const snapshots::PrepareSnapshotRequest* request,
                 snapshots::PrepareSnapshotResponse* response) override {
    state_.Log(context, absl::StrCat("Prepare in ", request->snapshotter()));
    if (knobs_.prepare_gate != nullptr) {
      while (!knobs_.prepare_gate->WaitForNotificationWithTimeout(absl::Milliseconds(10))) {
        if (context->IsCancelled()) return {StatusCode::CANCELLED, "cancelled"};
      }
    }
    Labels labels(request->labels().begin(), request->labels().end());
    std::string name = labels["containerd.io/snapshot.ref"];
    absl::MutexLock lock(&state_.mutex);
    if (knobs_.vanishing > 0) {
      --knobs_.vanishing;
      return {StatusCode::ALREADY_EXISTS, name};
    }
    if (!request->parent().empty() && !state_.snapshots.contains(request->parent())) {
      return {StatusCode::NOT_FOUND, "parent"};
    }
    if (state_.snapshots.contains(name)) return {StatusCode::ALREADY_EXISTS, name};
    if (knobs_.lazy(labels["containerd.io/snapshot/cri.layer-digest"])) {
      labels["containerd.io/snapshot/remote"] = "remote snapshot";
      state_.snapshots[name] = {request->parent(), true, labels};
      return {StatusCode::ALREADY_EXISTS, name};
    }
    state_.snapshots[request->key()] = {request->parent(), false, labels};
    auto* mount = response->add_mounts();
    mount->set_type("bind");
    mount->set_source("/nowhere/" + request->key());
    return Status::OK;
  }

  Status Stat(ServerContext* context, const snapshots::StatSnapshotRequest* request,
              snapshots::StatSnapshotResponse* response) override {
    state_.Log(context, "Stat " + request->key());
    absl::MutexLock lock(&state_.mutex);
    auto found = state_.snapshots.find(request->key());
    if (found == state_.snapshots.end()) return {StatusCode::NOT_FOUND, "no such snapshot"};
    response->mutable_info()->mutable_labels()->insert(found->second.labels.begin(),
                                                       found->second.labels.end());
    return Status::OK;
  }

  Status Commit(ServerContext* context, const snapshots::CommitSnapshotRequest* request, Empty*) override {
    state_.Log(context, "Commit " + request->name());
    absl::MutexLock lock(&state_.mutex);
    auto key = state_.snapshots.find(request->key());
    if (key == state_.snapshots.end()) return {StatusCode::NOT_FOUND, "key"};
    if (state_.snapshots.contains(request->name())) return {StatusCode::ALREADY_EXISTS, "name"};
    FakeContainerd::Snapshot snapshot = key->second;
    state_.snapshots.erase(key);
    snapshot.committed = true;
    state_.snapshots[request->name()] = snapshot;
    return Status::OK;
  }

  Status Remove(ServerContext* context, const snapshots::RemoveSnapshotRequest* request, Empty*) override {
    state_.Log(context, "Remove snapshot");
    absl::MutexLock lock(&state_.mutex);
    state_.snapshots.erase(request->key());
    return Status::OK;
  }

 private:
  State& state_;
  FakeContainerd& knobs_;
};

class Images final : public images::Images::Service {
 public:
  explicit Images(State* state) : state_(*state) {}
  Status Create(ServerContext* context, const images::CreateImageRequest* request,
                images::CreateImageResponse*) override {
    state_.Log(context, "Create image " + request->image().name());
    absl::MutexLock lock(&state_.mutex);
    bool fresh = state_.images.emplace(request->image().name(), request->image().target().digest()).second;
    return fresh ? Status::OK : Status(StatusCode::ALREADY_EXISTS, "image");
  }
  Status List(ServerContext* context, const images::ListImagesRequest*,
              images::ListImagesResponse* response) override {
    state_.Log(context, "List images");
    absl::MutexLock lock(&state_.mutex);
    for (const auto& [name, target] : state_.images) response->add_images()->set_name(name);
    return Status::OK;
  }
  Status Update(ServerContext* context, const images::UpdateImageRequest* request,
                images::UpdateImageResponse*) override {
    state_.Log(context, "Update image " + request->image().name());
    absl::MutexLock lock(&state_.mutex);
    if (!state_.images.contains(request->image().name())) return {StatusCode::NOT_FOUND, "image"};
    state_.images[request->image().name()] = request->image().target().digest();
    return Status::OK;
  }

 private:
  State& state_;
};

class Namespaces final : public namespaces::Namespaces::Service {
 public:
  explicit Namespaces(State* state) : state_(*state) {}
  Status List(ServerContext*, const namespaces::ListNamespacesRequest*,
              namespaces::ListNamespacesResponse* response) override {
    absl::MutexLock lock(&state_.mutex);
    for (const std::string& name : state_.namespaces) response->add_namespaces()->set_name(name);
    return Status::OK;
  }

 private:
  State& state_;
};

class Leases final : public leases::Leases::Service {
 public:
  explicit Leases(State* state) : state_(*state) {}
  Status Create(ServerContext* context, const leases::CreateRequest* request,
                leases::CreateResponse* response) override {
    state_.Log(context, "Create lease");
    absl::MutexLock lock(&state_.mutex);
    auto expire = request->labels().find("containerd.io/gc.expire");
    state_.leases[request->id()] = expire == request->labels().end() ? "" : expire->second;
    response->mutable_lease()->set_id(request->id());
    return Status::OK;
  }
  Status Delete(ServerContext* context, const leases::DeleteRequest* request, Empty*) override {
    state_.Log(context, "Delete lease");
    absl::MutexLock lock(&state_.mutex);
    return state_.leases.erase(request->id()) > 0 ? Status::OK : Status(StatusCode::NOT_FOUND, "lease");
  }

 private:
  State& state_;
};

class Diff final : public diff::Diff::Service {
 public:
  Diff(State* state, FakeContainerd* knobs) : state_(*state), knobs_(*knobs) {}
  Status Apply(ServerContext* context, const diff::ApplyRequest* request,
               diff::ApplyResponse* response) override {
    state_.Log(context, "Apply " + request->diff().digest());
    std::string digest = knobs_.unpacks_to(request->diff().digest());
    if (digest.empty() || request->mounts_size() != 1) return {StatusCode::INTERNAL, "cannot unpack"};
    response->mutable_applied()->set_digest(digest);
    return Status::OK;
  }

 private:
  State& state_;
  FakeContainerd& knobs_;
};

class Introspection final : public introspection::Introspection::Service {
 public:
  explicit Introspection(FakeContainerd* knobs) : knobs_(*knobs) {}
  Status Plugins(ServerContext*, const introspection::PluginsRequest*,
                 introspection::PluginsResponse* response) override {
    for (const FakeContainerd::Plugin& plugin : knobs_.plugins) {
      auto* out = response->add_plugins();
      out->set_type(plugin.type);
      out->set_id(plugin.id);
      out->mutable_exports()->insert(plugin.exports.begin(), plugin.exports.end());
      for (const std::string& capability : plugin.capabilities) out->add_capabilities(capability);
      if (!plugin.init_error.empty()) out->mutable_init_err()->set_message(plugin.init_error);
    }
    return Status::OK;
  }

 private:
  FakeContainerd& knobs_;
};

class VersionService final : public version::Version::Service {
 public:
  explicit VersionService(FakeContainerd* knobs) : knobs_(*knobs) {}
  Status Version(ServerContext*, const Empty*, version::VersionResponse* response) override {
    response->set_version(knobs_.version);
    return Status::OK;
  }

 private:
  FakeContainerd& knobs_;
};

}  // namespace

class FakeContainerd::Impl {
 public:
  Impl(const std::string& socket, FakeContainerd* knobs)
      : content_(&state, knobs),
        snapshots_(&state, knobs),
        images_(&state),
        leases_(&state),
        namespaces_(&state),
        diff_(&state, knobs),
        introspection_(knobs),
        version_(knobs) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
    for (grpc::Service* service : std::initializer_list<grpc::Service*>{
             &content_, &snapshots_, &images_, &leases_, &namespaces_, &diff_, &introspection_, &version_}) {
      builder.RegisterService(service);
    }
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      fprintf(stderr, "fake containerd: cannot listen on %s\n", socket.c_str());
      abort();
    }
  }
  ~Impl() { server_->Shutdown(std::chrono::system_clock::now()); }

  State state;

 private:
  Content content_;
  Snapshots snapshots_;
  Images images_;
  Leases leases_;
  Namespaces namespaces_;
  Diff diff_;
  Introspection introspection_;
  VersionService version_;
  std::unique_ptr<grpc::Server> server_;
};

FakeContainerd::FakeContainerd(const std::string& socket) : impl_(std::make_unique<Impl>(socket, this)) {}
FakeContainerd::~FakeContainerd() = default;

std::map<std::string, FakeContainerd::Blob> FakeContainerd::blobs() const {
  absl::MutexLock lock(&impl_->state.mutex);
  return impl_->state.blobs;
}
std::map<std::string, std::string> FakeContainerd::images() const {
  absl::MutexLock lock(&impl_->state.mutex);
  return impl_->state.images;
}
std::map<std::string, FakeContainerd::Snapshot> FakeContainerd::snapshots() const {
  absl::MutexLock lock(&impl_->state.mutex);
  return impl_->state.snapshots;
}
std::map<std::string, std::string> FakeContainerd::leases() const {
  absl::MutexLock lock(&impl_->state.mutex);
  return impl_->state.leases;
}
std::vector<std::string> FakeContainerd::log() const {
  absl::MutexLock lock(&impl_->state.mutex);
  return impl_->state.log;
}
std::vector<std::string> FakeContainerd::namespaces() const {
  absl::MutexLock lock(&impl_->state.mutex);
  return {impl_->state.namespaces.begin(), impl_->state.namespaces.end()};
}
void FakeContainerd::PutBlob(const std::string& digest, const std::string& bytes, const Labels& labels) {
  absl::MutexLock lock(&impl_->state.mutex);
  impl_->state.blobs[digest] = {bytes, labels, ""};
}
void FakeContainerd::PutIngest(const std::string& ref, const std::string& bytes) {
  absl::MutexLock lock(&impl_->state.mutex);
  impl_->state.ingests[ref] = bytes;
}
void FakeContainerd::DeleteLeases() {
  absl::MutexLock lock(&impl_->state.mutex);
  impl_->state.leases.clear();
}
void FakeContainerd::PutImage(const std::string& name, const std::string& target) {
  absl::MutexLock lock(&impl_->state.mutex);
  impl_->state.images[name] = target;
}
bool FakeContainerd::AwaitLog(const std::string& prefix) const {
  State& state = impl_->state;
  absl::MutexLock lock(&state.mutex);
  auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(state.mutex) {
    return std::any_of(state.log.begin(), state.log.end(),
                       [&](const std::string& line) { return absl::StartsWith(line, prefix); });
  };
  return state.mutex.AwaitWithTimeout(absl::Condition(&there), kPatience);
}

}  // namespace lazyblob::support
