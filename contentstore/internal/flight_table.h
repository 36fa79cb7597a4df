#pragma once

// Who waits for which chunk, and what is fetched next: the book-keeping of the FetchEngine, without threads,
// I/O or locks. Not thread-safe: the engine calls it with its mutex held.
//
// A *flight* is a missing chunk that somebody wants; there is at most one per chunk, whatever the number of
// waiters. A *job* is a run of flights of one layer that one request brings.

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "contentstore/internal/layer.h"

namespace lazyblob::contentstore {

using Bytes = std::shared_ptr<const std::vector<uint8_t>>;

// One call of Acquire.
struct Waiter {
  // Set by the caller.
  std::shared_ptr<Layer> layer;
  const LayerBody* body = nullptr;
  uint64_t offset = 0;
  uint64_t length = 0;
  FetchContext context;
  std::shared_ptr<const void>
      pin;                  // keeps chunks of the range that have come; may be null where none are wanted
  std::string host;         // of the source that would be asked now
  bool wants_range = true;  // false: only that the chunks are in the cache file matters (unlazy)
  absl::AnyInvocable<void(absl::StatusOr<PinnedRange>) &&> done;

  // The table's; guarded by the engine's mutex.
  uint64_t id = 0;
  bool waiting = false;
  bool cancelled = false;
  std::set<uint64_t> missing;
  std::map<uint64_t, Bytes> memory;  // chunks that the disk could not take

  // The layer can only be read whole, once was, and has lost chunks to the disk since.
  bool CanBeMadeAnew() const {
    return !body->random_access && !made_anew &&
           (body->cache->cached_bytes() > 0 || body->cache->rotten() > 0);
  }

  // Used by the one thread that sets it up and, after the waiter has left the table, by the one that finishes
  // it.
  std::optional<base::CancelToken::Registration> registration;
  bool asked_again = false;  // for a part of it could not be read
  bool made_anew = false;    // its layer was, for its sake
};
using WaiterPtr = std::shared_ptr<Waiter>;

// What background fill waits for.
inline bool IsUrgent(FetchCause cause) { return cause < FetchCause::kBackground; }

// A chunk that needs more of the blob at once is one that somebody made to exhaust memory: it is refused.
inline constexpr uint64_t kMaxChunkBlobBytes = 128 << 20;

struct Job {
  struct Item {
    uint64_t chunk_number = 0;
    layer::Chunk chunk;
    bool done = false;  // the running thread's
  };
  // Immutable once made, but for Item::done.
  std::shared_ptr<Layer> layer;
  const LayerBody* body = nullptr;
  FetchCause cause = FetchCause::kDemand;
  std::vector<Item> items;  // by end of blob range
  uint64_t memory = 0;      // bytes it may hold at once; of a large one a quarter of the limit
  bool large = false;       // holds more than `memory`
  std::string host;
  std::shared_ptr<base::CancelToken> cancel;

  // The table's.
  uint64_t links = 0;        // pairs of a waiter and one of its chunks in this job
  bool speculative = false;  // started without a waiter: having none is no reason to stop
  bool abandoned = false;
};
using JobPtr = std::shared_ptr<Job>;

// What has to be done once the engine's mutex is free.
struct Outcome {
  std::vector<std::pair<WaiterPtr, absl::Status>> finished;
  std::vector<JobPtr> abandoned;
};

struct FlightLimits {
  uint64_t min_range_bytes = 0;
  uint64_t max_range_bytes = 0;
  uint64_t max_memory_bytes = 0;
  int host_threads = 0;  // jobs of one host at a time, at most
  int threads = 0;       // of all hosts
};

class FlightTable {
 public:
  explicit FlightTable(const FlightLimits& limits);

  // Enters a waiter, or finishes it: nothing is missing any more, its deadline has passed, or the range is
  // cooling down after an expired deadline (design rule 8). In a layer that can only be read whole no job is
  // made for it: it waits until somebody calls FailLayer, where CanBeMadeAnew, and is finished where not.
  void Add(const WaiterPtr& waiter, absl::Duration now, Outcome* outcome);
  // Takes a waiter out with `status`. False when it was not waiting (any more).
  // By value: the table may hold the only other reference.
  bool Fail(WaiterPtr waiter, const absl::Status& status, Outcome* outcome);
  void FailLayer(const Layer* layer, const absl::Status& status, Outcome* outcome);
  void FailAll(const absl::Status& status, Outcome* outcome);
  void Expire(absl::Duration now, Outcome* outcome);
  // Demand for the layer fails at once for some seconds.
  static void Cool(Layer& layer, const LayerBody& body, absl::Duration now);
  // InfiniteDuration when nobody has a deadline.
  absl::Duration NextDeadline() const;

  // A reader has come past the layer's ahead_trigger(), up to `end` of the data area: reads on ahead of it.
  void ReadAhead(const std::shared_ptr<Layer>& layer, uint64_t end);
  void StopReadingAhead(const Layer* layer, Outcome* outcome);

