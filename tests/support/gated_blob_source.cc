#include "tests/support/gated_blob_source.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "tests/support/gate.h"

namespace lazyblob::support {
namespace {

// A deadline may be on a fake clock, which wakes nobody: held reads look at it this often.
constexpr absl::Duration kDeadlineCheck = absl::Milliseconds(2);

std::string LookupUser(const registry::CallContext& context) {
  if (context.credentials == nullptr) return {};
  auto found = context.credentials->Lookup("test");
  return found.ok() && found->has_value() ? (*found)->username : std::string();
}

}  // namespace

GatedBlobSource::GatedBlobSource(std::string name, const base::Clock* clock)
    : name_(std::move(name)), clock_(clock) {}

GatedBlobSource::~GatedBlobSource() {
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
  auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return running_ == 0; };
  mutex_.Await(absl::Condition(&idle));
}

base::Digest GatedBlobSource::PutBlob(std::string bytes) {
  const base::Digest digest = base::Digest::Of(bytes);
  absl::MutexLock lock(&mutex_);
  blobs_[digest] = std::make_shared<const std::string>(std::move(bytes));
  return digest;
}

void GatedBlobSource::Hold() {
  absl::MutexLock lock(&mutex_);
  holding_ = true;
}

void GatedBlobSource::Release() {
  absl::MutexLock lock(&mutex_);
  holding_ = false;
}

bool GatedBlobSource::ReleaseOne(Outcome outcome) {
  absl::MutexLock lock(&mutex_);
  Waiter* oldest = nullptr;
  auto held = [this, &oldest]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (const auto& waiter : waiters_) {
      if (!waiter->outcome.has_value() && !waiter->cancelled) {
        oldest = waiter.get();
        return true;
      }
    }
    return false;
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&held), kPatience)) return false;
  oldest->outcome = std::move(outcome);
  return true;
}

void GatedBlobSource::Enqueue(Outcome outcome, int times) {
  absl::MutexLock lock(&mutex_);
  for (int i = 0; i < times; ++i) queued_.push_back(outcome);
}

void GatedBlobSource::SetDefault(Outcome outcome) {
  absl::MutexLock lock(&mutex_);
  default_ = std::move(outcome);
}

bool GatedBlobSource::AwaitRequests(size_t count) {
  absl::MutexLock lock(&mutex_);
  auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return requests_.size() >= count; };
  return mutex_.AwaitWithTimeout(absl::Condition(&enough), kPatience);
}

bool GatedBlobSource::AwaitHeld(size_t count) {
  absl::MutexLock lock(&mutex_);
  auto enough = [this, count]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return waiters_.size() >= count; };
  return mutex_.AwaitWithTimeout(absl::Condition(&enough), kPatience);
}

size_t GatedBlobSource::held() const {
  absl::MutexLock lock(&mutex_);
  return waiters_.size();
}

std::vector<GatedBlobSource::Request> GatedBlobSource::requests() const {
  absl::MutexLock lock(&mutex_);
  return requests_;
}

size_t GatedBlobSource::request_count() const {
  absl::MutexLock lock(&mutex_);
  return requests_.size();
}

uint64_t GatedBlobSource::bytes_given() const {
  absl::MutexLock lock(&mutex_);
  return bytes_given_;
}

size_t GatedBlobSource::TimesRequested(const base::Digest& digest, uint64_t blob_offset) const {
  absl::MutexLock lock(&mutex_);
  return static_cast<size_t>(std::count_if(requests_.begin(), requests_.end(), [&](const Request& request) {
    return request.digest == digest && request.range.offset <= blob_offset &&
           blob_offset - request.range.offset < request.range.length;
  }));
}

void GatedBlobSource::set_link(registry::Client::LinkEstimate link) {
  absl::MutexLock lock(&mutex_);
  link_ = link;
}

void GatedBlobSource::set_local(bool local) {
  absl::MutexLock lock(&mutex_);
  local_ = local;
}

void GatedBlobSource::set_piece_size(uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  piece_size_ = std::max<uint64_t>(bytes, 1);
}

registry::Client::LinkEstimate GatedBlobSource::link() const {
  absl::MutexLock lock(&mutex_);
  return link_;
}

bool GatedBlobSource::local() const {
  absl::MutexLock lock(&mutex_);
  return local_;
}

