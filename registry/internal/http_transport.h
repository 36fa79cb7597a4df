#pragma once

// HTTP over libcurl. Per scheme, host and port a pool of handles that each own at most one connection; the
// most recently used one is taken first, so a run of small requests stays on one warm connection.
// Thread-safe.

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "base/clock.h"
#include "registry/internal/transport.h"

namespace lazyblob::registry::internal {

struct HttpTransportOptions {
  std::string ca_file;  // in addition to the system's
  std::string user_agent;
  absl::Duration connect_timeout;
  absl::Duration stall_timeout;
  int max_connections_per_host = 16;
  const base::Clock* clock = nullptr;
};

std::unique_ptr<Transport> MakeHttpTransport(HttpTransportOptions options);

}  // namespace lazyblob::registry::internal
