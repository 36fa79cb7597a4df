#include "contentstore/internal/flight_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace lazyblob::contentstore {
namespace {

// One read() of a user becomes two or three of the kernel's: for so long the range fails without being tried
// again.
constexpr absl::Duration kCoolingTime = absl::Seconds(3);

absl::Status DeadlineError(const Waiter& waiter, absl::string_view how) {
  return absl::DeadlineExceededError(absl::StrCat("[", waiter.offset, ", +", waiter.length, ") of layer ",
                                                  waiter.layer->descriptor().digest.ToString(), " ", how));
}

// A quarter is left to demand.
int LowThreads(int threads) { return std::max(1, threads - std::max(1, threads / 4)); }

}  // namespace

FlightTable::FlightTable(const FlightLimits& limits)
    : limits_(limits),
      low_threads_(LowThreads(limits.threads)),
      host_low_threads_(LowThreads(limits.host_threads)),
      low_memory_(limits.max_memory_bytes / 4 * 3) {}

FlightTable::Flight* FlightTable::Find(const Layer* layer, uint64_t chunk) const {
  const auto of_layer = flights_.find(layer);
  if (of_layer == flights_.end()) return nullptr;
  const auto found = of_layer->second.find(chunk);
  return found == of_layer->second.end() ? nullptr : found->second.get();
}

FlightTable::Flight* FlightTable::FindOrAdd(const std::shared_ptr<Layer>& layer, const LayerBody* body,
                                            uint64_t chunk) {
  std::unique_ptr<Flight>& flight = flights_[layer.get()][chunk];
  if (flight == nullptr) {
    flight = std::make_unique<Flight>();
    flight->layer = layer;
    flight->body = body;
    flight->chunk = chunk;
  }
  return flight.get();
}

FlightTable::QueueIterator FlightTable::DropIfIdle(QueueIterator queue) {
  return queue->second.pending.empty() && queue->second.running == 0 ? queues_.erase(queue)
                                                                     : std::next(queue);
}

void FlightTable::Queue(Flight* flight, FetchCause cause) {
  Unqueue(flight);
  flight->cause = cause;
  flight->order = ++last_order_;
  queues_[flight->layer.get()].pending[{cause, flight->order}].flight = flight;
}

void FlightTable::Unqueue(Flight* flight) {
  if (flight->order == 0) return;
  const auto queue = queues_.find(flight->layer.get());
  queue->second.pending.erase({flight->cause, flight->order});
  DropIfIdle(queue);
  flight->order = 0;
}

void FlightTable::Erase(Flight* flight) {
  Unqueue(flight);
  const std::shared_ptr<Layer> layer = flight->layer;  // the key stays valid while it is erased
  const auto of_layer = flights_.find(layer.get());
  of_layer->second.erase(flight->chunk);
  if (of_layer->second.empty()) flights_.erase(of_layer);
}

bool FlightTable::IsCooling(const Waiter& waiter, absl::Duration now) const {
  for (const LayerFetchState::Cooling& range : waiter.layer->fetch_state().cooling) {
    if (now >= range.until) continue;
    const auto chunk = waiter.missing.lower_bound(range.first);
    if (chunk != waiter.missing.end() && *chunk < range.end) return true;
  }
  return false;
}

void FlightTable::Add(const WaiterPtr& waiter, absl::Duration now, Outcome* outcome) {
  const LayerBody::ChunkRange chunks = waiter->body->Chunks(waiter->offset, waiter->length);
  const ChunkCache& cache = *waiter->body->cache;
  for (uint64_t i = cache.FindNotPresent(chunks.first, chunks.end); i < chunks.end;
       i = cache.FindNotPresent(i + 1, chunks.end)) {
    Bytes kept = waiter->wants_range ? FindKept(*waiter->layer, i) : nullptr;
    if (kept != nullptr) {
      waiter->memory[i] = std::move(kept);
    } else {
      waiter->missing.insert(i);
    }
  }
  absl::Status status;
  if (waiter->missing.empty()) {
    outcome->finished.emplace_back(waiter, absl::OkStatus());
    return;
  }
  const bool anew = waiter->CanBeMadeAnew();
  if (!waiter->body->random_access && !anew) {
    status = absl::FailedPreconditionError(absl::StrCat(
        "layer ", waiter->layer->descriptor().digest.ToString(), " can only be read whole: unlazy it first"));
  } else if (waiter->context.deadline <= now) {
    status = DeadlineError(*waiter, "was asked for after its deadline");
  } else if (waiter->context.cause == FetchCause::kDemand && IsCooling(*waiter, now)) {
    status = DeadlineError(*waiter, "did not arrive in time a moment ago and is not tried again yet");
  }
  if (!status.ok()) {
    outcome->finished.emplace_back(waiter, status);
    return;
  }
  waiter->layer->fetch_state().host = waiter->host;
  waiter->id = ++last_id_;
  waiter->waiting = true;
  waiters_[waiter.get()] = waiter;
  if (IsUrgent(waiter->context.cause)) ++urgent_;
  if (waiter->context.deadline != absl::InfiniteDuration()) {
    deadlines_.emplace(waiter->context.deadline, waiter.get());
  }
  const FetchCause cause = waiter->context.cause;
  for (const uint64_t chunk : waiter->missing) {
    Flight* const flight = FindOrAdd(waiter->layer, waiter->body, chunk);
    flight->waiters[waiter->id] = waiter.get();
    if (flight->job != nullptr) {
      ++flight->job->links;
    } else if (!anew && (flight->order == 0 || cause < flight->cause)) {
      Queue(flight, cause);
    }
  }
}

