#include "daemon/background_fill.h"

#include <pthread.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/cond_var.h"

namespace lazyblob::daemon {
namespace {

using contentstore::DiffIdCheck;
using contentstore::LayerState;
using contentstore::LazyLayer;

constexpr absl::Duration kLongestPause = absl::Hours(1);

bool Compared(const LazyLayer& layer) {
  const DiffIdCheck check = layer.diff_id_check();
  return check != DiffIdCheck::kClaimed && check != DiffIdCheck::kDisputed;
}

bool Wanted(const LazyLayer& layer) {
  const auto index = layer.index();
  if (index == nullptr || !index->info().random_access) return false;
  if (layer.state() == LayerState::kQuarantined) return false;
  return layer.state() != LayerState::kComplete || !Compared(layer);
}

}  // namespace

BackgroundFill::BackgroundFill(BackgroundFillOptions options) : options_(std::move(options)) {
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "lb-fill");
    Run();
  });
}

BackgroundFill::~BackgroundFill() {
  stop_.Cancel();
  std::shared_ptr<base::CancelToken> cancel;
  {
    absl::MutexLock lock(&mutex_);
    cancel = cancel_;
  }
  if (cancel != nullptr) cancel->Cancel();
  thread_.join();
}

std::string BackgroundFill::StateOf(const base::Digest& layer) const {
  absl::MutexLock lock(&mutex_);
  if (!running_.empty() && running_ == layer) return "running";
  const auto trouble = troubles_.find(layer);
  return trouble == troubles_.end() ? "" : trouble->second.what;
}

void BackgroundFill::Run() {
  while (true) {
    if (const std::shared_ptr<LazyLayer> layer = Next()) {
      Fill(layer);
      continue;
    }
    if (base::SleepUnlessCancelled(options_.look_interval, &stop_)) return;
  }
}

std::shared_ptr<LazyLayer> BackgroundFill::Next() {
  std::vector<std::shared_ptr<LazyLayer>> wanted;
  const std::set<base::Digest> mounted = options_.mounted();
  for (const base::Digest& digest : mounted) {
    std::shared_ptr<LazyLayer> layer = options_.store->Find(digest);
    if (layer != nullptr && Wanted(*layer)) wanted.push_back(std::move(layer));
  }
  const auto place = [](const LazyLayer& layer) { return std::make_pair(Compared(layer), layer.id()); };
  std::sort(wanted.begin(), wanted.end(),
            [&](const auto& a, const auto& b) { return place(*a) < place(*b); });
  const absl::Duration now = options_.clock->Monotonic();
  absl::MutexLock lock(&mutex_);
  if (stop_.cancelled()) return nullptr;
  std::erase_if(troubles_, [&](const auto& one) { return !mounted.contains(one.first); });
  for (const auto& layer : wanted) {
    const auto trouble = troubles_.find(layer->descriptor().digest);
    if (trouble == troubles_.end() || trouble->second.until <= now) return layer;
  }
  return nullptr;
}

void BackgroundFill::Fill(const std::shared_ptr<LazyLayer>& layer) {
  const base::Digest digest = layer->descriptor().digest;
  contentstore::FetchContext context;
  context.cause = contentstore::FetchCause::kBackground;
  context.cancel = std::make_shared<base::CancelToken>();
  {
    absl::MutexLock lock(&mutex_);
    if (stop_.cancelled()) return;
    running_ = digest;
    cancel_ = context.cancel;
  }
  const absl::Status status = options_.store->Unlazy(*layer, context, [&](uint64_t) {
    if (!options_.mounted().contains(digest)) context.cancel->Cancel();
  });
  const absl::Duration now = options_.clock->Monotonic();
  absl::MutexLock lock(&mutex_);
  running_ = base::Digest();
  cancel_ = nullptr;
  // One that is still wanted could not be compared, or does not stay whole.
  if (!Wanted(*layer) && (status.ok() || layer->state() == LayerState::kQuarantined)) {
    troubles_.erase(digest);
    return;
  }
  Trouble& trouble = troubles_[digest];
  trouble.what = absl::IsResourceExhausted(status) ? "no-room" : absl::IsCancelled(status) ? "" : "failed";
  trouble.pause = std::clamp(2 * trouble.pause, options_.retry, kLongestPause);
  trouble.until = now + trouble.pause;
}

}  // namespace lazyblob::daemon
