#include "contentstore/internal/unlazy.h"

#include <algorithm>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "contentstore/internal/whole_read.h"

namespace lazyblob::contentstore {
namespace {

// Ranges asked for at a time: enough to fill a link, few enough to leave the threads and the memory to
// readers.
constexpr int kWindow = 6;
// In the background less is asked for at a time: what is on its way when a reader comes delays him.
constexpr uint64_t kBackgroundRangeBytes = 2 << 20;
// A request that has to wait so long for readers lets go of its connection.
constexpr absl::Duration kHoldConnection = absl::Seconds(5);
constexpr uint64_t kMaxChunksPerRange = 4096;

// What the callbacks of outstanding ranges report to. Shared with them: they may come after an early end.
class Pending {
 public:
  // Waits until fewer than `most` ranges are outstanding; false when one has failed.
  bool Enter(int most) {
    absl::MutexLock lock(&mutex_);
    const auto room = [this, most]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return outstanding_ < most || !status_.ok();
    };
    mutex_.Await(absl::Condition(&room));
    if (!status_.ok()) return false;
    ++outstanding_;
    return true;
  }
  void Leave(const absl::Status& status) {
    absl::MutexLock lock(&mutex_);
    --outstanding_;
    if (!status.ok() && status_.ok()) status_ = status;
  }
  absl::Status AwaitAll() {
    absl::MutexLock lock(&mutex_);
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return outstanding_ == 0; };
    mutex_.Await(absl::Condition(&none));
    return status_;
  }

 private:
  absl::Mutex mutex_;
  int outstanding_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

// The end of a run of chunks from `first` that are not present and come with about `range_bytes` of blob.
uint64_t EndOfRange(const LayerBody& body, uint64_t first, uint64_t range_bytes) {
  const layer::LayerIndex& index = *body.index;
  const uint64_t begin = index.chunk(first).blob_offset;
  uint64_t end = first + 1;
  while (end < index.chunk_count() && end - first < kMaxChunksPerRange && !body.cache->Present(end)) {
    const layer::Chunk chunk = index.chunk(end);
    if (chunk.blob_size != 0 && chunk.blob_offset + chunk.blob_size > begin + range_bytes) break;
    ++end;
  }
  return end;
}

// What the work of one call needs.
class Unlazier {
 public:
  Unlazier(const UnlazyParts& parts, const std::shared_ptr<Layer>& layer, bool background, SharedTask& task)
      : parts_(parts),
        layer_(layer),
        body_(*layer->body()),
        background_(background),
        task_(task),
        cause_(background ? FetchCause::kBackground : FetchCause::kStream),
        range_bytes_(background ? std::min(parts.range_bytes, kBackgroundRangeBytes) : parts.range_bytes) {}

  absl::Status Run() {
    // Not in the background: who has to wait for readers may not keep room from them meanwhile.
    std::shared_ptr<const void> pin = background_ ? nullptr : body_.cache->PinWhole();
    RETURN_IF_ERROR(CheckRoom(Missing()));
    if (layer_->Unverified()) {
      RETURN_IF_ERROR(ReadAll());
      if (layer_->state() == LayerState::kQuarantined) return layer_->QuarantineError();
    }
    RETURN_IF_ERROR(FetchMissing());
    task_.Report(layer_->descriptor().size);
    if (background_) {
      pin = body_.cache->PinWhole();
      const uint64_t chunks = body_.index->chunk_count();
      if (body_.cache->FindNotPresent(0, chunks) < chunks) {
        return absl::ResourceExhaustedError(absl::StrCat(Name(), ": others took the room meanwhile"));
      }
    }
    return base::Annotate(body_.cache->MarkComplete(), Name());
  }

 private:
  std::string Name() const { return absl::StrCat("layer ", layer_->descriptor().digest.ToString()); }
  absl::Status Cancelled() const { return absl::CancelledError("nobody waits for the layer any more"); }

  uint64_t Missing() const {
    const uint64_t size = body_.index->info().data_size;
    return size - std::min(size, body_.cache->cached_bytes());
  }

