#include "contentstore/internal/fetch_engine.h"

#include <pthread.h>

#include <algorithm>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

// How long the watching thread sleeps at most while somebody has a deadline: a clock of a test jumps
// unannounced.
constexpr absl::Duration kWatchInterval = absl::Milliseconds(50);
// A range that is put together in memory, because the disk was full, is at most so long.
constexpr uint64_t kMaxAssembledBytes = 64 << 20;
// A full disk is told once, not for each chunk.
constexpr int64_t kDiskErrorPauseSeconds = 600;

absl::StatusOr<PinnedRange> MakeRange(const Waiter& waiter) {
  const ChunkCache& cache = *waiter.body->cache;
  if (waiter.memory.empty()) {
    std::shared_ptr<const void> pin = waiter.pin;
    if (pin == nullptr) pin = waiter.layer;
    return PinnedRange(cache.fd(), waiter.offset, waiter.length, std::move(pin));
  }
  if (waiter.length > kMaxAssembledBytes) {
    return absl::ResourceExhaustedError(
        "the cache's disk is full and the range too long to be held in memory");
  }
  auto bytes = std::make_shared<std::vector<uint8_t>>(waiter.length);
  // Chunk by chunk: the file may not give what is in memory. Bytes of no chunk are zeros.
  const LayerBody::ChunkRange chunks = waiter.body->Chunks(waiter.offset, waiter.length);
  for (uint64_t i = chunks.first; i < chunks.end; ++i) {
    const layer::Chunk chunk = waiter.body->index->chunk(i);
    const uint64_t from = std::max(chunk.data_offset, waiter.offset);
    const uint64_t to = std::min(chunk.data_offset + chunk.data_size, waiter.offset + waiter.length);
    if (from >= to) continue;
    const auto out = absl::MakeSpan(*bytes).subspan(from - waiter.offset, to - from);
    const auto found = waiter.memory.find(i);
    if (found == waiter.memory.end()) {
      RETURN_IF_ERROR(base::PreadFull(cache.fd(), from, out));
    } else {
      std::copy_n(found->second->begin() + static_cast<ptrdiff_t>(from - chunk.data_offset), to - from,
                  out.begin());
    }
  }
  return PinnedRange(std::move(bytes), 0, waiter.length);
}

// Lets range sizes follow the link that this layer would be read over now.
void NoteLink(Waiter& waiter) {
  Layer& layer = *waiter.layer;
  const std::vector<std::shared_ptr<BlobSource>> sources = layer.Sources();
  if (sources.empty()) return;
  waiter.host = sources.front()->host();
  const registry::Client::LinkEstimate link = sources.front()->link();
  const double bytes = link.bytes_per_second * absl::ToDoubleSeconds(link.round_trip);
  if (link.ignores_ranges) {  // every request costs the whole blob: one of them shall do
    layer.range_hint().store(kWholeBlob, std::memory_order_relaxed);
  } else if (bytes >= 0 && bytes < 1e15) {
    layer.range_hint().store(static_cast<uint64_t>(bytes), std::memory_order_relaxed);
  }
}

}  // namespace

FetchEngine::FetchEngine(FetchEngineOptions options)
    : options_(std::move(options)), table_(options_.limits) {}

FetchEngine::~FetchEngine() = default;

void FetchEngine::Start() {
  watch_thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "lb-watch");
    WatchLoop();
  });
  absl::MutexLock lock(&mutex_);
  StartFetchThread();
}

void FetchEngine::StartFetchThread() {
  if (stopping_ || threads_.size() >= static_cast<size_t>(options_.limits.threads)) return;
  try {
    threads_.emplace_back([this] {
      pthread_setname_np(pthread_self(), "lb-fetch");
      FetchLoop();
    });
    ++looking_;
  } catch (const std::system_error&) {
    if (threads_.empty()) throw;  // else those that are there do the work
  }
}

void FetchEngine::Stop() {
  Outcome outcome;
  std::vector<std::thread> threads;
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) return;
    stopping_ = true;
    threads.swap(threads_);
    table_.FailAll(absl::CancelledError("the content store is being closed"), &outcome);
    cancelled_.clear();
    anew_.clear();
    work_.SignalAll();
    watch_.SignalAll();
  }
  Settle(std::move(outcome));
  for (std::thread& thread : threads) thread.join();
  if (watch_thread_.joinable()) watch_thread_.join();
}

