// The part of FlightTable that makes jobs: what is fetched next, and how much of it in one request.

#include <algorithm>
#include <tuple>

#include "contentstore/internal/flight_table.h"

namespace lazyblob::contentstore {
namespace {

// Between two chunks so many bytes are cheaper read than asked around (tar headers, small chunks already
// there).
constexpr uint64_t kMaxGapBytes = 16 << 10;
constexpr uint64_t kMaxItems = 4096;
// Chunks that come with a range unasked are decoded too, but not where that means inflating much to get at
// little.
constexpr uint64_t kMaxUnaskedSkip = 64 << 20;
constexpr uint64_t kJobOverheadBytes = 512 << 10;
// Ranges in a row after which a reader counts as sequential.
constexpr int kSequential = 2;
constexpr int kMaxAheadRanges = 4;

uint64_t BlobEnd(const layer::Chunk& chunk) { return chunk.blob_offset + chunk.blob_size; }

// What a reader of the run that has come up to `chunk` has read of the blob.
uint64_t RunBytes(const LayerFetchState& state, const layer::LayerIndex& index, uint64_t chunk) {
  const uint64_t at = chunk < index.chunk_count() ? index.chunk(chunk).blob_offset : index.info().blob_size;
  return at - std::min(at, state.run_blob);
}

}  // namespace

// Grows one job around its first chunk.
class FlightTable::JobBuilder {
 public:
  JobBuilder(const FlightTable& table, const std::shared_ptr<Layer>& layer, const LayerBody* body,
             FetchCause cause)
      : table_(table), index_(*body->index), cache_(*body->cache), job_(std::make_shared<Job>()) {
    job_->layer = layer;
    job_->body = body;
    job_->cause = cause;
    job_->cancel = std::make_shared<base::CancelToken>();
  }

  JobPtr Build(uint64_t head, uint64_t limit, uint64_t target) {
    const layer::Chunk chunk = index_.chunk(head);
    begin_ = chunk.blob_offset;
    end_ = BlobEnd(chunk);
    Take(head, chunk);
    if (chunk.blob_size != 0) {
      GrowBackward(head, target);
      GrowForward(head, limit, target);
    }
    std::sort(job_->items.begin(), job_->items.end(), [](const Job::Item& a, const Job::Item& b) {
      return std::make_pair(BlobEnd(a.chunk), a.chunk_number) <
             std::make_pair(BlobEnd(b.chunk), b.chunk_number);
    });
    uint64_t largest_data = 0;
    uint64_t largest_blob = 0;
    for (const Job::Item& item : job_->items) {
      largest_data = std::max(largest_data, item.chunk.data_size);
      largest_blob = std::max(largest_blob, item.chunk.blob_size);
    }
    const bool refused = largest_blob > kMaxChunkBlobBytes;  // before it reads anything
    job_->memory = (refused ? 0 : largest_data + largest_blob) + kJobOverheadBytes;
    return job_;
  }

 private:
  enum class Want { kAsked, kUnasked, kHave, kTaken };

  Want Classify(uint64_t i) const {
    const Flight* const flight = table_.Find(job_->layer.get(), i);
    if (flight != nullptr) return flight->job == nullptr ? Want::kAsked : Want::kTaken;
    return cache_.Missing(i) ? Want::kUnasked : Want::kHave;
  }

  void Take(uint64_t i, const layer::Chunk& chunk) {
    Job::Item item;
    item.chunk_number = i;
    item.chunk = chunk;
    job_->items.push_back(item);
  }

  // Whether an unasked chunk inside the range already is worth decoding.
  bool Affordable(const layer::Chunk& chunk) {
    if (chunk.codec != layer::Codec::kGzipMember && chunk.codec != layer::Codec::kZstdFrame) return true;
    skipped_ += std::min(chunk.codec_argument, kMaxUnaskedSkip + 1);
    return skipped_ <= kMaxUnaskedSkip;
  }

  bool Inside(const layer::Chunk& chunk) const {
    return chunk.blob_offset >= begin_ && BlobEnd(chunk) <= end_;
  }

  static uint64_t MaxGap(uint64_t target) { return target == kWholeBlob ? kWholeBlob : kMaxGapBytes; }

