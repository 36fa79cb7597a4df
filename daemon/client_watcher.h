#pragma once

// Notices that the client of a running call has gone: what it asked for is cancelled. Lives as long as the
// call; a thread of its own, because synchronous services are not told.

#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "absl/time/time.h"
#include "base/cancel.h"
#include "base/cond_var.h"

namespace lazyblob::daemon {

class ClientWatcher {
 public:
  // `gone` is asked ten times a second, on the watcher's thread, until it says so.
  ClientWatcher(std::function<bool()> gone, std::shared_ptr<base::CancelToken> token)
      : thread_([this, gone = std::move(gone), token = std::move(token)] {
          while (!base::SleepUnlessCancelled(absl::Milliseconds(100), &done_)) {
            if (gone()) return token->Cancel();
          }
        }) {}
  ~ClientWatcher() {
    done_.Cancel();
    thread_.join();
  }
  ClientWatcher(const ClientWatcher&) = delete;
  ClientWatcher& operator=(const ClientWatcher&) = delete;

 private:
  base::CancelToken done_;
  std::thread thread_;
};

}  // namespace lazyblob::daemon