void FetchEngine::Acquire(WaiterPtr waiter) {
  const LayerBody& body = *waiter->body;
  const LayerBody::ChunkRange chunks = body.Chunks(waiter->offset, waiter->length);
  for (uint64_t i = body.cache->FindNotPresent(chunks.first, chunks.end); i < chunks.end;
       i = body.cache->FindNotPresent(i + 1, chunks.end)) {
    // What an earlier run left is verified here: it needs no network, so it must not queue behind it.
    if (!body.cache->Claimed(i)) continue;
    const absl::Status read = body.cache->Verify(i);
    if (base::HasErrno(read)) NoteReadError(*waiter->layer, read);
  }
  NoteLink(*waiter);
  if (waiter->context.cancel != nullptr) {
    waiter->registration.emplace(
        waiter->context.cancel->OnCancel([this, weak = std::weak_ptr<Waiter>(waiter)] {
          if (const WaiterPtr cancelled = weak.lock()) NoteCancelled(cancelled);
        }));
  }
  Outcome outcome;
  {
    absl::MutexLock lock(&mutex_);
    if (stopping_) {
      outcome.finished.emplace_back(waiter, absl::CancelledError("the content store is closed"));
    } else if (waiter->cancelled) {
      outcome.finished.emplace_back(waiter, absl::CancelledError("the read was cancelled"));
    } else {
      const absl::Duration deadline = table_.NextDeadline();
      table_.Add(waiter, Now(), &outcome);
      if (waiter->waiting && waiter->CanBeMadeAnew() && being_made_.insert(waiter->layer.get()).second) {
        anew_.push_back(waiter);
      }
      if (table_.NextDeadline() < deadline) watch_.Signal();
      work_.Signal();
    }
  }
  Settle(std::move(outcome));
}

void FetchEngine::NoteCancelled(const WaiterPtr& waiter) {
  absl::MutexLock lock(&mutex_);
  waiter->cancelled = true;
  // Its registration may not end inside this callback: another thread does the rest.
  if (waiter->waiting && !stopping_) {
    cancelled_.push_back(waiter);
    watch_.Signal();
  }
}

void FetchEngine::FailOutstanding(const Layer* layer, const absl::Status& status) {
  Outcome outcome;
  {
    absl::MutexLock lock(&mutex_);
    table_.FailLayer(layer, status, &outcome);
    work_.Signal();
  }
  Settle(std::move(outcome));
}

void FetchEngine::MakeAnew(const WaiterPtr& first) {
  Layer& layer = *first->layer;
  FetchContext context;  // others wait for it too: as long as it takes
  context.credentials = first->context.credentials;
  const absl::Status status = options_.make_anew(layer, context);
  Outcome outcome;
  {
    absl::MutexLock lock(&mutex_);
    being_made_.erase(&layer);
    table_.FailLayer(&layer, status, &outcome);
    if (!status.ok()) table_.Cool(layer, *first->body, Now());
  }
  if (!status.ok()) return Settle(std::move(outcome));
  for (auto& [waiter, unused] : outcome.finished) {
    waiter->registration.reset();
    waiter->body = layer.body();
    waiter->missing.clear();
    waiter->made_anew = true;
    Acquire(waiter);
  }
}

void FetchEngine::ReadAhead(const std::shared_ptr<Layer>& layer, uint64_t end) {
  absl::MutexLock lock(&mutex_);
  if (stopping_) return;
  table_.ReadAhead(layer, end);
  work_.Signal();
}

void FetchEngine::StopReadingAhead(const Layer* layer) {
  Outcome outcome;
  {
    absl::MutexLock lock(&mutex_);
    table_.StopReadingAhead(layer, &outcome);
  }
  Settle(std::move(outcome));
}

bool FetchEngine::AwaitQuiet(const base::CancelToken& cancel, absl::Duration most) {
  const absl::Duration end = base::SystemClock().Monotonic() + most;
  absl::MutexLock lock(&mutex_);
  const auto quiet = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || !table_.urgent(); };
  while (!quiet() && !cancel.cancelled()) {
    if (base::SystemClock().Monotonic() >= end) return false;
    quiet_.WaitFor(&mutex_, kWatchInterval);
  }
  return true;
}

CredentialsList FetchEngine::Requesters(const Job& job) {
  absl::MutexLock lock(&mutex_);
  return table_.Requesters(job);
}

absl::Duration FetchEngine::Deadline(const Job& job) {
  absl::MutexLock lock(&mutex_);
  return table_.Deadline(job);
}

