#pragma once

// One request to a registry, the way registries want it: authenticated, redirected by our own rules, paused
// when the host asked for it. Retries are the caller's (retry.h). Thread-safe.

#include <list>
#include <map>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "registry/client.h"
#include "registry/internal/authenticator.h"
#include "registry/internal/endpoint.h"
#include "registry/internal/host_state.h"
#include "registry/internal/transport.h"
#include "registry/internal/wait.h"

namespace lazyblob::registry::internal {

struct ApiRequest {
  std::string method = "GET";
  Endpoint endpoint;
  std::string repository;
  std::string rest;  // "/manifests/latest", encoded
  Headers headers;
  bool cache_target = false;     // of a GET of a blob: remember where it was redirected to
  std::optional<Url> plain_url;  // asked instead of the API, without anything that is for the endpoint alone

  // Of a push.
  std::optional<Url> session;     // asked instead of the API; may be on another host
  std::string also_pull;          // another repository that the token must allow pulling from
  bool may_delete = false;        // the token must allow deleting
  RequestBody* upload = nullptr;  // sent again only if it can be rewound
  bool expect_continue = false;   // see HttpRequest
  absl::Duration answer_patience;
  absl::Duration cancel_patience;
};

// How one attempt went.
struct Attempt {
  absl::Status status;
  int http = 0;        // of the response that decided, 0 if there was none
  bool retry = false;  // trying again may help

  bool ok() const { return status.ok(); }
};

// Where blobs were redirected to, by (origin, repository, path). Least recently used entries go first.
// Thread-safe.
class TargetCache {
 public:
  std::optional<Url> Find(const std::string& key) ABSL_LOCKS_EXCLUDED(mutex_);
  void Set(const std::string& key, const Url& target) ABSL_LOCKS_EXCLUDED(mutex_);
  void Forget(const std::string& key) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Entry {
    Url target;
    std::list<std::string>::iterator position;
  };
  absl::Mutex mutex_;
  std::list<std::string> order_ ABSL_GUARDED_BY(mutex_);  // most recently used first
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
};

class Requester {
 public:
  // All must outlive the object.
  Requester(const ClientOptions* options, Transport* transport, HostStates* hosts, Sleeper sleep)
      : options_(*options),
        transport_(*transport),
        hosts_(*hosts),
        clock_(*options->clock),
        authenticator_(options, transport, hosts, sleep),
        sleep_(std::move(sleep)) {}

  // Hands a 2xx response to `handler` (its OnResponse is called at most once) and maps everything else:
  // NotFound 404, Unauthenticated 401, PermissionDenied 403, OutOfRange 416, Unavailable 408, 429 and 5xx,
  // InvalidArgument other 4xx; with what RefusalOf (pusher.h) tells.
  Attempt Send(const ApiRequest& request, ResponseHandler* handler, const CallContext& context);

 private:
  struct Exchange;  // the state of one Send
  Attempt Follow(Exchange* exchange);
  // nullopt: go on with another request; else the end.
  std::optional<Attempt> Judge(Exchange* exchange);
  std::optional<Attempt> Redirected(Exchange* exchange);
  Attempt Refused(const Exchange& exchange);

  const ClientOptions& options_;
  Transport& transport_;
  HostStates& hosts_;
  const base::Clock& clock_;
  Authenticator authenticator_;
  const Sleeper sleep_;
  TargetCache targets_;
};

}  // namespace lazyblob::registry::internal
