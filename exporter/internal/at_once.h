#pragma once

// Runs blocking tasks side by side; the first failure cancels the others.

#include <algorithm>
#include <cstddef>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "base/cancel.h"

namespace lazyblob::exporter {

// Calls task(0) … task(count - 1), at most `limit` at a time, and waits. After a failure `stop` is cancelled
// and no further task is started; returns what failed first in time, not what its end made fail.
inline absl::Status AtOnce(size_t count, size_t limit, base::CancelToken* stop,
                           absl::FunctionRef<absl::Status(size_t)> task) {
  absl::Mutex mutex;
  absl::Status first;
  size_t next = 0;
  auto work = [&] {
    while (true) {
      size_t mine = 0;
      {
        absl::MutexLock lock(&mutex);
        if (next == count || !first.ok()) return;
        mine = next++;
      }
      const absl::Status status = stop->cancelled() ? absl::CancelledError("cancelled") : task(mine);
      if (status.ok()) continue;
      bool is_first = false;
      {
        absl::MutexLock lock(&mutex);
        is_first = first.ok();
        if (is_first) first = status;
      }
      if (is_first) stop->Cancel();
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min(count, limit); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  return first;
}

}  // namespace lazyblob::exporter
