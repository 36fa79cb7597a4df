#pragma once

// The socket that containerd is told of, and the services behind it.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace grpc {
class CallbackGenericService;
class Service;
}  // namespace grpc

namespace lazyblob::containerd {

constexpr int kMaxMessageBytes = 16 << 20;  // both ways, as containerd has it

// Serves until destroyed; the destructor cancels calls that have not ended after half a second. Thread-safe.
class GrpcServer {
 public:
  // Listens on the unix socket `address` (an absolute path, of any length), mode 0600. Its directory is made
  // 0700 when missing; FailedPrecondition when it is not the caller's own, not 0700, or a symbolic link, and
  // when the address is something else than a socket. A socket that a dead predecessor left is replaced;
  // AlreadyExists when somebody answers there. `others`, if not null, gets the methods that no service has.
  // The services outlive the server.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const std::string& address,
                                                           const std::vector<grpc::Service*>& services,
                                                           grpc::CallbackGenericService* others = nullptr);
  virtual ~GrpcServer() = default;
};

}  // namespace lazyblob::containerd
