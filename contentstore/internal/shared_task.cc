#include "contentstore/internal/shared_task.h"

#include <optional>

namespace lazyblob::contentstore {
namespace {

// How often a waiting caller looks at its deadline and tells its progress.
constexpr absl::Duration kLookInterval = absl::Milliseconds(100);

}  // namespace

bool SharedTask::Join(const FetchContext& context, uint64_t* ticket) {
  absl::MutexLock lock(&mutex_);
  if (abandoned_ || finished_) return false;
  *ticket = ++last_ticket_;
  callers_[*ticket] = context.credentials;
  return true;
}

absl::Status SharedTask::Wait(uint64_t ticket, const FetchContext& context, const Progress& progress) {
  std::optional<base::CancelToken::Registration> registration;
  if (context.cancel != nullptr) {
    registration.emplace(context.cancel->OnCancel([this] {
      absl::MutexLock lock(&mutex_);
      changed_.SignalAll();
    }));
  }
  // What is under way in the background may stand still for long, and shall end when it is not wanted.
  const bool always = context.cause == FetchCause::kBackground;
  absl::Status result;
  uint64_t told = 0;
  bool last = false;
  while (true) {
    // Asked without our lock: the token's own lock comes first where it calls back.
    const bool cancelled = context.cancel != nullptr && context.cancel->cancelled();
    uint64_t received = 0;
    {
      absl::MutexLock lock(&mutex_);
      if (finished_) {
        result = status_;
      } else if (cancelled) {
        result = absl::CancelledError("cancelled");
      } else if (clock_->Monotonic() >= context.deadline) {
        result = absl::DeadlineExceededError("the layer did not arrive in time");
      }
      if (finished_ || !result.ok()) {
        callers_.erase(ticket);
        last = callers_.empty() && !finished_;
        if (last) abandoned_ = true;
        break;
      }
      if (received_ == told) changed_.WaitFor(&mutex_, kLookInterval);
      received = received_;
    }
    if (progress && (always || received != told)) progress(received);
    told = received;
  }
  if (last) cancel_->Cancel();
  return result;
}

CredentialsList SharedTask::Requesters() {
  CredentialsList all;
  absl::MutexLock lock(&mutex_);
  for (const auto& [ticket, credentials] : callers_) all.push_back(credentials);
  return InTurn(all, rotation_++);
}

void SharedTask::Report(uint64_t received) {
  absl::MutexLock lock(&mutex_);
  received_ = received;  // seen at the next look; waking everybody per block would cost more than it tells
}

void SharedTask::GiveUp() {
  {
    absl::MutexLock lock(&mutex_);
    abandoned_ = true;
  }
  cancel_->Cancel();
}

void SharedTask::Finish(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  finished_ = true;
  status_ = status;
  changed_.SignalAll();
}

}  // namespace lazyblob::contentstore
