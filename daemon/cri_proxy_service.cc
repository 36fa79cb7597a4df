#include "daemon/cri_proxy_service.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "proto/cri.pb.h"

namespace lazyblob::daemon {
namespace {

bool IsImageService(absl::string_view method) {
  return absl::StartsWith(method, "/runtime.v1.ImageService/") ||
         absl::StartsWith(method, "/runtime.v1alpha2.ImageService/");
}

std::optional<runtime::v1::PullImageRequest> ParsePull(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  if (!message.Dump(&slices).ok()) return std::nullopt;
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  runtime::v1::PullImageRequest request;
  if (!request.ParseFromString(bytes)) return std::nullopt;
  return request;
}

// What belongs to the connection, not to the call.
bool IsTransportKey(absl::string_view key) {
  return absl::StartsWith(key, ":") || absl::StartsWith(key, "grpc-") || key == "user-agent" ||
         key == "content-type" || key == "te" || key == "host";
}

class Refusal final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Refusal(const std::string& method) {
    Finish(grpc::Status(grpc::StatusCode::UNIMPLEMENTED,
                        absl::StrCat("unknown method ", base::Printable(method))));
  }
  void OnDone() override { delete this; }
};

// One call: two streams, each read a message at a time and only when the other has taken the last one. Both
// hold it; it goes with the later one.
//
// The upstream call is held open for each direction, so that it is not over while the client's side may still
// start something on it.
class Forwarding final : public grpc::ServerGenericBidiReactor {
 public:
  Forwarding(grpc::GenericCallbackServerContext* context, grpc::GenericStub* stub,
             CriCredentials* credentials)
      : server_(context),
        pull_(credentials != nullptr && absl::EndsWith(context->method(), "/PullImage")),
        credentials_(credentials),
        client_(grpc::ClientContext::FromCallbackServerContext(*context)),
        upstream_(this) {
    for (const auto& [key, value] : context->client_metadata()) {
      std::string name(key.data(), key.size());
      if (!IsTransportKey(name)) client_->AddMetadata(name, std::string(value.data(), value.size()));
    }
    stub->PrepareBidiStreamingCall(client_.get(), context->method(), {}, &upstream_);
    upstream_.AddMultipleHolds(2);
    upstream_.StartRead(&answer_);
    upstream_.StartCall();
    StartRead(&request_);
  }

  // From the client.
  void OnReadDone(bool ok) override {
    {
      absl::MutexLock lock(&mutex_);
      if (!sending_open_) return;
      sending_ = true;
    }
    if (!ok) return upstream_.StartWritesDone();
    if (std::exchange(pull_, false)) Learn();
    upstream_.StartWrite(&request_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) client_->TryCancel();
    upstream_.StartRead(&answer_);
  }
  void OnCancel() override { client_->TryCancel(); }
  void OnDone() override { Release(); }

 private:
  class Upstream final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
   public:
    explicit Upstream(Forwarding* call) : call_(*call) {}
    void OnReadDone(bool ok) override { call_.Answered(ok); }
    void OnWriteDone(bool ok) override { call_.Sent(ok); }
    void OnWritesDoneDone(bool) override { call_.Sent(false); }
    void OnDone(const grpc::Status& status) override { call_.Ended(status); }

   private:
    Forwarding& call_;
  };

  void Learn() {
    std::optional<runtime::v1::PullImageRequest> request = ParsePull(request_);
    if (!request) return;
    const runtime::v1::AuthConfig& auth = request->auth();
    learnt_ = credentials_->Remember(request->image().image(),
                                     {auth.username(), auth.password(), auth.auth(), auth.server_address(),
                                      auth.identity_token(), auth.registry_token()});
  }

  // A message was handed on upstream; no more will be if not `ok`.
  void Sent(bool ok) {
    bool close = false;
    {
      absl::MutexLock lock(&mutex_);
      sending_ = false;
      close = !ok || answered_;
      sending_open_ = !close;
    }
    if (close) {
      upstream_.RemoveHold();
    } else {
      StartRead(&request_);
    }
  }

  void Answered(bool ok) {
    if (ok) return StartWrite(&answer_);
    bool close = false;
    {
      absl::MutexLock lock(&mutex_);
      answered_ = true;
      // Else Sent does it.
      close = sending_open_ && !sending_;
      if (close) sending_open_ = false;
    }
    if (close) upstream_.RemoveHold();
    upstream_.RemoveHold();
  }

  void Ended(const grpc::Status& status) {
    if (!status.ok() && learnt_ != 0) credentials_->Undo(learnt_);
    for (const auto& [key, value] : client_->GetServerTrailingMetadata()) {
      std::string name(key.data(), key.size());
      if (!IsTransportKey(name)) server_->AddTrailingMetadata(name, std::string(value.data(), value.size()));
    }
    Finish(status);
    Release();
  }

  void Release() {
    if (holders_.fetch_sub(1) == 1) delete this;
  }

  grpc::GenericCallbackServerContext* const server_;
  bool pull_;  // the next message from the client is a PullImageRequest
  CriCredentials* const credentials_;
  const std::unique_ptr<grpc::ClientContext> client_;
  std::atomic<int> holders_{2};
  uint64_t learnt_ = 0;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer answer_;
  absl::Mutex mutex_;
  bool sending_ ABSL_GUARDED_BY(mutex_) = false;      // a message is on its way upstream
  bool sending_open_ ABSL_GUARDED_BY(mutex_) = true;  // more may follow
  bool answered_ ABSL_GUARDED_BY(mutex_) = false;     // nothing more comes from upstream
  Upstream upstream_;
};

class Proxy final : public CriProxy, private grpc::CallbackGenericService {
 public:
  Proxy(const std::shared_ptr<grpc::Channel>& channel, CriCredentials* credentials)
      : stub_(channel), credentials_(credentials) {}

  grpc::CallbackGenericService* service() override { return this; }

 private:
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext* context) override {
    if (!IsImageService(context->method())) return new Refusal(context->method());
    return new Forwarding(context, &stub_, credentials_);
  }

  grpc::GenericStub stub_;
  CriCredentials* const credentials_;
};

}  // namespace

std::unique_ptr<CriProxy> CriProxy::Create(const std::string& socket, CriCredentials* credentials) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  // containerd may start after us, and be restarted.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  return std::make_unique<Proxy>(
      grpc::CreateCustomChannel("unix:" + socket, grpc::InsecureChannelCredentials(), arguments),
      credentials);
}

}  // namespace lazyblob::daemon
