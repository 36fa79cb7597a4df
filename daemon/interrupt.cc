#include "daemon/interrupt.h"

#include <pthread.h>
#include <unistd.h>

#include <utility>

namespace lazyblob::daemon {
namespace {

constexpr int kEndThread = SIGUSR1;

}  // namespace

InterruptCancels::InterruptCancels(std::shared_ptr<base::CancelToken> token) {
  sigemptyset(&set_);
  for (int signal : {SIGINT, SIGTERM, SIGHUP, kEndThread}) sigaddset(&set_, signal);
  pthread_sigmask(SIG_BLOCK, &set_, &before_);
  thread_ = std::thread([set = set_, token = std::move(token)] {
    for (bool again = false;; again = true) {
      int signal = 0;
      sigwait(&set, &signal);
      if (signal == kEndThread) return;
      if (again) _exit(128 + signal);
      token->Cancel();
    }
  });
}

InterruptCancels::~InterruptCancels() {
  pthread_kill(thread_.native_handle(), kEndThread);
  thread_.join();
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

}  // namespace lazyblob::daemon
