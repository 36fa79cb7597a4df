#include "exporter/internal/claims.h"

#include <algorithm>

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
  party->wanted = key;
  owner->waiting.push_back(party);
  Update(owner);
  auto done = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto now = owners_.find(key);
    return now == owners_.end() || now->second != owner || cancel->cancelled();
  };
  mutex_.Await(absl::Condition(&done));
  if (party->waits_for != nullptr) {  // it holds the claim still
    std::erase(owner->waiting, party);
    party->waits_for = nullptr;
    Update(owner);
  }
  return cancel->cancelled() ? Answer::kCancelled : Answer::kReleased;
}

void Claims::Release(const Key& key, Party* party) {
  const absl::MutexLock lock(&mutex_);
  const auto found = owners_.find(key);
  if (found == owners_.end() || found->second != party) return;
  owners_.erase(found);
  std::erase_if(party->waiting, [&](Party* one) {
    if (one->wanted != key) return false;
    one->waits_for = nullptr;
    return true;
  });
  Update(party);
}

void Claims::Update(Party* party) {
  for (; party != nullptr; party = party->waits_for) {
    Priority priority = party->own;
    for (const Party* one : party->waiting) priority = std::min(priority, one->priority);
    if (priority == party->priority) return;
    party->priority = priority;
    if (party->transfer != nullptr) party->transfer->SetPriority(priority);
  }
}

void Claims::SetPriority(Party* party, Priority own) {
  const absl::MutexLock lock(&mutex_);
  party->own = own;
  Update(party);
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
