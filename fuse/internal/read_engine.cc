#include "fuse/internal/read_engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "fuse/internal/protocol.h"

namespace lazyblob::fuse::internal {
namespace {

using contentstore::LazyLayer;
using contentstore::PinnedRange;

// One read() of a program is two or three requests, partly of other sizes: these many seconds, and the
// surrounding region of this size, fail at once after a deadline has passed.
constexpr absl::Duration kFailAtOnce = absl::Seconds(5);
constexpr uint64_t kExpiredRegion = 2 << 20;
// A store answers by its deadline; this long after it the requester gets EIO without it.
constexpr absl::Duration kGrace = absl::Seconds(2);
constexpr size_t kEarlyInterrupts = 256;
constexpr size_t kMaxLogged = 4096;

}  // namespace

void ReadEngine::Read(const ReadTicket& ticket, ReadPlan plan) {
  ++reads_;
  if (any_failing_.load(std::memory_order_relaxed) && Failing(plan.layer->descriptor().digest)) {
    return Fail(ticket, plan, absl::UnavailableError("the layer is being unmounted"));
  }
  std::vector<AnswerPart> parts(plan.extents.size());
  std::vector<size_t> missing;
  for (size_t i = 0; i < parts.size(); ++i) {
    const layer::Extent& extent = plan.extents[i];
    parts[i].position = extent.file_offset;
    if (auto bytes = plan.layer->TryAcquire(extent.data_offset, extent.length)) {
      parts[i].bytes = *std::move(bytes);
    } else {
      missing.push_back(i);
    }
  }
  if (missing.empty()) {
    ++hits_;
    return Answer(ticket, plan, parts);
  }

  auto waiting = std::make_shared<Waiting>();
  waiting->ticket = ticket;
  waiting->plan = std::move(plan);
  waiting->since = options_.clock->Monotonic();
  waiting->deadline =
      waiting->since + (IsResent(ticket.unique) ? options_.resent_deadline : options_.deadline);
  waiting->cancel = std::make_shared<base::CancelToken>();
  waiting->parts = std::move(parts);
  waiting->missing = missing.size();
  const ReadPlan& wanted = waiting->plan;
  if (absl::Status status = Admit(waiting); !status.ok()) {
    return absl::IsCancelled(status) ? options_.replies->Drop(ticket) : Fail(ticket, wanted, status);
  }
  options_.waiting();
  for (size_t i : missing) {
    contentstore::FetchContext context;
    context.deadline = waiting->deadline;
    context.cancel = waiting->cancel;
    wanted.layer->Acquire(wanted.extents[i].data_offset, wanted.extents[i].length, std::move(context),
                          [self = shared_from_this(), waiting, i](absl::StatusOr<PinnedRange> bytes) {
                            self->Arrived(waiting, i, std::move(bytes));
                          });
  }
}

void ReadEngine::Refuse(const ReadTicket& ticket, const absl::Status& status) {
  ++reads_;
  ++failed_;
  LogFailure(ReadPlan{}, status);
  options_.replies->Error(ticket, status);
}

absl::Status ReadEngine::Admit(const WaitingPtr& waiting) {
  const uint64_t first = FirstUnique(waiting->ticket.unique);
  const absl::Duration now = options_.clock->Monotonic();
  const uint32_t layer = waiting->plan.layer->id();
  WaitingPtr superseded;
  bool interrupted = false;
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return absl::CancelledError("it is a successor's");
    if (failing_.contains(waiting->plan.layer->descriptor().digest)) {
      return absl::UnavailableError("the layer is being unmounted");
    }
    expired_.erase(
        std::remove_if(expired_.begin(), expired_.end(), [&](const Expired& e) { return e.until <= now; }),
        expired_.end());
    for (const Expired& expired : expired_) {
      for (const layer::Extent& extent : waiting->plan.extents) {
        if (expired.layer == layer && extent.data_offset < expired.end &&
            extent.data_offset + extent.length > expired.begin) {
          return absl::UnavailableError(
              "a read here has just passed its deadline; try again in a few seconds");
        }
      }
    }
    if (auto it = waiting_.find(first); it != waiting_.end()) {
      superseded = it->second;
      ClaimLocked(superseded);
      waiting->since = superseded->since;
      waiting->deadline = superseded->deadline;
    }
    waiting_[first] = waiting;
    auto early = std::find(early_interrupts_.begin(), early_interrupts_.end(), first);
    if (early != early_interrupts_.end()) {
      *early = 0;
      waiting->interrupted = interrupted = true;
    }
  }
  if (superseded != nullptr) {
    options_.replies->Drop(superseded->ticket);
    Answered();
    superseded->cancel->Cancel();
  }
  if (interrupted) EndIfKilled(waiting);
  return absl::OkStatus();
}

