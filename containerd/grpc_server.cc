#include "containerd/grpc_server.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "containerd/internal/socket_place.h"

namespace lazyblob::containerd {
namespace {

class Server final : public GrpcServer {
 public:
  explicit Server(internal::SocketPlace place) : place_(std::move(place)) {}
  ~Server() override {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
    server_->Wait();
    place_.Remove();
  }

  absl::Status Listen(const std::string& address, const std::vector<grpc::Service*>& services,
                      grpc::CallbackGenericService* others) {
    grpc::ServerBuilder builder;
    grpc::ResourceQuota quota("containerd");
    quota.SetMaxThreads(128);  // of services that are not of the callback kind
    builder.SetResourceQuota(quota);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    builder.AddListeningPort("unix:" + place_.ShortPath(), grpc::InsecureServerCredentials());
    for (grpc::Service* service : services) builder.RegisterService(service);
    if (others != nullptr) builder.RegisterCallbackGenericService(others);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::InternalError(absl::StrCat("cannot listen on ", address));
    return place_.Secure();
  }

 private:
  internal::SocketPlace place_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const std::string& address,
                                                              const std::vector<grpc::Service*>& services,
                                                              grpc::CallbackGenericService* others) {
  ASSIGN_OR_RETURN(internal::SocketPlace place, internal::SocketPlace::Take(address));
  auto server = std::make_unique<Server>(std::move(place));
  RETURN_IF_ERROR(server->Listen(address, services, others));
  return server;
}

}  // namespace lazyblob::containerd