  // Only what was asked for, and what the range holds anyway; or all.
  void GrowBackward(uint64_t head, uint64_t target) {
    for (uint64_t i = head; i-- > 0 && head - i < kMaxItems && job_->items.size() < kMaxItems;) {
      const layer::Chunk chunk = index_.chunk(i);
      const Want want = Classify(i);
      if (chunk.blob_offset > begin_ || want == Want::kTaken) return;
      if (begin_ > BlobEnd(chunk) && begin_ - BlobEnd(chunk) > MaxGap(target)) return;
      if (want == Want::kHave) continue;
      if (Inside(chunk)) {
        if (want == Want::kAsked || Affordable(chunk)) Take(i, chunk);
        continue;
      }
      if (want == Want::kUnasked && target != kWholeBlob) continue;  // the gap ends the walk
      const uint64_t begin = std::min(begin_, chunk.blob_offset);
      const uint64_t end = std::max(end_, BlobEnd(chunk));
      if (end - begin > std::max(table_.limits_.max_range_bytes, target)) return;
      begin_ = begin;
      end_ = end;
      Take(i, chunk);
    }
  }

  // What was asked for up to the largest range; what was not up to `target` bytes.
  void GrowForward(uint64_t head, uint64_t limit, uint64_t target) {
    for (uint64_t i = head + 1; i < limit && i - head < kMaxItems && job_->items.size() < kMaxItems; ++i) {
      const layer::Chunk chunk = index_.chunk(i);
      const Want want = Classify(i);
      if (want == Want::kHave || (chunk.blob_size == 0 && want == Want::kUnasked)) continue;
      if (want == Want::kTaken) return;
      if (chunk.blob_size == 0) {
        Take(i, chunk);
        continue;
      }
      if (Inside(chunk)) {
        if (want == Want::kAsked || Affordable(chunk)) Take(i, chunk);
        continue;
      }
      if (chunk.blob_offset < begin_) return;
      if (chunk.blob_offset > end_ && chunk.blob_offset - end_ > MaxGap(target)) return;
      const uint64_t most = want == Want::kAsked ? std::max(table_.limits_.max_range_bytes, target) : target;
      if (BlobEnd(chunk) - begin_ > most) return;
      end_ = std::max(end_, BlobEnd(chunk));
      Take(i, chunk);
    }
  }

