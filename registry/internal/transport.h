#pragma once

// The seam between what a registry client decides and how HTTP moves bytes. One implementation speaks libcurl
// (http_transport.h); tests bring their own.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/cancel.h"
#include "registry/hosts.h"
#include "registry/internal/url.h"

namespace lazyblob::registry::internal {

using Headers = std::vector<std::pair<std::string, std::string>>;

// A request body of known length, taken in order while it is sent, on the thread of Perform.
class RequestBody {
 public:
  virtual ~RequestBody() = default;
  virtual uint64_t length() const = 0;
  // Fills `out` from its start with what comes next: at least one byte, at most what is left of length().
  virtual absl::StatusOr<size_t> Read(absl::Span<uint8_t> out) = 0;
  // Goes back to the first byte; false: what was taken is gone.
  virtual bool Rewind() = 0;
};

struct HttpRequest {
  std::string method = "GET";  // any that registries know
  Url url;
  Headers headers;
  std::string body;                // of a POST
  RequestBody* upload = nullptr;   // instead of `body`, of any method
  bool expect_continue = false;    // no byte of it is taken before the server wants it
  absl::Duration answer_patience;  // silence allowed once the body is sent, if longer than the usual
  absl::Duration deadline = absl::InfiniteDuration();  // monotonic
  std::shared_ptr<base::CancelToken> cancel;           // may be null
  absl::Duration cancel_patience;   // an answer may come so much later: it tells what must be undone
  bool allow_local_address = true;  // connect to loopback and link-local addresses too
  TlsPtr tls;                       // null: the system's authorities
};

// The settings made for `owner` as they apply at `url`: as they are on the same host, its authorities alone
// on any other.
inline TlsPtr TlsAt(const TlsPtr& settings, const Url& owner, const Url& url) {
  return settings == nullptr || owner.host == url.host ? settings : settings->elsewhere;
}

struct HttpResponse {
  int status = 0;
  Headers headers;  // names in lower case, in order of arrival, at most 64 KiB altogether

  // The first header of that (lower case) name; empty if there is none.
  absl::string_view Get(absl::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return value;
    }
    return "";
  }
};

enum class BodyAction { kContinue, kStop };

// Called on the thread of Perform. An error or kStop ends the transfer: Perform then returns that error, or
// OK.
class ResponseHandler {
 public:
  virtual ~ResponseHandler() = default;
  // Once, when the headers of the final response are complete.
  virtual absl::StatusOr<BodyAction> OnResponse(const HttpResponse& response) = 0;
  virtual absl::StatusOr<BodyAction> OnBody(absl::Span<const uint8_t> data) = 0;
};

// What a transfer says about the link. Time spent in the handler is left out.
struct TransferTiming {
  absl::Duration first_byte;  // from request sent to first byte of the response
  absl::Duration body;
  uint64_t body_bytes = 0;
};

// Thread-safe; Perform blocks.
class Transport {
 public:
  virtual ~Transport() = default;
  // OK: a whole response, of whatever status, was handed over (or the handler stopped it). Unavailable: the
  // host could not be reached or broke off, trying again may help; FailedPrecondition: it will not (TLS
  // refused); DataLoss: it does not speak proper HTTP; PermissionDenied: address not allowed; kCancelled;
  // kDeadlineExceeded. Redirects are not followed and no message holds a query or header.
  virtual absl::Status Perform(const HttpRequest& request, ResponseHandler* handler,
                               TransferTiming* timing) = 0;
};

}  // namespace lazyblob::registry::internal