void FlightTable::Leave(Waiter* waiter, Outcome* outcome) {
  std::vector<JobPtr> jobs;
  for (const uint64_t chunk : waiter->missing) {
    Flight* const flight = Find(waiter->layer.get(), chunk);
    if (flight == nullptr || flight->waiters.erase(waiter->id) == 0) continue;
    if (flight->job != nullptr) {
      --flight->job->links;
      if (jobs.empty() || jobs.back() != flight->job) jobs.push_back(flight->job);
    } else if (flight->waiters.empty()) {
      Erase(flight);
    }
  }
  deadlines_.erase({waiter->context.deadline, waiter});
  waiter->waiting = false;
  if (IsUrgent(waiter->context.cause)) --urgent_;
  waiters_.erase(waiter);
  for (const JobPtr& job : jobs) {
    if (job->links == 0 && !job->speculative && !job->abandoned) Abandon(job, outcome);
  }
}

void FlightTable::Abandon(const JobPtr& job, Outcome* outcome) {
  job->abandoned = true;
  for (const Job::Item& item : job->items) {
    Flight* const flight = Find(job->layer.get(), item.chunk_number);
    if (flight != nullptr && flight->job == job) Erase(flight);
  }
  outcome->abandoned.push_back(job);
}

bool FlightTable::Fail(WaiterPtr waiter, const absl::Status& status, Outcome* outcome) {
  if (!waiter->waiting) return false;
  Leave(waiter.get(), outcome);
  outcome->finished.emplace_back(std::move(waiter), status);
  return true;
}

void FlightTable::FailLayer(const Layer* layer, const absl::Status& status, Outcome* outcome) {
  std::vector<WaiterPtr> waiters;
  for (const auto& [pointer, waiter] : waiters_) {
    if (waiter->layer.get() == layer) waiters.push_back(waiter);
  }
  for (const WaiterPtr& waiter : waiters) Fail(waiter, status, outcome);
}

void FlightTable::FailAll(const absl::Status& status, Outcome* outcome) {
  while (!waiters_.empty()) {
    const WaiterPtr waiter = waiters_.begin()->second;
    Fail(waiter, status, outcome);
  }
  for (auto it = queues_.begin(); it != queues_.end();) {
    it->second.pending.clear();  // only wishes are left
    it = DropIfIdle(it);
  }
  std::set<JobPtr> jobs;
  for (const auto& [layer, flights] : flights_) {
    for (const auto& [chunk, flight] : flights) jobs.insert(flight->job);
  }
  for (const JobPtr& job : jobs) Abandon(job, outcome);
}

void FlightTable::StopReadingAhead(const Layer* layer, Outcome* outcome) {
  if (const auto queue = queues_.find(layer); queue != queues_.end()) {
    std::erase_if(queue->second.pending, [](const auto& one) { return one.second.flight == nullptr; });
    DropIfIdle(queue);
  }
  const auto of_layer = flights_.find(layer);
  if (of_layer == flights_.end()) return;
  std::set<JobPtr> jobs;
  for (const auto& [chunk, flight] : of_layer->second) {
    if (flight->job != nullptr && flight->job->links == 0) jobs.insert(flight->job);
  }
  for (const JobPtr& job : jobs) Abandon(job, outcome);
}

void FlightTable::Cool(Layer& layer, const LayerBody& body, absl::Duration now) {
  layer.fetch_state().cooling.push_back({0, body.index->chunk_count(), now + kCoolingTime});
}

void FlightTable::Expire(absl::Duration now, Outcome* outcome) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const WaiterPtr waiter = waiters_.at(deadlines_.begin()->second);
    if (waiter->context.cause == FetchCause::kDemand) {
      std::vector<LayerFetchState::Cooling>& cooling = waiter->layer->fetch_state().cooling;
      cooling.erase(
          std::remove_if(cooling.begin(), cooling.end(), [now](const auto& c) { return c.until <= now; }),
          cooling.end());
      const LayerFetchState::Cooling range{*waiter->missing.begin(), *waiter->missing.rbegin() + 1,
                                           now + kCoolingTime};
      const bool known = std::any_of(cooling.begin(), cooling.end(), [&](const auto& c) {
        return c.first <= range.first && range.end <= c.end && c.until == range.until;
      });
      if (!known) cooling.push_back(range);
    }
    Fail(waiter, DeadlineError(*waiter, "did not arrive in time"), outcome);
  }
}

