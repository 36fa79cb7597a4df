#pragma once

// What the services have in common: calls are worked off by thread pools of a service's own, not by gRPC's
// threads, and errors go out by the one table. For *_service.cc only.

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <exception>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/cancel.h"
#include "base/thread_pool.h"
#include "containerd/wire_status.h"
#include "google/protobuf/timestamp.pb.h"

namespace lazyblob::containerd {

constexpr int kListBatch = 100;              // elements in one message of a list, at most
constexpr size_t kListBatchBytes = 1 << 20;  // a message is sent once it has this many bytes

inline grpc::Status ToGrpc(const absl::Status& status) {
  absl::Status wire = WireStatus(status);
  // absl's codes are gRPC's numbers.
  return grpc::Status(static_cast<grpc::StatusCode>(wire.code()), std::string(wire.message()));
}

inline absl::Status ClientGone() { return absl::CancelledError("the client went away"); }

// An exception is an error of its call.
inline absl::Status Guard(absl::FunctionRef<absl::Status()> work) {
  try {
    return work();
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("exception: ", error.what()));
  } catch (...) {
    return absl::InternalError("exception");
  }
}

// Timestamps know the years 1 to 9999.
inline google::protobuf::Timestamp ToProto(absl::Time time) {
  const absl::Time lowest = absl::FromUnixSeconds(-62'135'596'800);
  const absl::Time highest = absl::FromUnixSeconds(253'402'300'799);
  timespec spec = absl::ToTimespec(std::clamp(time, lowest, highest));
  google::protobuf::Timestamp out;
  out.set_seconds(spec.tv_sec);
  out.set_nanos(static_cast<int32_t>(spec.tv_nsec));
  return out;
}

// The wire has signed numbers.
inline int64_t ClampToWire(uint64_t value) {
  return static_cast<int64_t>(std::min<uint64_t>(value, std::numeric_limits<int64_t>::max()));
}

// A unary call; ends with End. Its client going away cancels the token.
class Call final : public grpc::ServerUnaryReactor {
 public:
  // Runs `work(call)` on the pool; what it returns ends the call. Request and response live until then.
  template <typename Work>
  static grpc::ServerUnaryReactor* Run(base::ThreadPool* pool, Work work) {
    auto* call = new Call;
    pool->Schedule([call, work = std::move(work)] {
      if (call->token()->cancelled()) return call->End(ClientGone());
      call->End(Guard([&] { return work(call); }));
    });
    return call;
  }

  const std::shared_ptr<base::CancelToken>& token() const { return token_; }

 private:
  void End(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnCancel() override { token_->Cancel(); }
  void OnDone() override { delete this; }

  const std::shared_ptr<base::CancelToken> token_ = std::make_shared<base::CancelToken>();
};

// The messages of a list (`Response` has one repeated field `info`), sent at the client's pace.
template <typename Response>
class ListStream final : public grpc::ServerWriteReactor<Response> {
 public:
  // Fills the messages by `walk(stream)`, on a thread of the pool; then they go out without one.
  template <typename Walk>
  static ListStream* Run(base::ThreadPool* pool, Walk walk) {
    auto* stream = new ListStream;
    pool->Schedule([stream, walk = std::move(walk)] {
      absl::Status status = Guard([&] { return walk(stream); });
      if (!status.ok()) return stream->Finish(ToGrpc(status));
      stream->Next();
    });
    return stream;
  }

  template <typename Element>
  absl::Status Add(Element element) {
    if (token_.cancelled()) return ClientGone();
    const size_t bytes = element.ByteSizeLong();
    if (messages_.empty() || messages_.back().info_size() == kListBatch || bytes_ + bytes > kListBatchBytes) {
      messages_.emplace_back();
      bytes_ = 0;
    }
    bytes_ += bytes;
    *messages_.back().add_info() = std::move(element);
    return absl::OkStatus();
  }

 private:
  void Next() {
    if (next_ == messages_.size()) return this->Finish(grpc::Status::OK);
    this->StartWrite(&messages_[next_++]);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return this->Finish(grpc::Status::CANCELLED);
    Next();
  }
  void OnCancel() override { token_.Cancel(); }
  void OnDone() override { delete this; }

  base::CancelToken token_;
  std::vector<Response> messages_;
  size_t bytes_ = 0;  // of the last message
  size_t next_ = 0;
};

}  // namespace lazyblob::containerd
