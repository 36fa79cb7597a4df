#pragma once

// Compares what lies in the cache with its digests, in the background: complete layers once after a run that
// did not end well, before they may be mounted on their cache file; everything every so often. A chunk that
// has rotted is missing from then on and is fetched again when it is read. In a layer that is mounted on its
// cache file it is fetched at once, into its place: nobody may make a hole there.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/cancel.h"
#include "contentstore/internal/layer.h"

namespace lazyblob::contentstore {

struct ScrubOptions {
  std::string state_path;  // when it was done last, and how far; docs/MAINTENANCE.md has its format
  absl::Duration interval = absl::InfiniteDuration();  // from one beginning to the next; infinite: never
  uint64_t bytes_per_second = 0;                       // 0: no bound
  const base::Clock* clock = &base::SystemClock();
  std::function<void(absl::string_view)> log;                   // one line; never empty
  std::function<std::vector<std::shared_ptr<Layer>>()> layers;  // in the order of their digests
  // Waits; false: the scrub is to end. Empty: until Stop. For tests.
  std::function<bool(absl::Duration)> wait;
};

// Thread-safe; the functions that work are called by one thread.
class Scrubber {
 public:
  explicit Scrubber(ScrubOptions options);
  ~Scrubber();
  // A thread of the lowest priority: VerifyComplete if `unclean`, then Tend for ever.
  void Start(bool unclean);
  // Lets the thread end; what it waits for at the engine has to be ended, too.
  void Stop();
  // Waits for its end. Whether nothing is left to VerifyComplete.
  bool Finish();

  // Compares claims of layers that are marked complete; false: it was to end before.
  bool VerifyComplete() ABSL_LOCKS_EXCLUDED(mutex_);
  // Scrubs if it is time; how long until it is the next time.
  absl::Duration Tend() ABSL_LOCKS_EXCLUDED(mutex_);
  ScrubStatus status() const ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // `began` and `after` as of the state file.
  struct State {
    absl::Time began;
    absl::Time ended;    // before `began` while it goes on
    base::Digest after;  // layers up to this one are done; empty: none
  };
  State Load() const;
  void Save(const State& state) const;
  bool Wait(absl::Duration duration);
  // Layers are not held meanwhile: they may be removed.
  std::vector<std::weak_ptr<Layer>> WeakLayers() const;
  // The next three: false when the scrub is to end. Rechecks all that is cached, or compares claims only.
  bool ScrubAll() ABSL_LOCKS_EXCLUDED(mutex_);
  bool Compare(const std::weak_ptr<Layer>& layer, bool claims) ABSL_LOCKS_EXCLUDED(mutex_);
  // Readers first; and, if `bounded`, so many bytes in a second only.
  bool Pace(uint64_t bytes, bool bounded) ABSL_LOCKS_EXCLUDED(mutex_);
  uint64_t Served() const;
  // What is to be said of a layer, and done for one that is mounted. Its index and cache are those that were
  // compared.
  void Report(const std::weak_ptr<Layer>& layer, const layer::LayerIndex& index, const ChunkCache& cache,
              const std::vector<uint64_t>& rotten);
  void Heal(const std::shared_ptr<Layer>& layer, const layer::LayerIndex& index,
            const std::vector<uint64_t>& rotten);

  const ScrubOptions options_;
  std::thread thread_;
  bool verified_ = true;        // of the thread, until it is joined
  std::optional<State> state_;  // once it was loaded: the file may not take it
  uint64_t unpaced_ = 0;        // bytes compared since the last Pace
  uint64_t served_ = 0;         // when last looked at
  base::CancelToken stop_;

  mutable absl::Mutex mutex_;  // a leaf
  ScrubStatus status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::contentstore
