#pragma once

// The socket that containerd is told of, and the services behind it.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/file.h"

namespace grpc {
class CallbackGenericService;
class Service;
}  // namespace grpc

namespace lazyblob::containerd {

constexpr int kMaxMessageBytes = 16 << 20;  // both ways, as containerd has it

// Who keeps the listening socket while no process serves it: connections made meanwhile wait. Both functions
// may be null. `place` tells apart the sockets that stood at one address.
struct SocketHolder {
  std::function<absl::StatusOr<base::UniqueFd>(const std::string& place)> take;
  // May fail: the socket then ends with this process.
  std::function<absl::Status(int socket, const std::string& place)> keep;
  // Nobody else can be listening: what answers is a predecessor that is not quite dead, and is replaced.
  bool replace = false;
};

// Serves until destroyed; the destructor cancels calls that have not ended after half a second. Thread-safe.
class GrpcServer {
 public:
  // Listens on the unix socket `address` (an absolute path, of any length), mode 0600. Its directory is made
  // 0700 when missing; FailedPrecondition when it is not the caller's own, not 0700, or a symbolic link, and
  // when the address is something else than a socket. A socket that a dead predecessor left is replaced;
  // AlreadyExists when somebody answers there. `others`, if not null, gets the methods that no service has.
  // The services outlive the server.
  // A socket that `holder` keeps is listened on as it is, with the connections that wait there.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const std::string& address,
                                                           const std::vector<grpc::Service*>& services,
                                                           grpc::CallbackGenericService* others = nullptr,
                                                           const SocketHolder& holder = {});
  // The destructor is to leave the socket where it is, for a successor; connections wait for that. Else it
  // removes the socket, and those who wait are turned away.
  virtual void LeaveSocket() = 0;
  virtual ~GrpcServer() = default;
};

}  // namespace lazyblob::containerd