absl::Status GatedBlobSource::Read(const oci::Descriptor& blob, registry::ByteRange range,
                                   registry::BodySink sink, const registry::CallContext& context) {
  const std::string username = LookupUser(context);
  size_t number = 0;
  std::shared_ptr<const std::string> bytes;
  {
    absl::MutexLock lock(&mutex_);
    ++running_;
    number = requests_.size();
    requests_.push_back({blob.digest, range, context.credentials, username, context.deadline, false, {}});
    requests_.back().distrust_mirrors = context.distrust_mirrors;
    if (auto found = blobs_.find(blob.digest); found != blobs_.end()) bytes = found->second;
  }
  absl::Status result;
  if (absl::StatusOr<Outcome> outcome = AwaitTurn(context); !outcome.ok()) {
    result = outcome.status();
  } else if (bytes == nullptr) {
    result = absl::NotFoundError(absl::StrCat(name_, ": no blob ", blob.digest.ToString()));
  } else {
    result = Give(*bytes, range, *outcome, sink, context);
  }
  absl::MutexLock lock(&mutex_);
  requests_[number].finished = true;
  requests_[number].result = result;
  --running_;
  return result;
}

absl::StatusOr<GatedBlobSource::Outcome> GatedBlobSource::AwaitTurn(const registry::CallContext& context) {
  auto waiter = std::make_shared<Waiter>();
  if (context.cancel == nullptr) return AwaitTurnOf(waiter, context);
  auto registration = context.cancel->OnCancel([this, waiter] {
    absl::MutexLock lock(&mutex_);
    waiter->cancelled = true;
  });
  return AwaitTurnOf(waiter, context);
}

absl::StatusOr<GatedBlobSource::Outcome> GatedBlobSource::AwaitTurnOf(const std::shared_ptr<Waiter>& waiter,
                                                                      const registry::CallContext& context) {
  absl::MutexLock lock(&mutex_);
  if (waiter->cancelled) return absl::CancelledError("read cancelled");
  if (holding_) {
    waiters_.push_back(waiter);
    auto let_go = [this, &waiter]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return !holding_ || stopping_ || waiter->cancelled || waiter->outcome.has_value();
    };
    while (!mutex_.AwaitWithTimeout(absl::Condition(&let_go), kDeadlineCheck)) {
      if (clock_->Monotonic() >= context.deadline) break;
    }
    waiters_.erase(std::find(waiters_.begin(), waiters_.end(), waiter));
  }
  if (waiter->cancelled) return absl::CancelledError("read cancelled");
  if (waiter->outcome.has_value()) return *std::move(waiter->outcome);
  if (stopping_) return absl::CancelledError("source destroyed");
  if (holding_) return absl::DeadlineExceededError(absl::StrCat(name_, ": deadline passed while held"));
  if (queued_.empty()) return default_;
  Outcome outcome = std::move(queued_.front());
  queued_.pop_front();
  return outcome;
}

absl::Status GatedBlobSource::Give(const std::string& bytes, registry::ByteRange range,
                                   const Outcome& outcome, registry::BodySink sink,
                                   const registry::CallContext& context) {
  if (!outcome.status.ok() && !outcome.bytes.has_value()) return outcome.status;
  if (range.offset > bytes.size() || range.length > bytes.size() - range.offset) {
    return absl::OutOfRangeError(absl::StrCat(name_, ": range past the end of the blob"));
  }
  std::string body = bytes.substr(range.offset, range.length);
  if (const auto flip = outcome.flip_bit_of_byte;
      flip.has_value() && *flip >= range.offset && *flip - range.offset < range.length) {
    body[*flip - range.offset] = static_cast<char>(body[*flip - range.offset] ^ 1);
  }
  if (outcome.bytes.has_value()) body.resize(*outcome.bytes, 'x');
  uint64_t piece_size = 0;
  {
    absl::MutexLock lock(&mutex_);
    piece_size = piece_size_;
  }
  for (uint64_t at = 0; at < body.size(); at += piece_size) {
    const uint64_t length = std::min<uint64_t>(piece_size, body.size() - at);
    if (context.cancel != nullptr && context.cancel->cancelled())
      return absl::CancelledError("read cancelled");
    if (context.bytes_received != nullptr) context.bytes_received->fetch_add(length);
    {
      absl::MutexLock lock(&mutex_);
      bytes_given_ += length;
    }
    RETURN_IF_ERROR(sink({reinterpret_cast<const uint8_t*>(body.data()) + at, length}));
  }
  return outcome.status;
}

}  // namespace lazyblob::support
