#pragma once

// Who sends a blob to a host: the others of that host wait for it, and then have the registry mount it. What
// the one who sends is worth, those who wait for it make it worth. Thread-safe.

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/cancel.h"
#include "exporter/host_gate.h"

namespace lazyblob::exporter::internal {

class Claims {
 public:
  using Key = std::pair<std::string, std::string>;  // host, blob

  // One placement as claims see it.
  struct Party {
    // Guarded by the mutex of Claims, which this struct cannot name.
    Priority own = Priority::kCache;
    Priority priority = Priority::kCache;  // the more urgent of its own and that of those who wait for it
    HostGate::Transfer* transfer = nullptr;
    Party* waits_for = nullptr;
    Key wanted;  // of waits_for
    std::vector<Party*> waiting;
  };

  enum class Answer : uint8_t { kMine, kReleased, kTaken, kCancelled };
  // kMine: until Release. kReleased: somebody else had it, and has not any more. kTaken: only without `wait`.
  Answer Acquire(const Key& key, Party* party, bool wait, base::CancelToken* cancel)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void Release(const Key& key, Party* party) ABSL_LOCKS_EXCLUDED(mutex_);

  void SetPriority(Party* party, Priority own) ABSL_LOCKS_EXCLUDED(mutex_);
  void SetTransfer(Party* party, HostGate::Transfer* transfer) ABSL_LOCKS_EXCLUDED(mutex_);
  Priority PriorityOf(const Party& party) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // After a change of its own priority or of who waits for it.
  static void Update(Party* party);

  absl::Mutex mutex_;  // under it HostGate's may be taken
  std::map<Key, Party*> owners_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::exporter::internal