void ReadEngine::Arrived(const WaitingPtr& waiting, size_t part, absl::StatusOr<PinnedRange> bytes) {
  absl::Status status = bytes.status();
  if (status.ok() && bytes->length() != waiting->plan.extents[part].length) {
    status = absl::InternalError("the store gave another length than was asked for");
  }
  std::vector<AnswerPart> parts;
  {
    absl::MutexLock lock(&mutex_);
    if (waiting->claimed) return;
    if (status.ok()) {
      waiting->parts[part].bytes = *std::move(bytes);
      if (--waiting->missing > 0) return;
      parts = std::move(waiting->parts);
    }
    ClaimLocked(waiting);
  }
  if (status.ok()) {
    Answer(waiting->ticket, waiting->plan, parts);
    return Answered();
  }
  if (absl::IsDeadlineExceeded(status)) RememberExpired(*waiting);
  Fail(waiting->ticket, waiting->plan, status);
  Answered();
  waiting->cancel->Cancel();  // the other parts of it
}

bool ReadEngine::Claim(const WaitingPtr& waiting) {
  absl::MutexLock lock(&mutex_);
  return ClaimLocked(waiting);
}

bool ReadEngine::ClaimLocked(const WaitingPtr& waiting) {
  if (waiting->claimed) return false;
  waiting->claimed = true;
  auto it = waiting_.find(FirstUnique(waiting->ticket.unique));
  if (it != waiting_.end() && it->second == waiting) waiting_.erase(it);
  ++answering_;
  return true;
}

void ReadEngine::Answered() {
  absl::MutexLock lock(&mutex_);
  --answering_;
}

void ReadEngine::Interrupt(uint64_t unique) {
  const uint64_t first = FirstUnique(unique);
  WaitingPtr waiting;
  {
    absl::MutexLock lock(&mutex_);
    auto it = waiting_.find(first);
    if (it == waiting_.end()) {
      if (early_interrupts_.size() < kEarlyInterrupts) {
        early_interrupts_.push_back(first);
      } else {
        early_interrupts_[next_early_interrupt_++ % kEarlyInterrupts] = first;
      }
      return;
    }
    waiting = it->second;
    waiting->interrupted = true;
  }
  EndIfKilled(waiting);
}

void ReadEngine::EndIfKilled(const WaitingPtr& waiting) {
  if (!options_.kill_pending(waiting->ticket.pid) || !Claim(waiting)) return;
  options_.replies->Error(waiting->ticket, absl::CancelledError("the reader has been killed"));
  Answered();
  waiting->cancel->Cancel();
}

void ReadEngine::FailLayer(const base::Digest& digest, LazyLayer* layer) {
  std::vector<WaitingPtr> ended;
  {
    absl::MutexLock lock(&mutex_);
    failing_.insert(digest);
    any_failing_ = true;
    for (const auto& [unique, waiting] : waiting_) {
      if (waiting->plan.layer->descriptor().digest == digest) ended.push_back(waiting);
    }
    for (const WaitingPtr& waiting : ended) ClaimLocked(waiting);
  }
  const absl::Status status = absl::UnavailableError("the layer is being unmounted");
  for (const WaitingPtr& waiting : ended) {
    Fail(waiting->ticket, waiting->plan, status);
    Answered();
    waiting->cancel->Cancel();
  }
  if (layer != nullptr) layer->FailOutstanding(status);
}

void ReadEngine::AllowLayer(const base::Digest& digest) {
  absl::MutexLock lock(&mutex_);
  failing_.erase(digest);
  any_failing_ = !failing_.empty();
}

bool ReadEngine::Failing(const base::Digest& layer) const {
  absl::MutexLock lock(&mutex_);
  return failing_.contains(layer);
}

bool ReadEngine::Sweep() {
  const absl::Duration now = options_.clock->Monotonic();
  std::vector<WaitingPtr> overdue;
  std::vector<WaitingPtr> interrupted;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [unique, waiting] : waiting_) {
      if (waiting->deadline + kGrace < now) {
        overdue.push_back(waiting);
      } else if (waiting->interrupted) {
        interrupted.push_back(waiting);
      }
    }
  }
  for (const WaitingPtr& waiting : overdue) {
    if (!Claim(waiting)) continue;
    RememberExpired(*waiting);
    Fail(waiting->ticket, waiting->plan, absl::DeadlineExceededError("no answer within the read deadline"));
    Answered();
    waiting->cancel->Cancel();
  }
  for (const WaitingPtr& waiting : interrupted) EndIfKilled(waiting);
  absl::MutexLock lock(&mutex_);
  return !waiting_.empty();
}