void FetchEngine::Deliver(const Job& job, uint64_t chunk, const Bytes& memory) {
  Outcome outcome;
  {
    absl::MutexLock lock(&mutex_);
    table_.Deliver(job, chunk, memory, &outcome);
  }
  Settle(std::move(outcome));
}

bool FetchEngine::MayTell(std::atomic<int64_t>& next) {
  const int64_t now = absl::ToInt64Seconds(Now());
  int64_t at = next.load(std::memory_order_relaxed);
  return now >= at && next.compare_exchange_strong(at, now + kDiskErrorPauseSeconds);
}

void FetchEngine::NoteDiskError(const Layer& layer, const absl::Status& status) {
  if (!MayTell(next_disk_error_)) return;
  options_.log(absl::StrCat("cannot store chunks of layer ", layer.descriptor().digest.ToString(), " (",
                            base::Printable(status.message()),
                            "); reads are served from memory and fetched again each time: free space below "
                            "the root, or raise cache.max_bytes"));
}

void FetchEngine::NoteReadError(const Layer& layer, const absl::Status& status) {
  if (!MayTell(next_read_error_)) return;
  options_.log(absl::StrCat("cannot read cached chunks of layer ", layer.descriptor().digest.ToString(), " (",
                            base::Printable(status.message()),
                            "); they are fetched again: look after the disk below the root"));
}

void FetchEngine::FetchLoop() {
  while (true) {
    JobPtr job;
    WaiterPtr anew;
    {
      absl::MutexLock lock(&mutex_);
      while (!stopping_ && anew_.empty() && (job = table_.NextJob()) == nullptr) work_.Wait(&mutex_);
      if (!anew_.empty()) {
        anew = std::move(anew_.back());
        anew_.pop_back();
      } else if (job == nullptr) {
        return;
      }
      if (--looking_ == 0) StartFetchThread();
      work_.Signal();  // there may be more
    }
    if (anew != nullptr) {
      MakeAnew(anew);
      absl::MutexLock lock(&mutex_);
      ++looking_;
      continue;
    }
    const absl::Status status = JobRunner(*this, *job).Run();
    Outcome outcome;
    {
      absl::MutexLock lock(&mutex_);
      table_.Done(job, status, Now(), &outcome);
      ++looking_;
      work_.Signal();
    }
    Settle(std::move(outcome));
  }
}

void FetchEngine::WatchLoop() {
  while (true) {
    Outcome outcome;
    {
      absl::MutexLock lock(&mutex_);
      while (!stopping_ && cancelled_.empty()) {
        const absl::Duration next = table_.NextDeadline();
        if (next == absl::InfiniteDuration()) {
          watch_.Wait(&mutex_);
          continue;
        }
        const absl::Duration left = next - Now();
        if (left <= absl::ZeroDuration()) break;
        watch_.WaitFor(&mutex_, std::min(left, kWatchInterval));
      }
      if (stopping_) return;
      std::vector<WaiterPtr> cancelled;
      cancelled.swap(cancelled_);
      for (const WaiterPtr& waiter : cancelled) {
        table_.Fail(waiter, absl::CancelledError("the read was cancelled"), &outcome);
      }
      table_.Expire(Now(), &outcome);
      work_.Signal();
    }
    Settle(std::move(outcome));
  }
}

void FetchEngine::Settle(Outcome outcome) {
  quiet_.SignalAll();
  for (const JobPtr& job : outcome.abandoned) job->cancel->Cancel();
  for (auto& [waiter, status] : outcome.finished) {
    if (!Finish(*waiter, status)) Acquire(waiter);
  }
}

bool FetchEngine::Finish(Waiter& waiter, const absl::Status& status) {
  waiter.registration.reset();
  auto result = [&]() -> absl::StatusOr<PinnedRange> {
    RETURN_IF_ERROR(status);
    if (waiter.wants_range) return MakeRange(waiter);
    if (!waiter.memory.empty())
      return absl::ResourceExhaustedError("the cache's disk does not take the chunks");
    return PinnedRange();
  }();
  const bool unreadable = status.ok() && base::HasErrno(result.status());
  if (unreadable && !std::exchange(waiter.asked_again, true)) {
    waiter.layer->Doubt(waiter.offset, waiter.length);
    waiter.memory.clear();
    return false;
  }
  if (result.ok() && waiter.wants_range) waiter.layer->NoteServedBytes(waiter.length);
  if (!result.ok() && !absl::IsCancelled(result.status())) waiter.layer->NoteError(result.status());
  std::move(waiter.done)(std::move(result));
  return true;
}

}  // namespace lazyblob::contentstore
