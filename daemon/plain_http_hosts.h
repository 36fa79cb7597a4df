#pragma once

// The registry hosts for which somebody asked for plain http by name. Kept in a file, so that layers that
// come back after a restart are fetched as before.

#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"

namespace lazyblob::daemon {

// Thread-safe after Load.
class PlainHttpHosts {
 public:
  // Remembers `path` and reads it; a missing file is an empty set.
  absl::Status Load(const std::string& path) ABSL_LOCKS_EXCLUDED(mutex_);
  // Durable on return.
  absl::Status Add(const std::string& host) ABSL_LOCKS_EXCLUDED(mutex_);
  bool Contains(const std::string& host) const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  mutable absl::Mutex mutex_;
  std::string path_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> hosts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::daemon
