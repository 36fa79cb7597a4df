#pragma once

// Who sends a blob to a host: the others of that host wait for it, and then have the registry mount it. What
// the one who sends is worth, those who wait for it make it worth. Thread-safe.

#include <map>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/cancel.h"
#include "exporter/host_gate.h"

namespace lazyblob::exporter::internal {

class Claims {
 public:
  // One placement as claims see it.
  struct Party {
    // Guarded by the mutex of Claims, which this struct cannot name.
    Priority priority = Priority::kCache;
    HostGate::Transfer* transfer = nullptr;
    Party* waits_for = nullptr;
  };
  using Key = std::pair<std::string, std::string>;  // host, blob

  enum class Answer : uint8_t { kMine, kReleased, kTaken, kCancelled };
  // kMine: until Release. kReleased: somebody else had it, and has not any more. kTaken: only without `wait`.
  Answer Acquire(const Key& key, Party* party, bool wait, base::CancelToken* cancel)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Release(const Key& key, Party* party) ABSL_LOCKS_EXCLUDED(mutex_);

  // More urgent, never less.
  void Raise(Party* party, Priority priority) ABSL_LOCKS_EXCLUDED(mutex_);
  void SetTransfer(Party* party, HostGate::Transfer* transfer) ABSL_LOCKS_EXCLUDED(mutex_);
  Priority PriorityOf(const Party& party) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void RaiseLocked(Party* party, Priority priority) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;  // under it HostGate's may be taken
  std::map<Key, Party*> owners_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::exporter::internal
