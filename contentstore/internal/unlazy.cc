#include "contentstore/internal/unlazy.h"

#include <algorithm>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

// Ranges asked for at a time: enough to fill a link, few enough to leave the threads and the memory to
// readers.
constexpr int kWindow = 6;
constexpr uint64_t kMaxChunksPerRange = 4096;

// What the callbacks of outstanding ranges report to. Shared with them: they may come after an early end.
class Pending {
 public:
  // Waits for room; false when a range has failed.
  bool Enter() {
    absl::MutexLock lock(&mutex_);
    const auto room = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return outstanding_ < kWindow || !status_.ok();
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

}  // namespace

absl::Status UnlazyChunks(FetchEngine& engine, const std::shared_ptr<Layer>& layer, uint64_t range_bytes,
                          SharedTask& task) {
  const LayerBody* const body = layer->body();
  const std::shared_ptr<const void> pin = body->cache->PinWhole();
  const uint64_t chunks = body->index->chunk_count();
  const double blob_per_data = static_cast<double>(layer->descriptor().size) /
                               static_cast<double>(std::max<uint64_t>(1, body->index->info().data_size));
  const auto pending = std::make_shared<Pending>();
  bool going = true;
  for (uint64_t first = body->cache->FindNotPresent(0, chunks); first < chunks && going;) {
    if (task.cancel()->cancelled()) break;
    const uint64_t end = EndOfRange(*body, first, range_bytes);
    const layer::Chunk last = body->index->chunk(end - 1);
    auto waiter = std::make_shared<Waiter>();
    waiter->layer = layer;
    waiter->body = body;
    waiter->offset = body->index->chunk(first).data_offset;
    waiter->length = last.data_offset + last.data_size - waiter->offset;
    waiter->context.cause = FetchCause::kStream;
    waiter->context.cancel = task.cancel();
    const CredentialsList requesters = task.Requesters();
    if (!requesters.empty()) waiter->context.credentials = requesters.front();
    waiter->wants_range = false;
    waiter->done = [pending](absl::StatusOr<PinnedRange> result) { pending->Leave(result.status()); };
    going = pending->Enter();
    if (going) engine.Acquire(std::move(waiter));
    task.Report(static_cast<uint64_t>(blob_per_data * static_cast<double>(body->cache->cached_bytes())));
    first = body->cache->FindNotPresent(end, chunks);
  }
  const absl::Status status = pending->AwaitAll();
  if (task.cancel()->cancelled()) return absl::CancelledError("nobody waits for the layer any more");
  RETURN_IF_ERROR(status);
  task.Report(layer->descriptor().size);
  return base::Annotate(body->cache->MarkComplete(),
                        absl::StrCat("layer ", layer->descriptor().digest.ToString()));
}

}  // namespace lazyblob::contentstore