  // The most urgent job that may start now, started; null when there is none. Among equally urgent ones the
  // layer with the fewest jobs goes first. All jobs of a host may hang: it has at most host_threads and half
  // of the memory, and a quarter of threads and memory is left to hosts that have no job. Of jobs that need
  // more than a quarter of the memory one counts as a quarter, so that it waits for nobody and nobody for it;
  // another one beside it leaves an eighth free.
  JobPtr NextJob();
  // Whether there is anything to fetch that goes before FetchCause::kBackground.
  bool urgent() const { return urgent_ > 0; }
  // A chunk of the job has arrived, in the cache file or (`memory` not null) not.
  void Deliver(const Job& job, uint64_t chunk, const Bytes& memory, Outcome* outcome);
  // The job is over; who still waits for one of its chunks gets `status`. After an expired deadline those
  // whose own deadline has not come are served by another job instead.
  void Done(const JobPtr& job, const absl::Status& status, absl::Duration now, Outcome* outcome);

  // Distinct credentials of the living waiters of the job, another one first each time.
  std::vector<std::shared_ptr<const registry::CredentialsProvider>> Requesters(const Job& job);
  // The latest deadline of the job's living waiters.
  absl::Duration Deadline(const Job& job) const;

 private:
  struct Flight {
    std::shared_ptr<Layer> layer;
    const LayerBody* body = nullptr;
    uint64_t chunk = 0;
    FetchCause cause = FetchCause::kDemand;
    uint64_t order = 0;                   // its place in the layer's queue; 0: none
    std::map<uint64_t, Waiter*> waiters;  // by id
    JobPtr job;                           // null while pending
  };
  // Chunks [first, end) that would be good to have.
  struct Wish {
    std::shared_ptr<Layer> layer;
    const LayerBody* body = nullptr;
    uint64_t first = 0;
    uint64_t end = 0;
  };
  struct Pending {
    Flight* flight = nullptr;  // null: a wish
    Wish wish;
  };
  using Place = std::pair<FetchCause, uint64_t>;
  struct LayerQueue {
    std::map<Place, Pending> pending;
    int running = 0;  // jobs
  };
  // What running jobs of one host have.
  struct HostShare {
    int running = 0;
    int running_low = 0;
    uint64_t memory = 0;
  };
  using LayerFlights = std::map<uint64_t, std::unique_ptr<Flight>>;
  class JobBuilder;  // flight_jobs.cc

  Flight* Find(const Layer* layer, uint64_t chunk) const;
  Flight* FindOrAdd(const std::shared_ptr<Layer>& layer, const LayerBody* body, uint64_t chunk);
  void Queue(Flight* flight, FetchCause cause);
  void Unqueue(Flight* flight);
  void Erase(Flight* flight);
  void Leave(Waiter* waiter, Outcome* outcome);
  void Abandon(const JobPtr& job, Outcome* outcome);
  bool IsCooling(const Waiter& waiter, absl::Duration now) const;
  Bytes FindKept(const Layer& layer, uint64_t chunk) const;
  void Keep(const Layer& layer, uint64_t chunk, const Bytes& bytes);

  JobPtr BuildForFlight(const Flight& flight, FetchCause cause) const;
  JobPtr BuildForWish(Wish* wish, FetchCause cause) const;
  // `run`: blob bytes that the reader has come along so far.
  uint64_t RangeTarget(Layer& layer, int streak, uint64_t run, FetchCause cause) const;
  // Whether a job may have so much memory. kNotThisLayer: none that needs so much; kLater: not as long as all
  // together have so much.
  enum class Room { kYes, kNotThisLayer, kNotThisHost, kLater };
  Room RoomFor(FetchCause cause, const std::string& host, uint64_t memory) const;
  static std::string HostOf(const Pending& pending);
  std::vector<const Layer*> LayersInOrder() const;
  JobPtr BuildNext(LayerQueue* queue) const;
  using QueueIterator = std::unordered_map<const Layer*, LayerQueue>::iterator;
  QueueIterator DropIfIdle(QueueIterator queue);
  void Start(const JobPtr& job);
  void NoteSequence(const Job& job);
  // `position`: the chunk that the reader has come to.
  void WishAhead(const std::shared_ptr<Layer>& layer, const LayerBody* body, uint64_t position);

  const FlightLimits limits_;
  const int low_threads_;  // how many threads work that nobody waits for may take
  const int host_low_threads_;
  const uint64_t low_memory_;
  uint64_t last_id_ = 0;
  uint64_t last_order_ = 0;
  uint64_t rotation_ = 0;
  std::unordered_map<const Layer*, LayerFlights> flights_;
  std::unordered_map<const Layer*, LayerQueue> queues_;  // of layers with something pending or running
  std::map<std::string, HostShare> hosts_;               // with running jobs
  std::unordered_map<Waiter*, WaiterPtr> waiters_;
  std::set<std::pair<absl::Duration, Waiter*>> deadlines_;
  int running_ = 0;
  int running_low_ = 0;
  bool running_large_ = false;
  int urgent_ = 0;  // waiters and running jobs that go before kBackground
  uint64_t memory_ = 0;
  // Chunks the disk could not take, kept for readers that come in small steps.
  struct Kept {
    uint32_t layer_id;
    uint64_t chunk;
    Bytes bytes;
  };
  std::list<Kept> kept_;
  uint64_t kept_bytes_ = 0;
};

}  // namespace lazyblob::contentstore
