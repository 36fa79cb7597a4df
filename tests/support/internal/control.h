#pragma once

// The test registry's remote control, for tests that are shell scripts. JSON over HTTP below /_test/; such
// requests are neither logged nor subject to faults.
//
//   POST   /_test/faults      one rule or an array of rules: the fields of RequestMatcher and FaultAction by
//   their
//                             names; "headers" is an object, "delay_ms" a number, gates are names
//   DELETE /_test/faults
//   POST   /_test/gates/NAME/open, …/close
//   GET    /_test/gates/NAME  {"waiting":N,"arrived":N}
//   GET    /_test/log         array of requests ("headers": pairs of names in lower case and values);
//   DELETE /_test/log
//   GET    /_test/stats       {"connections":…,"token_requests":…,"requests":…,"body_bytes":…}
//   POST   /_test/auth        {"kind":"none|basic|bearer","username":…,"password":…,"identity_token":…,
//                             "token_ttl_ms":…,"realm":…}
//   POST   /_test/uploads     {"personalities":["zot",…],"directory":…,"min_chunk":…,"idle_limit_ms":…,
//                             "commit_delay_ms":…,"refuse_chunks":…,"checks_children":…,"allows_cancel":…}
//   POST   /_test/drop_uploads
//   POST   /_test/cdn         {"enabled":…,"ttl_ms":…,"status":…}
//   POST   /_test/referrers   {"enabled":…}
//   POST   /_test/revoke_tokens, /_test/expire_urls, /_test/break_connections

#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "tests/support/internal/answer.h"
#include "tests/support/test_registry.h"

namespace lazyblob::support::internal {

// Thread-safe.
class Control {
 public:
  explicit Control(TestRegistry* registry) : registry_(registry) {}

  static bool IsFor(const HttpRequest& request);
  Answer Handle(const HttpRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  // Opens every gate that was ever named.
  void OpenGates() ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  absl::StatusOr<std::string> Do(const HttpRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<std::string> Post(const HttpRequest& request, absl::string_view what)
      ABSL_LOCKS_EXCLUDED(mutex_);
  std::shared_ptr<Gate> GateNamed(const std::string& name) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status AddFaults(absl::string_view text) ABSL_LOCKS_EXCLUDED(mutex_);

  TestRegistry* const registry_;
  absl::Mutex mutex_;
  std::map<std::string, std::shared_ptr<Gate>> gates_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::support::internal