  const FlightTable& table_;
  const layer::LayerIndex& index_;
  const ChunkCache& cache_;
  const JobPtr job_;
  uint64_t begin_ = 0;
  uint64_t end_ = 0;
  uint64_t skipped_ = 0;
};

uint64_t FlightTable::RangeTarget(Layer& layer, int streak, uint64_t run, FetchCause cause) const {
  if (cause != FetchCause::kDemand) return 0;  // the others know what they want
  if (layer.range_hint().load(std::memory_order_relaxed) == kWholeBlob) return kWholeBlob;
  // A first touch says nothing about its neighbours: little more than what was asked for. A reader that goes
  // on gets twice as much each time, and once it is plainly sequential what the link carries in one round
  // trip, though not more than it has read so far: most files end soon.
  uint64_t wanted = limits_.min_range_bytes << std::min(streak, 5);
  if (streak > kSequential) wanted = std::max(wanted, layer.range_hint().load(std::memory_order_relaxed));
  return std::clamp(std::min(wanted, run), limits_.min_range_bytes, limits_.max_range_bytes);
}

JobPtr FlightTable::BuildForFlight(const Flight& flight, FetchCause cause) const {
  const LayerFetchState& state = flight.layer->fetch_state();
  const uint64_t run = RunBytes(state, *flight.body->index, flight.chunk + 1);
  JobBuilder builder(*this, flight.layer, flight.body, cause);
  return builder.Build(flight.chunk, flight.body->index->chunk_count(),
                       RangeTarget(*flight.layer, state.StreakAt(flight.chunk), run, cause));
}

JobPtr FlightTable::BuildForWish(Wish* wish, FetchCause cause) const {
  for (; wish->first < wish->end; ++wish->first) {
    const Flight* const flight = Find(wish->layer.get(), wish->first);
    if (flight != nullptr && flight->job != nullptr) continue;
    if (flight == nullptr && !wish->body->cache->Missing(wish->first)) continue;
    JobBuilder builder(*this, wish->layer, wish->body, cause);
    return builder.Build(wish->first, wish->end, limits_.max_range_bytes);
  }
  return nullptr;
}

FlightTable::Room FlightTable::RoomFor(FetchCause cause, const std::string& host, uint64_t memory) const {
  if (running_ == 0) return Room::kYes;
  const bool low = cause != FetchCause::kDemand;
  const uint64_t most = low ? low_memory_ : limits_.max_memory_bytes;
  if (low && running_low_ >= low_threads_) return Room::kLater;
  const bool large = memory > limits_.max_memory_bytes / 4;
  const uint64_t left = large ? limits_.max_memory_bytes / 8 : 0;
  if (memory > most - left || memory_ > most - left - memory)
    return large ? Room::kNotThisLayer : Room::kLater;
  const auto found = hosts_.find(host);
  if (found == hosts_.end()) return Room::kYes;
  const HostShare& share = found->second;
  const bool busy = share.running >= limits_.host_threads ||
                    (low && share.running_low >= host_low_threads_) || running_ >= low_threads_ ||
                    share.memory + memory > limits_.max_memory_bytes / 2 || memory_ + memory > low_memory_;
  return busy ? Room::kNotThisHost : Room::kYes;
}

std::vector<const Layer*> FlightTable::LayersInOrder() const {
  std::vector<std::tuple<FetchCause, int, uint64_t, const Layer*>> layers;
  for (const auto& [layer, queue] : queues_) {
    if (queue.pending.empty()) continue;
    const auto& [cause, order] = queue.pending.begin()->first;
    layers.emplace_back(cause, queue.running, order, layer);
  }
  std::sort(layers.begin(), layers.end());
  std::vector<const Layer*> result;
  for (const auto& one : layers) result.push_back(std::get<const Layer*>(one));
  return result;
}

JobPtr FlightTable::BuildNext(LayerQueue* queue) const {
  while (!queue->pending.empty()) {
    const auto first = queue->pending.begin();
    const FetchCause cause = first->first.first;
    Pending& pending = first->second;
    JobPtr job = pending.flight != nullptr ? BuildForFlight(*pending.flight, cause)
                                           : BuildForWish(&pending.wish, cause);
    if (job != nullptr) return job;
    queue->pending.erase(first);  // a wish that has come true
  }
  return nullptr;
}

std::string FlightTable::HostOf(const Pending& pending) {
  Layer& layer = pending.flight != nullptr ? *pending.flight->layer : *pending.wish.layer;
  return layer.fetch_state().host;
}

JobPtr FlightTable::NextJob() {
  std::set<std::string> full;
  for (const Layer* layer : LayersInOrder()) {
    const auto queue = queues_.find(layer);
    const FetchCause cause = queue->second.pending.begin()->first.first;
    const std::string host = HostOf(queue->second.pending.begin()->second);
    if (full.contains(host)) continue;
    Room room = RoomFor(cause, host, 0);
    if (room == Room::kLater) return nullptr;
    JobPtr job;
    if (room == Room::kYes) {
      job = BuildNext(&queue->second);
      if (job == nullptr) {
        DropIfIdle(queue);
        continue;
      }
      const uint64_t quarter = limits_.max_memory_bytes / 4;
      job->large = job->memory > quarter && !running_large_;
      if (job->large) job->memory = quarter;
      room = RoomFor(job->cause, host, job->memory);
    }
    if (room == Room::kYes) {
      Start(job);
      return job;
    }
    // Others go on meanwhile: what has the memory may hang. The quarter that is left to hosts without a job
    // is enough for each that is not large.
    if (room != Room::kNotThisLayer) full.insert(host);
  }
  return nullptr;
}

void FlightTable::Start(const JobPtr& job) {
  job->host = job->layer->fetch_state().host;
  HostShare& share = hosts_[job->host];
  ++running_, ++share.running;
  if (job->cause != FetchCause::kDemand) ++running_low_, ++share.running_low;
  memory_ += job->memory, share.memory += job->memory;
  if (job->large) running_large_ = true;
  ++queues_[job->layer.get()].running;
  for (const Job::Item& item : job->items) {
    Flight* const flight = FindOrAdd(job->layer, job->body, item.chunk_number);
    Unqueue(flight);
    flight->job = job;
    job->links += flight->waiters.size();
  }
  job->speculative = job->links == 0;
  if (IsUrgent(job->cause)) ++urgent_;
  NoteSequence(*job);
}

void FlightTable::NoteSequence(const Job& job) {
  if (job.cause != FetchCause::kDemand) return;
  uint64_t first = UINT64_MAX;
  uint64_t end = 0;
  uint64_t asked_end = 0;
  for (const Job::Item& item : job.items) {
    first = std::min(first, item.chunk_number);
    end = std::max(end, item.chunk_number + 1);
    const Flight* const flight = Find(job.layer.get(), item.chunk_number);
    if (flight != nullptr && !flight->waiters.empty()) asked_end = std::max(asked_end, item.chunk_number + 1);
  }
  LayerFetchState& state = job.layer->fetch_state();
  const bool overtaken = first >= state.run_chunk && first < state.next_chunk;
  state.streak = state.StreakAt(first);
  if (state.streak == 0) state.run_blob = job.body->index->chunk(first).blob_offset;
  state.run_chunk = first;
  if (overtaken) {  // the reader is faster than what is read ahead of it, which goes on
    state.next_chunk = std::max(state.next_chunk, end);
    return;
  }
  state.next_chunk = end;
  if (state.streak < kSequential) {
    job.layer->ahead_trigger().store(UINT64_MAX, std::memory_order_relaxed);
    return;
  }
  state.ahead_chunk = end;
  WishAhead(job.layer, job.body, asked_end);
}

void FlightTable::WishAhead(const std::shared_ptr<Layer>& layer, const LayerBody* body, uint64_t position) {
  LayerFetchState& state = layer->fetch_state();
  const layer::LayerIndex& index = *body->index;
  if (state.ahead_chunk >= index.chunk_count()) {
    layer->ahead_trigger().store(UINT64_MAX, std::memory_order_relaxed);
    return;
  }
  layer->ahead_trigger().store(index.chunk(state.ahead_chunk).data_offset, std::memory_order_relaxed);
  // All that is read ahead is at most as much as was read.
  const uint64_t run = RunBytes(state, index, position);
  const uint64_t limit = state.run_blob + 2 * run;
  const uint64_t target = RangeTarget(*layer, state.streak, run, FetchCause::kDemand);
  const int ranges = std::min(state.streak - kSequential + 1, kMaxAheadRanges);
  for (int n = 0; n < ranges && state.ahead_chunk < index.chunk_count(); ++n) {
    const uint64_t first = state.ahead_chunk;
    const uint64_t begin = index.chunk(first).blob_offset;
    if (begin >= limit && n > 0) break;
    const uint64_t most = std::min(target, limit - std::min(limit, begin));
    uint64_t end = first + 1;
    while (end < index.chunk_count() && end - first < kMaxItems && BlobEnd(index.chunk(end)) >= begin &&
           BlobEnd(index.chunk(end)) - begin <= most) {
      ++end;
    }
    queues_[layer.get()].pending[{FetchCause::kReadAhead, ++last_order_}].wish =
        Wish{layer, body, first, end};
    state.ahead_chunk = end;
  }
  state.next_chunk = state.ahead_chunk;  // a miss after what is read ahead continues the run
}

void FlightTable::ReadAhead(const std::shared_ptr<Layer>& layer, uint64_t end) {
  std::atomic<uint64_t>& trigger = layer->ahead_trigger();
  const LayerBody* const body = layer->body();
  if (body == nullptr || end <= trigger.load(std::memory_order_relaxed)) return;  // somebody was here before
  LayerFetchState& state = layer->fetch_state();
  const layer::LayerIndex& index = *body->index;
  const uint64_t asked = state.ahead_chunk < index.chunk_count() ? index.chunk(state.ahead_chunk).data_offset
                                                                 : index.info().data_size;
  if (state.streak < kSequential || end > asked) {  // another reader, somewhere else
    trigger.store(UINT64_MAX, std::memory_order_relaxed);
    return;
  }
  ++state.streak;
  state.run_chunk = index.FindChunk(trigger.load(std::memory_order_relaxed));
  WishAhead(layer, body, state.run_chunk);
}

}  // namespace lazyblob::contentstore
