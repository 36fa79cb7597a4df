#pragma once

// SIGINT, SIGTERM and SIGHUP as cancellation, for a command that has to tidy up. A second one ends the
// process at once.

#include <signal.h>

#include <memory>
#include <thread>

#include "base/cancel.h"

namespace lazyblob::daemon {

// One at a time in a process; the signals are blocked in the thread that made it, and in those it starts.
class InterruptCancels {
 public:
  explicit InterruptCancels(std::shared_ptr<base::CancelToken> token);
  ~InterruptCancels();
  InterruptCancels(const InterruptCancels&) = delete;
  InterruptCancels& operator=(const InterruptCancels&) = delete;

 private:
  sigset_t set_;
  sigset_t before_;
  std::thread thread_;
};

}  // namespace lazyblob::daemon
