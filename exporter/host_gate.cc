#include "exporter/host_gate.h"

#include <algorithm>
#include <vector>

#include "base/clock.h"
#include "base/cond_var.h"
#include "base/status.h"

namespace lazyblob::exporter {

// Guarded by HostGate::mutex_. Entries stay: a process knows few hosts.
struct HostGate::Host {
  int in_use = 0;  // may exceed the slots: bodies that are open go on
  bool small_in_use = false;
  bool floor_in_use = false;  // a cache chunk that lost patience is under way
  std::set<Transfer*> transfers;
  base::CondVar changed;
};

HostGate::HostGate(HostGateOptions options) : options_(options) {}
HostGate::~HostGate() = default;

std::unique_ptr<HostGate::Transfer> HostGate::Begin(const std::string& host, Priority priority) {
  const absl::MutexLock lock(&mutex_);
  std::unique_ptr<Host>& entry = hosts_[host];
  if (entry == nullptr) entry = std::make_unique<Host>();
  std::unique_ptr<Transfer> transfer(new Transfer(this, entry.get(), priority));
  entry->transfers.insert(transfer.get());
  return transfer;
}

bool HostGate::HasImageTransfers(const std::string& host) {
  const absl::MutexLock lock(&mutex_);
  const auto found = hosts_.find(host);
  if (found == hosts_.end()) return false;
  for (const Transfer* transfer : found->second->transfers) {
    transfer->gate_.mutex_.AssertHeld();
    if (transfer->priority_ == Priority::kImage) return true;
  }
  return false;
}

bool HostGate::ImpatientLocked(const Transfer& transfer) {
  transfer.gate_.mutex_.AssertHeld();
  return base::SystemClock().Monotonic() - transfer.since_ >= options_.patience;
}

bool HostGate::MayGo(const Transfer& transfer, uint64_t bytes, bool* small) {
  transfer.gate_.mutex_.AssertHeld();
  const Host& host = transfer.host_;
  *small = false;
  bool image_ready = false;
  for (const Transfer* other : host.transfers) {
    other->gate_.mutex_.AssertHeld();
    if (other != &transfer && other->priority_ == Priority::kImage && other->ready_) image_ready = true;
  }
  if (bytes <= options_.small_bytes && !host.small_in_use &&
      (transfer.priority_ == Priority::kImage || !image_ready)) {
    *small = true;
    return true;
  }
  if (!IsItsTurn(transfer)) return false;
  if (transfer.priority_ == Priority::kCache && image_ready) {
    return !host.floor_in_use && ImpatientLocked(transfer);
  }
  const bool one_slot = transfer.priority_ == Priority::kCache && ImageElsewhere(host);
  return host.in_use < (one_slot ? 1 : options_.slots);
}

bool HostGate::ImageElsewhere(const Host& host) {
  for (const auto& [name, other] : hosts_) {
    if (other.get() == &host) continue;
    for (const Transfer* transfer : other->transfers) {
      transfer->gate_.mutex_.AssertHeld();
      if (transfer->priority_ == Priority::kImage && transfer->ready_) return true;
    }
  }
  return false;
}

bool HostGate::IsItsTurn(const Transfer& transfer) {
  transfer.gate_.mutex_.AssertHeld();
  uint64_t largest = transfer.left_;
  bool all_known = transfer.left_ > 0;
  std::vector<const Transfer*> equals;  // in priority, and with bytes to send; itself among them
  for (const Transfer* other : transfer.host_.transfers) {
    other->gate_.mutex_.AssertHeld();
    if (!other->ready_ || other->small_ || other->priority_ != transfer.priority_) continue;
    equals.push_back(other);
    largest = std::max(largest, other->left_);
    all_known = all_known && other->left_ > 0;
  }
  if (all_known && transfer.left_ == largest) return true;
  double others = 0;
  int sending = 0;
  for (const Transfer* other : equals) {
    other->gate_.mutex_.AssertHeld();
    if (all_known && other->left_ == largest) continue;
    others += static_cast<double>(other->left_);
    if (other->holds_) ++sending;
    if (other->ticket_ != 0 && other->ticket_ < transfer.ticket_) return false;
  }
  return !all_known || sending * static_cast<double>(largest) < others;
}

HostGate::Transfer::~Transfer() {
  const absl::MutexLock lock(&gate_.mutex_);
  host_.transfers.erase(this);
  ReleaseLocked(false);
}

void HostGate::Transfer::SignalLocked() {
  for (const auto& [name, host] : gate_.hosts_) host->changed.SignalAll();
}

absl::Status HostGate::Transfer::Acquire(uint64_t bytes, base::CancelToken* cancel, uint64_t left) {
  base::CancelToken none;
  const base::CancelToken::Registration wake = (cancel == nullptr ? &none : cancel)->OnCancel([this] {
    const absl::MutexLock lock(&gate_.mutex_);
    host_.changed.SignalAll();
  });
  const absl::MutexLock lock(&gate_.mutex_);
  ready_ = true;
  left_ = left;
  ticket_ = gate_.next_ticket_++;
  since_ = base::SystemClock().Monotonic();
  bool small = false;
  while (!gate_.MayGo(*this, bytes, &small)) {
    if (cancel != nullptr && cancel->cancelled()) {
      ticket_ = 0;
      ready_ = false;
      host_.changed.SignalAll();
      return absl::CancelledError("cancelled while waiting for a slot");
    }
    const bool may_lose_patience = priority_ == Priority::kCache && !gate_.ImpatientLocked(*this);
    if (may_lose_patience) {
      host_.changed.WaitFor(&gate_.mutex_, gate_.options_.patience);
    } else {
      host_.changed.Wait(&gate_.mutex_);
    }
  }
  ticket_ = 0;
  holds_ = true;
  small_ = small;
  if (small) {
    host_.small_in_use = true;
  } else {
    ++host_.in_use;
    if (priority_ == Priority::kCache) host_.floor_in_use = true;
  }
  host_.changed.SignalAll();
  return absl::OkStatus();
}

void HostGate::Transfer::ReleaseLocked(bool more) {
  ready_ = more;
  if (holds_) {
    if (small_) {
      host_.small_in_use = false;
    } else {
      --host_.in_use;
      host_.floor_in_use = false;
    }
    holds_ = false;
    small_ = false;
  }
  SignalLocked();
}

void HostGate::Transfer::Release(bool more) {
  const absl::MutexLock lock(&gate_.mutex_);
  ReleaseLocked(more);
}

void HostGate::Transfer::Resume() {
  const absl::MutexLock lock(&gate_.mutex_);
  if (holds_) return;
  ready_ = true;
  holds_ = true;
  ++host_.in_use;
}

void HostGate::Transfer::SetPriority(Priority priority) {
  const absl::MutexLock lock(&gate_.mutex_);
  priority_ = priority;
  SignalLocked();
}

Priority HostGate::Transfer::priority() const {
  const absl::MutexLock lock(&gate_.mutex_);
  return priority_;
}

MemoryBudget::Hold& MemoryBudget::Hold::operator=(Hold&& other) noexcept {
  if (this == &other) return *this;
  Reset();
  budget_ = std::exchange(other.budget_, nullptr);
  bytes_ = other.bytes_;
  priority_ = other.priority_;
  return *this;
}

void MemoryBudget::Hold::Reset() {
  if (budget_ == nullptr) return;
  const absl::MutexLock lock(&budget_->mutex_);
  budget_->used_ -= bytes_;
  if (priority_ == Priority::kCache) budget_->used_by_cache_ -= bytes_;
  budget_ = nullptr;
}

bool MemoryBudget::Fits(uint64_t bytes, Priority priority) const {
  if (priority == Priority::kCache) {
    if (used_by_cache_ != 0 && used_by_cache_ + bytes > limit_ / 2) return false;
    return used_ == 0 || used_ + bytes <= limit_;
  }
  return used_ == used_by_cache_ || used_ + bytes <= limit_;
}

absl::StatusOr<MemoryBudget::Hold> MemoryBudget::Acquire(uint64_t bytes, Priority priority,
                                                         base::CancelToken* cancel) {
  base::CancelToken none;
  const base::CancelToken::Registration wake =
      (cancel == nullptr ? &none : cancel)->OnCancel([this] { const absl::MutexLock lock(&mutex_); });
  const absl::MutexLock lock(&mutex_);
  auto done = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return Fits(bytes, priority) || (cancel != nullptr && cancel->cancelled());
  };
  mutex_.Await(absl::Condition(&done));
  if (cancel != nullptr && cancel->cancelled()) return absl::CancelledError("cancelled");
  return Take(bytes, priority);
}

MemoryBudget::Hold MemoryBudget::TryAcquire(uint64_t bytes, Priority priority) {
  const absl::MutexLock lock(&mutex_);
  return Fits(bytes, priority) ? Take(bytes, priority) : Hold();
}

MemoryBudget::Hold MemoryBudget::Take(uint64_t bytes, Priority priority) {
  used_ += bytes;
  if (priority == Priority::kCache) used_by_cache_ += bytes;
  peak_ = std::max(peak_, used_);
  return Hold(this, bytes, priority);
}

uint64_t MemoryBudget::peak() const {
  const absl::MutexLock lock(&mutex_);
  return peak_;
}

}  // namespace lazyblob::exporter
