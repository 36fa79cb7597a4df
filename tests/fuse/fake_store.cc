#include "tests/fuse/fake_store.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "tests/support/gate.h"

namespace lazyblob::fuse {

using contentstore::FetchContext;
using contentstore::PinnedRange;

FakeLayer::FakeLayer(uint32_t id, std::string name, std::string data, std::string directory)
    : id_(id),
      data_(std::move(data)),
      directory_(std::move(directory)),
      file_(memfd_create("layer", MFD_CLOEXEC)) {
  descriptor_.digest = base::Digest::Of(absl::string_view(name));
  descriptor_.size = data_.size();
  const absl::Span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(data_.data()), data_.size());
  if (!base::PwriteFull(file_.get(), 0, bytes).ok()) std::abort();
}

void FakeLayer::MakePresent() { MakePresent(0, data_.size()); }

void FakeLayer::MakePresent(uint64_t begin, uint64_t end) {
  absl::MutexLock lock(&mutex_);
  present_.emplace_back(begin, end);
}

void FakeLayer::ServeFromMemory() {
  absl::MutexLock lock(&mutex_);
  in_memory_ = true;
}

void FakeLayer::HealWhenDoubted() {
  absl::MutexLock lock(&mutex_);
  heals_ = true;
}

void FakeLayer::Doubt(uint64_t, uint64_t) {
  absl::MutexLock lock(&mutex_);
  if (!heals_) return;
  present_.clear();
  in_memory_ = true;
}

void FakeLayer::TruncateCacheFile(uint64_t size) {
  if (ftruncate(file_.get(), static_cast<off_t>(size)) != 0) std::abort();
}

void FakeLayer::set_state(contentstore::LayerState state) {
  absl::MutexLock lock(&mutex_);
  state_ = state;
}

contentstore::LayerState FakeLayer::state() const {
  absl::MutexLock lock(&mutex_);
  return state_;
}

uint64_t FakeLayer::data_size() const {
  return state() == contentstore::LayerState::kNeedsIndex ? 0 : data_.size();
}

bool FakeLayer::Present(uint64_t offset, uint64_t length) const {
  for (const auto& [begin, end] : present_) {
    if (begin <= offset && offset + length <= end) return true;
  }
  return false;
}

PinnedRange FakeLayer::Range(uint64_t offset, uint64_t length) {
  if (!in_memory_) return PinnedRange(file_.get(), offset, length, nullptr);
  auto memory = std::make_shared<std::vector<uint8_t>>(data_.begin(), data_.end());
  return PinnedRange(std::move(memory), offset, length);
}

std::optional<PinnedRange> FakeLayer::TryAcquire(uint64_t offset, uint64_t length) {
  absl::MutexLock lock(&mutex_);
  if (!Present(offset, length)) return std::nullopt;
  return Range(offset, length);
}

void FakeLayer::Acquire(uint64_t offset, uint64_t length, FetchContext context,
                        absl::AnyInvocable<void(absl::StatusOr<PinnedRange>) &&> done) {
  std::optional<PinnedRange> now;
  uint64_t number = 0;
  {
    absl::MutexLock lock(&mutex_);
    ++acquires_;
    if (Present(offset, length)) {
      now = Range(offset, length);
    } else {
      number = next_number_++;
      waiters_[number] = {offset, length, std::move(done)};
    }
  }
  if (now) return std::move(done)(*std::move(now));
  if (context.cancel != nullptr) {
    auto registration = context.cancel->OnCancel([this, number] { Cancel(number); });
    absl::MutexLock lock(&mutex_);
    registrations_.push_back({context.cancel, std::move(registration)});
  }
  if (on_wait != nullptr) on_wait();
}

void FakeLayer::Cancel(uint64_t number) {
  Waiter waiter;
  {
    absl::MutexLock lock(&mutex_);
    auto it = waiters_.find(number);
    if (it == waiters_.end()) return;
    waiter = std::move(it->second);
    waiters_.erase(it);
    ++cancelled_;
  }
  std::move(waiter.done)(absl::CancelledError("cancelled"));
}

void FakeLayer::Release() {
  MakePresent();
  ReleaseWaiting();
}

void FakeLayer::ReleaseWaiting() {
  std::vector<std::pair<Waiter, PinnedRange>> ready;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [number, waiter] : waiters_) {
      PinnedRange range = Range(waiter.offset, waiter.length);
      ready.emplace_back(std::move(waiter), std::move(range));
    }
    waiters_.clear();
  }
  for (auto& [waiter, range] : ready) std::move(waiter.done)(std::move(range));
}

void FakeLayer::Fail(const absl::Status& status) {
  std::vector<Waiter> failed;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [number, waiter] : waiters_) failed.push_back(std::move(waiter));
    waiters_.clear();
  }
  for (Waiter& waiter : failed) std::move(waiter.done)(status);
}

bool FakeLayer::AwaitWaiting(size_t count) {
  absl::MutexLock lock(&mutex_);
  auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return waiters_.size() >= count; };
  return mutex_.AwaitWithTimeout(absl::Condition(&enough), support::kPatience);
}

size_t FakeLayer::waiting() const {
  absl::MutexLock lock(&mutex_);
  return waiters_.size();
}

size_t FakeLayer::acquires() const {
  absl::MutexLock lock(&mutex_);
  return acquires_;
}

bool FakeLayer::AwaitCancelled(size_t count) {
  absl::MutexLock lock(&mutex_);
  auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return cancelled_ >= count; };
  return mutex_.AwaitWithTimeout(absl::Condition(&enough), support::kPatience);
}

void FakeStore::Add(std::shared_ptr<FakeLayer> layer) {
  absl::MutexLock lock(&mutex_);
  layers_[layer->id()] = std::move(layer);
}

void FakeStore::Forget(uint32_t id) {
  absl::MutexLock lock(&mutex_);
  layers_.erase(id);
}

std::shared_ptr<contentstore::LazyLayer> FakeStore::Find(const base::Digest& digest) {
  absl::MutexLock lock(&mutex_);
  for (const auto& [id, layer] : layers_) {
    if (layer->descriptor().digest == digest) return layer;
  }
  return nullptr;
}

std::shared_ptr<contentstore::LazyLayer> FakeStore::FindById(uint32_t id) {
  absl::MutexLock lock(&mutex_);
  auto it = layers_.find(id);
  return it == layers_.end() ? nullptr : it->second;
}

std::string Pattern(uint64_t size, uint64_t seed) {
  std::string out(size, '\0');
  for (uint64_t i = 0; i < size; i += 8) {
    uint64_t x = (seed << 32 | i / 8) * 0x9e3779b97f4a7c15;
    x ^= x >> 29;
    memcpy(out.data() + i, &x, std::min<uint64_t>(8, size - i));
  }
  return out;
}

}  // namespace lazyblob::fuse
