#pragma once

// Where a unix socket of ours stands: a directory that nobody else can enter, and a name in it. Not
// thread-safe.

#include <string>

#include "absl/status/statusor.h"
#include "base/file.h"
#include "containerd/grpc_server.h"

namespace lazyblob::containerd::internal {

class SocketPlace {
 public:
  // Prepares the directory; errors as of GrpcServer::Start.
  static absl::StatusOr<SocketPlace> Open(const std::string& address);

  // A non-blocking socket that listens there: the holder's, or a new one (0600), which the holder gets. A
  // socket on which nobody listens is removed before.
  absl::StatusOr<base::UniqueFd> Listen(const SocketHolder& holder) const;
  // Removes the socket.
  void Remove() const;

 private:
  // A path of the socket that is short enough for bind(2); valid while the object lives.
  std::string ShortPath() const;
  // Names the socket that stands there; "" if there is nothing.
  absl::StatusOr<std::string> Identity() const;
  absl::StatusOr<base::UniqueFd> Bind() const;

  base::UniqueFd directory_;
  std::string address_;
  std::string name_;
};

}  // namespace lazyblob::containerd::internal
