#include "exporter/internal/claims.h"

namespace lazyblob::exporter::internal {

Claims::Answer Claims::Acquire(const Key& key, Party* party, bool wait, base::CancelToken* cancel) {
  const base::CancelToken::Registration wake =
      cancel->OnCancel([this] { const absl::MutexLock lock(&mutex_); });
  const absl::MutexLock lock(&mutex_);
  const auto [found, mine] = owners_.emplace(key, party);
  if (mine) return Answer::kMine;
  if (!wait) return Answer::kTaken;
  Party* const owner = found->second;
  party->waits_for = owner;
  RaiseLocked(owner, party->priority);
  auto done = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto now = owners_.find(key);
    return now == owners_.end() || now->second != owner || cancel->cancelled();
  };
  mutex_.Await(absl::Condition(&done));
  party->waits_for = nullptr;
  return cancel->cancelled() ? Answer::kCancelled : Answer::kReleased;
}

void Claims::Release(const Key& key, Party* party) {
  const absl::MutexLock lock(&mutex_);
  const auto found = owners_.find(key);
  if (found != owners_.end() && found->second == party) owners_.erase(found);
}

void Claims::RaiseLocked(Party* party, Priority priority) {
  for (; party != nullptr && priority < party->priority; party = party->waits_for) {
    party->priority = priority;
    if (party->transfer != nullptr) party->transfer->SetPriority(priority);
  }
}

void Claims::Raise(Party* party, Priority priority) {
  const absl::MutexLock lock(&mutex_);
  RaiseLocked(party, priority);
}

void Claims::SetTransfer(Party* party, HostGate::Transfer* transfer) {
  const absl::MutexLock lock(&mutex_);
  party->transfer = transfer;
  if (transfer != nullptr) transfer->SetPriority(party->priority);
}

Priority Claims::PriorityOf(const Party& party) {
  const absl::MutexLock lock(&mutex_);
  return party.priority;
}

}  // namespace lazyblob::exporter::internal
