#pragma once

// A transport that answers from a script and keeps a log: the network of the registry unit tests.
// Thread-safe.

#include <atomic>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/status.h"
#include "registry/internal/core.h"
#include "registry/internal/transport.h"

namespace lazyblob::registry::internal {

struct Reply {
  int status = 200;
  Headers headers;
  std::string body;
  absl::Status before;   // instead of a response
  absl::Status after;    // once the body was handed over: a connection that broke
  size_t piece = 65536;  // bytes per OnBody
};

inline Reply Status(int status, Headers headers = {}, std::string body = "") {
  Reply reply;
  reply.status = status;
  reply.headers = std::move(headers);
  reply.body = std::move(body);
  return reply;
}

// What was asked for, as tests like to compare it.
struct Seen {
  std::string line;  // "GET https://host:443/path?query"
  Headers headers;
  std::string body;
  bool allow_local_address = true;
  TlsPtr tls;

  std::string Header(absl::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return value;
    }
    return "";
  }
};

// The conversation; outlives the transport that a client owns.
class FakeNetwork {
 public:
  using Script = std::function<Reply(const Seen&)>;
  explicit FakeNetwork(Script script) : script_(std::move(script)) {}

  std::unique_ptr<Transport> MakeTransport() { return std::make_unique<Fake>(this); }

  std::vector<Seen> log() const {
    absl::MutexLock lock(&mutex_);
    return log_;
  }
  size_t Count(absl::string_view part) const {
    size_t count = 0;
    for (const Seen& seen : log()) count += absl::StrContains(seen.line, part) ? 1 : 0;
    return count;
  }

 private:
  class Fake final : public Transport {
   public:
    explicit Fake(FakeNetwork* network) : network_(*network) {}
    absl::Status Perform(const HttpRequest& request, ResponseHandler* handler,
                         TransferTiming* timing) override {
      if (request.cancel != nullptr && request.cancel->cancelled()) return absl::CancelledError("cancelled");
      Seen seen{absl::StrCat(request.method, " ", request.url.ToString()), request.headers, request.body,
                request.allow_local_address, request.tls};
      // A body that waits for the server's leave is taken only if the answer is not a refusal.
      bool late = request.upload != nullptr && request.expect_continue;
      if (request.upload != nullptr && !late) RETURN_IF_ERROR(Take(request.upload, &seen.body));
      Reply reply = network_.script_(seen);
      if (late && reply.status < 300) RETURN_IF_ERROR(Take(request.upload, &seen.body));
      network_.Log(seen);
      if (!reply.before.ok()) return reply.before;
      HttpResponse response{reply.status, reply.headers};
      absl::StatusOr<BodyAction> action = handler->OnResponse(response);
      if (request.method == "HEAD") reply.body.clear();
      for (size_t at = 0; action.ok() && *action == BodyAction::kContinue && at < reply.body.size();
           at += reply.piece) {
        std::string piece = reply.body.substr(at, reply.piece);
        action = handler->OnBody({reinterpret_cast<const uint8_t*>(piece.data()), piece.size()});
      }
      if (timing != nullptr) {
        *timing = {absl::Milliseconds(20), absl::Milliseconds(100), reply.body.size()};
      }
      if (!action.ok()) return action.status();
      return *action == BodyAction::kStop ? absl::OkStatus() : reply.after;
    }

   private:
    static absl::Status Take(RequestBody* body, std::string* out) {
      out->resize(body->length());
      for (size_t at = 0; at < out->size();) {
        size_t piece = std::min<size_t>(out->size() - at, 1000);
        ASSIGN_OR_RETURN(size_t got, body->Read({reinterpret_cast<uint8_t*>(&(*out)[at]), piece}));
        if (got == 0 || got > piece) return absl::DataLossError("the body ended");
        at += got;
      }
      return absl::OkStatus();
    }

    FakeNetwork& network_;
  };

  void Log(const Seen& seen) {
    absl::MutexLock lock(&mutex_);
    log_.push_back(seen);
  }

  const Script script_;
  mutable absl::Mutex mutex_;
  std::vector<Seen> log_ ABSL_GUARDED_BY(mutex_);
};

// A clock that stands still until it is told, or until a client sleeps.
class StepClock final : public base::Clock {
 public:
  absl::Duration Monotonic() const override { return absl::Nanoseconds(now_.load()); }
  absl::Time WallTime() const override { return absl::FromUnixSeconds(1'700'000'000) + Monotonic(); }
  void Advance(absl::Duration by) { now_ += absl::ToInt64Nanoseconds(by); }

 private:
  std::atomic<int64_t> now_{1'000'000'000};
};

// A client on a fake network; its sleeps advance the clock and are added up.
class FakeClient {
 public:
  explicit FakeClient(FakeNetwork::Script script, ClientOptions options = {})
      : network_(std::move(script)),
        core_(WithClock(std::move(options)), network_.MakeTransport(), Sleep()) {}

  ClientCore* operator->() { return &core_; }
  const FakeNetwork& network() const { return network_; }
  StepClock& clock() { return clock_; }
  absl::Duration slept() const { return absl::Nanoseconds(slept_.load()); }

 private:
  ClientOptions WithClock(ClientOptions options) {
    options.clock = &clock_;
    return options;
  }
  Sleeper Sleep() {
    return [this](absl::Duration duration, const CallContext&) {
      slept_ += absl::ToInt64Nanoseconds(duration);
      clock_.Advance(duration);
    };
  }

  StepClock clock_;
  std::atomic<int64_t> slept_{0};
  FakeNetwork network_;
  ClientCore core_;
};

inline oci::Reference Repository(const std::string& host = "reg.example",
                                 const std::string& repository = "app") {
  oci::Reference reference;
  reference.host = host;
  reference.repository = repository;
  reference.tag = "1";
  return reference;
}

// Mirrors in front of every host.
inline HostLookup Mirrors(const std::vector<std::string>& urls) {
  auto config = std::make_shared<HostConfig>();
  for (const std::string& url : urls) {
    RegistryHost host;
    host.url = url;
    host.path = "/v2";
    config->hosts.push_back(std::move(host));
  }
  config->hosts.emplace_back();
  return [config](const std::string&) { return config; };
}

// `size` bytes that are different everywhere.
inline std::string Pattern(size_t size) {
  std::string bytes(size, '\0');
  uint64_t state = 88172645463325252u;
  for (char& byte : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    byte = static_cast<char>(state >> 24);
  }
  return bytes;
}

inline oci::Descriptor DescriptorOf(const std::string& bytes) {
  oci::Descriptor descriptor;
  descriptor.digest = base::Digest::Of(bytes);
  descriptor.size = bytes.size();
  return descriptor;
}

// The answer of a well-behaved server to a GET of `bytes`.
inline Reply Serve(const Seen& seen, const std::string& bytes) {
  std::string range = seen.Header("Range");
  if (range.empty()) return Status(200, {{"content-length", absl::StrCat(bytes.size())}}, bytes);
  uint64_t first = 0;
  uint64_t last = 0;
  if (sscanf(range.c_str(), "bytes=%lu-%lu", &first, &last) != 2 || last >= bytes.size()) return Status(416);
  return Status(206,
                {{"content-range", absl::StrCat("bytes ", first, "-", last, "/", bytes.size())},
                 {"content-length", absl::StrCat(last - first + 1)}},
                bytes.substr(first, last - first + 1));
}

}  // namespace lazyblob::registry::internal
