#include "contentstore/internal/scrub.h"

#include <linux/ioprio.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/notification.h"
#include "base/cond_var.h"
#include "base/file.h"
#include "base/status.h"

namespace lazyblob::contentstore {
namespace {

// How often the time is looked at: wall clocks jump.
constexpr absl::Duration kLookInterval = absl::Minutes(1);
// So much is compared between two looks at who else wants the disk.
constexpr uint64_t kPaceBytes = 1 << 20;
constexpr absl::Duration kYieldStep = absl::Milliseconds(100);
constexpr int kYieldSteps = 10;
constexpr absl::Duration kHealDeadline = absl::Minutes(1);

void LowerPriority() {
  const auto thread = static_cast<id_t>(syscall(SYS_gettid));
  // Where this is refused the bound of bytes per second holds still.
  setpriority(PRIO_PROCESS, thread, 19);
  syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0));
}

}  // namespace

Scrubber::Scrubber(ScrubOptions options) : options_(std::move(options)) {}

Scrubber::~Scrubber() { Finish(); }

void Scrubber::Start(bool unclean) {
  thread_ = std::thread([this, unclean] {
    pthread_setname_np(pthread_self(), "lb-scrub");
    LowerPriority();
    if (unclean) verified_ = VerifyComplete();
    while (Wait(std::min(Tend(), kLookInterval))) continue;
  });
}

void Scrubber::Stop() { stop_.Cancel(); }

bool Scrubber::Finish() {
  Stop();
  if (thread_.joinable()) thread_.join();
  return verified_;
}

bool Scrubber::Wait(absl::Duration duration) {
  return options_.wait ? options_.wait(duration) : !base::SleepUnlessCancelled(duration, &stop_);
}

ScrubStatus Scrubber::status() const {
  absl::MutexLock lock(&mutex_);
  return status_;
}

// "<began> <ended> <after>\n", seconds since 1970 and a digest or "-".
Scrubber::State Scrubber::Load() const {
  const absl::Time now = options_.clock->WallTime();
  State state;
  const absl::StatusOr<std::string> text = base::ReadFile(options_.state_path, 1024);
  const std::vector<std::string> words =
      text.ok() ? absl::StrSplit(absl::StripAsciiWhitespace(*text), ' ') : std::vector<std::string>();
  int64_t began = 0, ended = 0;
  if (words.size() == 3 && absl::SimpleAtoi(words[0], &began) && absl::SimpleAtoi(words[1], &ended) &&
      absl::FromUnixSeconds(began) <= now && absl::FromUnixSeconds(ended) <= now) {
    state.began = absl::FromUnixSeconds(began);
    state.ended = absl::FromUnixSeconds(ended);
    state.after = base::Digest::Parse(words[2]).value_or(base::Digest());
    return state;
  }
  // There was none: what is here is as good as new. Times of the future say nothing.
  state.began = state.ended = now;
  Save(state);
  return state;
}

void Scrubber::Save(const State& state) const {
  const std::string after = state.after.empty() ? "-" : state.after.ToString();
  // A file that cannot be written costs nothing but comparing again in the next process.
  base::WriteFileAtomically(
      options_.state_path,
      absl::StrCat(absl::ToUnixSeconds(state.began), " ", absl::ToUnixSeconds(state.ended), " ", after, "\n"))
      .IgnoreError();
}

absl::Duration Scrubber::Tend() {
  if (options_.interval == absl::InfiniteDuration()) return absl::InfiniteDuration();
  const absl::Time now = options_.clock->WallTime();
  if (!state_.has_value() || state_->began > now || state_->ended > now) state_ = Load();
  State& state = *state_;
  const bool goes_on = state.ended < state.began;
  if (!goes_on && now - state.began < options_.interval) {
    absl::MutexLock lock(&mutex_);
    status_.ended = state.ended;
    return state.began + options_.interval - now;
  }
  if (!goes_on) {
    state.began = now;
    state.after = base::Digest();
    // Seconds: a run that ends in the second of its beginning has ended all the same.
    state.ended = state.began - absl::Seconds(1);
    Save(state);
  }
  {
    absl::MutexLock lock(&mutex_);
    status_.running = true;
    status_.chunks = status_.bytes = 0;
  }
  const bool whole = ScrubAll();
  if (whole) {
    state.ended = std::max(options_.clock->WallTime(), state.began);
    state.after = base::Digest();
    Save(state);
  }
  absl::MutexLock lock(&mutex_);
  status_.running = false;
  if (whole) status_.ended = state.ended;
  return std::max(absl::ZeroDuration(), state.began + options_.interval - options_.clock->WallTime());
}

std::vector<std::weak_ptr<Layer>> Scrubber::WeakLayers() const {
  const std::vector<std::shared_ptr<Layer>> layers = options_.layers();
  return {layers.begin(), layers.end()};
}

