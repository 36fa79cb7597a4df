#pragma once

// CRI's image service, passed on to containerd's: kubelet asks lazyblob, lazyblob learns the credentials of
// its pulls and hands every call on as it came.

#include <memory>
#include <string>

#include "daemon/cri_credentials.h"

namespace grpc {
class CallbackGenericService;
}  // namespace grpc

namespace lazyblob::daemon {

// Answers every method of runtime.v1.ImageService and runtime.v1alpha2.ImageService, unary or streaming, with
// what the service behind `socket` answers: messages byte for byte, status with details, trailers; deadlines
// and cancellation go along. Other methods are UNIMPLEMENTED. While nobody answers there, calls end with
// UNAVAILABLE. Thread-safe; outlives the servers that it is part of.
class CriProxy {
 public:
  // `socket`: path of a unix socket. `credentials` may be null (nothing is learnt); else it outlives the
  // object.
  static std::unique_ptr<CriProxy> Create(const std::string& socket, CriCredentials* credentials);
  virtual ~CriProxy() = default;

  // For grpc::ServerBuilder::RegisterCallbackGenericService; it gets what no other service of the server has.
  virtual grpc::CallbackGenericService* service() = 0;
};

}  // namespace lazyblob::daemon