absl::Duration FlightTable::NextDeadline() const {
  return deadlines_.empty() ? absl::InfiniteDuration() : deadlines_.begin()->first;
}

void FlightTable::Deliver(const Job& job, uint64_t chunk, const Bytes& memory, Outcome* outcome) {
  if (memory != nullptr) Keep(*job.layer, chunk, memory);
  Flight* const flight = Find(job.layer.get(), chunk);
  if (flight == nullptr) return;
  const auto waiters = std::move(flight->waiters);
  if (flight->job != nullptr) flight->job->links -= waiters.size();
  Erase(flight);
  for (const auto& [id, pointer] : waiters) {
    const WaiterPtr waiter = waiters_.at(pointer);
    waiter->missing.erase(chunk);
    if (memory != nullptr) waiter->memory[chunk] = memory;
    if (waiter->missing.empty()) Fail(waiter, absl::OkStatus(), outcome);
  }
}

void FlightTable::Done(const JobPtr& job, const absl::Status& status, absl::Duration now, Outcome* outcome) {
  const auto queue = queues_.find(job->layer.get());
  --queue->second.running;
  DropIfIdle(queue);
  const auto share = hosts_.find(job->host);
  --running_, --share->second.running;
  if (job->cause != FetchCause::kDemand) --running_low_, --share->second.running_low;
  memory_ -= job->memory, share->second.memory -= job->memory;
  if (job->large) running_large_ = false;
  if (share->second.running == 0) hosts_.erase(share);
  if (IsUrgent(job->cause)) --urgent_;
  if (job->abandoned) return;
  job->abandoned = true;  // over: nobody has to stop it any more
  Expire(now, outcome);   // those whose time is up are told so, not what the source made of it
  const absl::Status error = status.ok() ? absl::InternalError("a fetch ended without its bytes") : status;
  for (const Job::Item& item : job->items) {
    Flight* flight = Find(job->layer.get(), item.chunk_number);
    if (flight == nullptr || flight->job != job) continue;
    if (absl::IsDeadlineExceeded(status)) {
      FetchCause cause = FetchCause::kStream;
      for (const auto& [id, waiter] : flight->waiters) cause = std::min(cause, waiter->context.cause);
      if (!flight->waiters.empty()) {
        flight->job = nullptr;
        Queue(flight, cause);
        continue;
      }
    }
    while (flight != nullptr && !flight->waiters.empty()) {
      Fail(waiters_.at(flight->waiters.begin()->second), error, outcome);
      flight = Find(job->layer.get(), item.chunk_number);
    }
    if (flight != nullptr && flight->job == job) Erase(flight);
  }
}

std::vector<std::shared_ptr<const registry::CredentialsProvider>> FlightTable::Requesters(const Job& job) {
  std::vector<std::shared_ptr<const registry::CredentialsProvider>> result;
  for (const Job::Item& item : job.items) {
    const Flight* const flight = Find(job.layer.get(), item.chunk_number);
    if (flight == nullptr) continue;
    for (const auto& [id, waiter] : flight->waiters) {
      if (std::find(result.begin(), result.end(), waiter->context.credentials) == result.end()) {
        result.push_back(waiter->context.credentials);
      }
    }
  }
  if (result.size() > 1) {
    std::rotate(result.begin(), result.begin() + static_cast<ptrdiff_t>(rotation_++ % result.size()),
                result.end());
  }
  return result;
}

absl::Duration FlightTable::Deadline(const Job& job) const {
  absl::Duration latest = -absl::InfiniteDuration();
  for (const Job::Item& item : job.items) {
    const Flight* const flight = Find(job.layer.get(), item.chunk_number);
    if (flight == nullptr) continue;
    for (const auto& [id, waiter] : flight->waiters) latest = std::max(latest, waiter->context.deadline);
  }
  return latest == -absl::InfiniteDuration() ? absl::InfiniteDuration() : latest;
}

Bytes FlightTable::FindKept(const Layer& layer, uint64_t chunk) const {
  for (const Kept& kept : kept_) {
    if (kept.layer_id == layer.id() && kept.chunk == chunk) return kept.bytes;
  }
  return nullptr;
}

void FlightTable::Keep(const Layer& layer, uint64_t chunk, const Bytes& bytes) {
  kept_.push_back({layer.id(), chunk, bytes});
  kept_bytes_ += bytes->size();
  while (kept_bytes_ > limits_.max_memory_bytes / 4 && kept_.size() > 1) {
    kept_bytes_ -= kept_.front().bytes->size();
    kept_.pop_front();
  }
}

}  // namespace lazyblob::contentstore
