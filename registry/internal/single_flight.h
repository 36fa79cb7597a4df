#pragma once

// Many callers that want the same thing cause one execution. The first caller runs it on its own thread; when
// that one gives up (cancelled, out of time) the next takes over; an error is everybody's but is not kept.
// Thread-safe.

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/cond_var.h"
#include "registry/internal/wait.h"

namespace lazyblob::registry::internal {

template <typename Value>
class SingleFlight {
 public:
  using Work = absl::FunctionRef<absl::StatusOr<Value>()>;

  // `work` looks for an earlier result first: whoever takes over calls it again.
  absl::StatusOr<Value> Do(const std::string& key, const CallContext& context, const base::Clock& clock,
                           Work work) ABSL_LOCKS_EXCLUDED(mutex_) {
    while (true) {
      std::shared_ptr<Flight> flight;
      bool mine = Join(key, &flight);
      if (mine) return Lead(key, flight, work);
      const base::CancelToken::Registration wake = WakeOnCancel(context);
      absl::MutexLock lock(&mutex_);
      const auto ready = [&] { return flight->done || Cancelled(context); };
      changed_.AwaitFor(&mutex_, ready, context.deadline - clock.Monotonic());
      if (!flight->done) {
        return Cancelled(context) ? absl::CancelledError("cancelled")
                                  : absl::DeadlineExceededError("deadline reached");
      }
      if (!flight->abandoned) return *flight->result;
    }
  }

  // As Do, but nullopt at once when somebody is already at it.
  std::optional<absl::StatusOr<Value>> TryDo(const std::string& key, Work work) ABSL_LOCKS_EXCLUDED(mutex_) {
    std::shared_ptr<Flight> flight;
    if (!Join(key, &flight)) return std::nullopt;
    return Lead(key, flight, work);
  }

 private:
  struct Flight {
    bool done = false;
    bool abandoned = false;
    std::optional<absl::StatusOr<Value>> result;
  };

  bool Join(const std::string& key, std::shared_ptr<Flight>* flight) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    std::shared_ptr<Flight>& slot = flights_[key];
    bool mine = slot == nullptr;
    if (mine) slot = std::make_shared<Flight>();
    *flight = slot;
    return mine;
  }

  absl::StatusOr<Value> Lead(const std::string& key, const std::shared_ptr<Flight>& flight, Work work)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::StatusOr<Value> result = work();
    absl::MutexLock lock(&mutex_);
    flights_.erase(key);
    flight->abandoned = absl::IsCancelled(result.status()) || absl::IsDeadlineExceeded(result.status());
    flight->result = result;
    flight->done = true;
    changed_.SignalAll();
    return result;
  }

  base::CancelToken::Registration WakeOnCancel(const CallContext& context) ABSL_LOCKS_EXCLUDED(mutex_) {
    if (context.cancel == nullptr) return {};
    return context.cancel->OnCancel([this] {
      absl::MutexLock lock(&mutex_);  // so that one who is about to wait sees it
      changed_.SignalAll();
    });
  }

  absl::Mutex mutex_;
  base::CondVar changed_;
  std::map<std::string, std::shared_ptr<Flight>> flights_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::registry::internal
