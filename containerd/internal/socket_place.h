#pragma once

// Where a unix socket of ours stands: a directory that nobody else can enter, and a name in it. Not
// thread-safe.

#include <string>

#include "absl/status/statusor.h"
#include "base/file.h"

namespace lazyblob::containerd::internal {

class SocketPlace {
 public:
  // Prepares the directory and removes a socket on which nobody listens; errors as of GrpcServer::Start.
  static absl::StatusOr<SocketPlace> Take(const std::string& address);

  // A path of the socket that is short enough for bind(2); valid while the object lives.
  std::string ShortPath() const;
  // Once the socket is bound: 0600.
  absl::Status Secure() const;
  // Removes the socket.
  void Remove() const;

 private:
  base::UniqueFd directory_;
  std::string address_;
  std::string name_;
};

}  // namespace lazyblob::containerd::internal