  absl::Status CheckRoom(uint64_t bytes) const {
    if (!background_ || parts_.budget->Fits(bytes)) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat(Name(), ": there is no room for ", bytes, " bytes more without evicting others"));
  }

  // Readers first.
  absl::Status Pause(bool between_requests) const {
    if (task_.cancel()->cancelled()) return Cancelled();
    if (!background_) return absl::OkStatus();
    const absl::Duration patience = between_requests ? absl::InfiniteDuration() : kHoldConnection;
    const bool quiet = parts_.engine->AwaitQuiet(*task_.cancel(), patience);
    if (task_.cancel()->cancelled()) return Cancelled();
    return quiet ? absl::OkStatus() : absl::AbortedError("readers come first");
  }

  absl::Status ReadAll() {
    WholeRead read;
    read.layer = layer_;
    read.spools = parts_.spools;
    read.limits = parts_.limits;
    read.caller.cause = cause_;
    read.caller.cancel = task_.cancel();
    read.caller.requesters = [this] { return task_.Requesters(); };
    if (background_) read.range_bytes = range_bytes_;
    read.report = [this](uint64_t received) { task_.Report(received); };
    read.log = parts_.log;
    read.pause = [this](bool between_requests) { return Pause(between_requests); };
    if (background_) read.room = CacheRoom::kFree;
    return base::Annotate(ReadWhole(read), Name());
  }

  WaiterPtr MakeWaiter(uint64_t first, uint64_t end, const std::shared_ptr<Pending>& pending) {
    const layer::Chunk last = body_.index->chunk(end - 1);
    auto waiter = std::make_shared<Waiter>();
    waiter->layer = layer_;
    waiter->body = &body_;
    waiter->offset = body_.index->chunk(first).data_offset;
    waiter->length = last.data_offset + last.data_size - waiter->offset;
    waiter->context.cause = cause_;
    waiter->context.cancel = task_.cancel();
    const CredentialsList requesters = task_.Requesters();
    if (!requesters.empty()) waiter->context.credentials = requesters.front();
    waiter->wants_range = false;
    waiter->done = [pending](absl::StatusOr<PinnedRange> result) { pending->Leave(result.status()); };
    return waiter;
  }

  absl::Status FetchMissing() {
    const uint64_t chunks = body_.index->chunk_count();
    const double blob_per_data = static_cast<double>(layer_->descriptor().size) /
                                 static_cast<double>(std::max<uint64_t>(1, body_.index->info().data_size));
    const auto pending = std::make_shared<Pending>();
    absl::Status paused;
    bool going = true;
    for (uint64_t first = body_.cache->FindNotPresent(0, chunks); first < chunks && going;) {
      const uint64_t end = EndOfRange(body_, first, range_bytes_);
      WaiterPtr waiter = MakeWaiter(first, end, pending);
      paused = Pause(/*between_requests=*/true);
      if (paused.ok()) paused = CheckRoom(Missing());
      if (!paused.ok()) break;
      going = pending->Enter(background_ ? 1 : kWindow);
      if (going) parts_.engine->Acquire(std::move(waiter));
      task_.Report(static_cast<uint64_t>(blob_per_data * static_cast<double>(body_.cache->cached_bytes())));
      first = body_.cache->FindNotPresent(end, chunks);
    }
    const absl::Status status = pending->AwaitAll();
    if (task_.cancel()->cancelled()) return Cancelled();
    RETURN_IF_ERROR(paused);
    return status;
  }

  const UnlazyParts& parts_;
  const std::shared_ptr<Layer>& layer_;
  const LayerBody& body_;
  const bool background_;
  SharedTask& task_;
  const FetchCause cause_;
  const uint64_t range_bytes_;
};

}  // namespace

absl::Status UnlazyLayer(const UnlazyParts& parts, const std::shared_ptr<Layer>& layer, bool background,
                         SharedTask& task) {
  return Unlazier(parts, layer, background, task).Run();
}

}  // namespace lazyblob::contentstore