void ReadEngine::RememberExpired(const Waiting& waiting) {
  const absl::Duration until = options_.clock->Monotonic() + kFailAtOnce;
  absl::MutexLock lock(&mutex_);
  const auto& extents = waiting.plan.extents;
  Expired expired{waiting.plan.layer->id(), extents.front().data_offset, 0, until};
  for (const layer::Extent& extent : extents) {
    expired.begin = std::min(expired.begin, extent.data_offset);
    expired.end = std::max(expired.end, extent.data_offset + extent.length);
  }
  expired.begin = expired.begin / kExpiredRegion * kExpiredRegion;
  expired.end = (expired.end + kExpiredRegion - 1) / kExpiredRegion * kExpiredRegion;
  for (Expired& known : expired_) {
    if (known.layer == expired.layer && known.begin == expired.begin && known.end == expired.end) {
      known.until = until;
      return;
    }
  }
  expired_.push_back(expired);
}

void ReadEngine::Stop() {
  std::vector<WaitingPtr> dropped;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    for (const auto& [unique, waiting] : waiting_) dropped.push_back(waiting);
    for (const WaitingPtr& waiting : dropped) ClaimLocked(waiting);
  }
  for (const WaitingPtr& waiting : dropped) {
    options_.replies->Drop(waiting->ticket);
    Answered();
    waiting->cancel->Cancel();
  }
  absl::MutexLock lock(&mutex_);
  auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return answering_ == 0; };
  mutex_.Await(absl::Condition(&none));
}

void ReadEngine::Answer(const ReadTicket& ticket, const ReadPlan& plan, absl::Span<const AnswerPart> parts) {
  absl::Status status = options_.replies->Data(ticket, plan.length, parts);
  if (!status.ok()) return ReadAgain(ticket, plan, parts, status);
  for (const AnswerPart& part : parts) {
    if (part.bytes.in_memory() || part.bytes.length() == 0) continue;
    options_.served(plan.layer->id(), part.bytes.fd(), part.bytes.offset(), part.bytes.length());
  }
}

void ReadEngine::ReadAgain(ReadTicket ticket, const ReadPlan& plan, absl::Span<const AnswerPart> parts,
                           const absl::Status& why) {
  if (ticket.request == nullptr) return Fail(ticket, plan, why);
  for (const AnswerPart& part : parts) {
    if (!part.bytes.in_memory()) plan.layer->Doubt(part.bytes.offset(), part.bytes.length());
  }
  ticket.request = nullptr;
  --reads_;  // it is the same
  Read(ticket, plan);
}

void ReadEngine::Fail(const ReadTicket& ticket, const ReadPlan& plan, const absl::Status& why) {
  ++failed_;
  LogFailure(plan, why);
  // A failed fetch is EIO whatever happened below; an errno of our own disk or sockets would mislead the
  // reader.
  options_.replies->Error(ticket, absl::UnavailableError(why.message()));
}

void ReadEngine::LogFailure(const ReadPlan& plan, const absl::Status& why) {
  const absl::Duration now = options_.clock->Monotonic();
  const base::Digest digest = plan.layer == nullptr ? base::Digest() : plan.layer->descriptor().digest;
  uint64_t silent = 0;
  {
    absl::MutexLock lock(&log_mutex_);
    if (logged_.size() > kMaxLogged) logged_.clear();
    Logged& logged = logged_[digest];
    if (now - logged.at < absl::Seconds(1)) {
      ++logged.silent;
      return;
    }
    logged.at = now;
    silent = std::exchange(logged.silent, 0);
  }
  std::string line = "read failed";
  if (plan.layer != nullptr) {
    absl::StrAppend(&line, ": layer ", digest.ToString());
    if (!plan.extents.empty()) {
      absl::StrAppend(&line, ", bytes ", plan.extents.front().data_offset, "+", plan.length);
    }
  }
  absl::StrAppend(&line, ": ", base::Printable(why.message()), "; the reader gets an I/O error");
  if (silent > 0) absl::StrAppend(&line, " (", silent, " more like it)");
  options_.log(line);
}

ReadEngine::Counters ReadEngine::counters() const {
  absl::MutexLock lock(&mutex_);
  return {reads_, hits_, failed_, waiting_.size()};
}

std::vector<ReadEngine::LayerReads> ReadEngine::waiting() const {
  const absl::Duration now = options_.clock->Monotonic();
  std::vector<LayerReads> result;
  absl::flat_hash_map<base::Digest, size_t> places;
  absl::MutexLock lock(&mutex_);
  for (const auto& [unique, waiting] : waiting_) {
    const base::Digest& digest = waiting->plan.layer->descriptor().digest;
    const auto [place, added] = places.try_emplace(digest, result.size());
    if (added) result.push_back({digest, 0, absl::ZeroDuration()});
    LayerReads& reads = result[place->second];
    ++reads.reads;
    reads.oldest = std::max(reads.oldest, now - waiting->since);
  }
  return result;
}

}  // namespace lazyblob::fuse::internal
