#pragma once

// Runs a few blocking tasks at once.

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace lazyblob::daemon {

// Calls task(0) … task(count - 1), at most `limit` at a time, and waits. Returns the failure of the lowest
// number; after a failure no further task is started.
inline absl::Status RunParallel(size_t count, size_t limit, absl::FunctionRef<absl::Status(size_t)> task) {
  std::vector<absl::Status> results(count);
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  auto work = [&] {
    for (size_t i = next++; i < count && !failed; i = next++) {
      results[i] = task(i);
      if (!results[i].ok()) failed = true;
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min(count, limit); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& result : results) {
    if (!result.ok()) return result;
  }
  return absl::OkStatus();
}

}  // namespace lazyblob::daemon
