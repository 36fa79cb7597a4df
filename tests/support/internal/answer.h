#pragma once

// An answer, what a fault makes of it, and sending it.

#include <cstdint>
#include <functional>
#include <string>

#include "tests/support/internal/http.h"
#include "tests/support/internal/registry_contents.h"
#include "tests/support/test_registry.h"

namespace lazyblob::support::internal {

struct Answer {
  int status = 200;
  HeaderList headers;  // without Content-Length
  Bytes body;
  uint64_t offset = 0;  // the part of `body` that is sent
  uint64_t length = 0;
  bool ranges = false;  // a Range header is honoured
};

Answer TextAnswer(int status, std::string body, absl::string_view content_type = "application/json");
// {"errors":[{"code":…}]}
Answer ErrorAnswer(int status, absl::string_view code, absl::string_view message);
Answer WholeAnswer(Bytes body, absl::string_view content_type);

// Cuts the body to the Range of the request (RFC 9110 §14; one range), as far as `fault` lets it.
void ApplyRange(const HttpRequest& request, const FaultAction& fault, Answer* answer);
// Sets (replaces) a header; an empty value removes it.
void SetHeader(HeaderList* headers, absl::string_view name, absl::string_view value);

struct SendResult {
  bool complete = false;    // sent to its end
  bool keep_alive = false;  // the connection can take another request
};
// `on_bytes` is told of body bytes given to the kernel.
SendResult SendAnswer(HttpConnection& connection, const HttpRequest& request, const FaultAction& fault,
                      const Answer& answer, const std::function<void(uint64_t)>& on_bytes);

}  // namespace lazyblob::support::internal
