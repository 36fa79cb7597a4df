#include "base/cancel.h"

#include <utility>

namespace lazyblob::base {

void CancelToken::Cancel() {
  {
    absl::MutexLock lock(&mutex_);
    if (cancelled_) return;
    cancelled_ = true;
  }
  while (true) {
    std::function<void()> callback;
    {
      absl::MutexLock lock(&mutex_);
      if (callbacks_.empty()) return;
      auto first = callbacks_.begin();
      running_ = first->first;
      callback = std::move(first->second);
      callbacks_.erase(first);
    }
    callback();
    absl::MutexLock lock(&mutex_);
    running_ = 0;
  }
}

bool CancelToken::cancelled() const {
  absl::MutexLock lock(&mutex_);
  return cancelled_;
}

CancelToken::Registration CancelToken::OnCancel(std::function<void()> callback) {
  {
    absl::MutexLock lock(&mutex_);
    if (!cancelled_) {
      uint64_t id = next_id_++;
      callbacks_.emplace(id, std::move(callback));
      return Registration(this, id);
    }
  }
  callback();
  return Registration();
}

CancelToken::Registration::Registration(Registration&& other) noexcept
    : token_(std::exchange(other.token_, nullptr)), id_(other.id_) {}

CancelToken::Registration::~Registration() {
  if (token_ == nullptr) return;
  absl::MutexLock lock(&token_->mutex_);
  token_->callbacks_.erase(id_);
  auto finished = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(token_->mutex_) { return token_->running_ != id_; };
  token_->mutex_.Await(absl::Condition(&finished));
}

}  // namespace lazyblob::base
