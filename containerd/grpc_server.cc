#include "containerd/grpc_server.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/server_posix.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "containerd/internal/socket_place.h"

namespace lazyblob::containerd {
namespace {

// Accepts on a listening socket, on a thread of its own, until destroyed.
class Acceptor {
 public:
  // `socket` outlives the object; `on_connection` owns what it gets.
  Acceptor(int socket, std::function<void(int)> on_connection)
      : socket_(socket), stop_(eventfd(0, EFD_CLOEXEC)), on_connection_(std::move(on_connection)) {}
  ~Acceptor() {
    if (!thread_.joinable()) return;
    eventfd_write(stop_.get(), 1);
    thread_.join();
  }
  Acceptor(const Acceptor&) = delete;

  absl::Status Start() {
    if (!stop_.valid()) return base::ErrnoStatus(errno, "eventfd");
    thread_ = std::thread([this] { Run(); });
    return absl::OkStatus();
  }

 private:
  static constexpr int kPauseMs = 100;

  void Run() {
    pthread_setname_np(pthread_self(), "lb-accept");
    pollfd waits[] = {{stop_.get(), POLLIN, 0}, {socket_, POLLIN, 0}};
    for (;;) {
      if (poll(waits, 2, -1) < 0 && errno != EINTR) return;
      if (waits[0].revents != 0) return;
      const int connection = accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      if (connection >= 0) {
        on_connection_(connection);
      } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        poll(waits, 1, kPauseMs);  // until something is closed
      } else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
        return;
      }
    }
  }

  const int socket_;
  const base::UniqueFd stop_;
  const std::function<void(int)> on_connection_;
  std::thread thread_;
};

class Server final : public GrpcServer {
 public:
  explicit Server(internal::SocketPlace place) : place_(std::move(place)) {}
  ~Server() override {
    acceptor_.reset();
    if (!leave_socket_ && listener_.valid()) {
      place_.Remove();
      // For the duplicates of whoever holds it, too.
      shutdown(listener_.get(), SHUT_RDWR);
      for (int waiting; (waiting = accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)) >= 0;)
        close(waiting);
    }
    if (server_ == nullptr) return;
    server_->Shutdown(gpr_time_from_millis(500, GPR_TIMESPAN));
    server_->Wait();
  }

  absl::Status Listen(const std::string& address, const std::vector<grpc::Service*>& services,
                      grpc::CallbackGenericService* others, const SocketHolder& holder) {
    grpc::ServerBuilder builder;
    grpc::ResourceQuota quota("lazyblobd");
    quota.SetMaxThreads(256);  // of services that are not of the callback kind: a call that waits has one
    builder.SetResourceQuota(quota);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    for (grpc::Service* service : services) builder.RegisterService(service);
    if (others != nullptr) builder.RegisterCallbackGenericService(others);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) return absl::InternalError(absl::StrCat("cannot serve at ", address));
    ASSIGN_OR_RETURN(listener_, place_.Listen(holder));
    // gRPC can listen only on sockets that it has bound itself.
    acceptor_ = std::make_unique<Acceptor>(listener_.get(), [this](int connection) {
      grpc::AddInsecureChannelFromFd(server_.get(), connection);
    });
    return acceptor_->Start();
  }

  void LeaveSocket() override { leave_socket_ = true; }

 private:
  internal::SocketPlace place_;
  base::UniqueFd listener_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Acceptor> acceptor_;
  std::atomic<bool> leave_socket_{false};
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const std::string& address,
                                                              const std::vector<grpc::Service*>& services,
                                                              grpc::CallbackGenericService* others,
                                                              const SocketHolder& holder) {
  ASSIGN_OR_RETURN(internal::SocketPlace place, internal::SocketPlace::Open(address));
  auto server = std::make_unique<Server>(std::move(place));
  RETURN_IF_ERROR(server->Listen(address, services, others, holder));
  return server;
}

}  // namespace lazyblob::containerd