bool Scrubber::ScrubAll() {
  for (const std::weak_ptr<Layer>& layer : WeakLayers()) {
    base::Digest digest;
    if (const std::shared_ptr<Layer> held = layer.lock()) digest = held->descriptor().digest;
    if (digest.empty() || (!state_->after.empty() && !(state_->after < digest))) continue;
    if (!Compare(layer, /*claims=*/false)) return false;
    state_->after = digest;
    Save(*state_);
  }
  return true;
}

bool Scrubber::VerifyComplete() {
  for (const std::weak_ptr<Layer>& layer : WeakLayers()) {
    if (!Compare(layer, /*claims=*/true)) return false;
  }
  return true;
}

bool Scrubber::Compare(const std::weak_ptr<Layer>& layer, bool claims) {
  std::shared_ptr<ChunkCache> cache;
  std::shared_ptr<const layer::LayerIndex> index;
  if (const std::shared_ptr<Layer> held = layer.lock()) {
    const LayerBody* const body = held->body();
    if (body == nullptr || (claims && !body->cache->complete())) return Wait(absl::ZeroDuration());
    cache = body->cache;
    index = body->index;
  }
  if (cache == nullptr) return Wait(absl::ZeroDuration());
  std::vector<uint64_t> rotten;
  bool going = true;
  for (uint64_t i = 0; i < index->chunk_count() && going && !layer.expired(); ++i) {
    if (claims ? !cache->Claimed(i) : cache->Missing(i)) continue;
    const absl::Status status = claims ? cache->Verify(i) : cache->Recheck(i);
    if (absl::IsNotFound(status)) continue;
    if (!status.ok()) rotten.push_back(i);
    const uint64_t bytes = index->chunk(i).data_size;
    {
      absl::MutexLock lock(&mutex_);
      status_.rotten += status.ok() ? 0 : 1;
      status_.chunks += claims ? 0 : 1;
      status_.bytes += claims ? 0 : bytes;
    }
    going = Pace(bytes, /*bounded=*/!claims);
  }
  Report(layer, *index, *cache, rotten);
  return going;
}

uint64_t Scrubber::Served() const {
  uint64_t served = 0;
  for (const std::shared_ptr<Layer>& layer : options_.layers()) served += layer->served_bytes();
  return served;
}

bool Scrubber::Pace(uint64_t bytes, bool bounded) {
  unpaced_ += bytes;
  if (unpaced_ < kPaceBytes) return Wait(absl::ZeroDuration());
  const uint64_t compared = std::exchange(unpaced_, 0);
  if (bounded && options_.bytes_per_second != 0) {
    const double seconds = static_cast<double>(compared) / static_cast<double>(options_.bytes_per_second);
    if (!Wait(absl::Seconds(seconds))) return false;
  }
  // Readers first, as long as they read.
  for (int step = 0; step < kYieldSteps; ++step) {
    if (const uint64_t served = Served(); std::exchange(served_, served) == served) break;
    if (!Wait(kYieldStep)) return false;
  }
  return Wait(absl::ZeroDuration());
}

void Scrubber::Report(const std::weak_ptr<Layer>& weak, const layer::LayerIndex& index,
                      const ChunkCache& cache, const std::vector<uint64_t>& rotten) {
  if (rotten.empty()) return;
  const std::shared_ptr<Layer> layer = weak.lock();
  if (layer == nullptr) return;
  const bool mounted = cache.mounted();
  if (mounted && layer->body()->cache.get() == &cache) Heal(layer, index, rotten);
  size_t left = 0;
  for (const uint64_t chunk : rotten) left += cache.Present(chunk) ? 0 : 1;
  const layer::Chunk first = index.chunk(rotten.front());
  std::string line = absl::StrCat("layer ", layer->descriptor().digest.ToString(), ": ", rotten.size(),
                                  " cached chunks do not have their SHA-256 or cannot be read (the first at ",
                                  first.data_offset, " of ", layer->directory(), "/data)");
  if (!mounted) {
    absl::StrAppend(&line, "; they are fetched again when they are read. Look after that disk");
  } else {
    absl::StrAppend(
        &line, left == 0 ? "; they were fetched again" : "; they cannot be fetched again now",
        ", and the layer is not mounted on its cache file the next time. It is now, so programs may "
        "have read wrong bytes: drop what the kernel remembers of them (echo 1 > "
        "/proc/sys/vm/drop_caches), restart the containers, and look after that disk");
  }
  options_.log(line);
}

void Scrubber::Heal(const std::shared_ptr<Layer>& layer, const layer::LayerIndex& index,
                    const std::vector<uint64_t>& rotten) {
  for (const uint64_t chunk : rotten) {
    const layer::Chunk wanted = index.chunk(chunk);
    FetchContext context;
    context.cause = FetchCause::kBackground;
    context.deadline = options_.clock->Monotonic() + kHealDeadline;
    absl::Notification done;
    layer->Acquire(wanted.data_offset, wanted.data_size, std::move(context),
                   [&done](const absl::StatusOr<PinnedRange>&) { done.Notify(); });
    done.WaitForNotification();
  }
}

}  // namespace lazyblob::contentstore
