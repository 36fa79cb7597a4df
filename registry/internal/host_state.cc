#include "registry/internal/host_state.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::registry::internal {
namespace {

constexpr absl::Duration kMaxPause = absl::Minutes(10);
constexpr size_t kMaxEntries = 4096;
constexpr double kWeight = 0.25;
// Below this a body says more about round trips than about bandwidth.
constexpr uint64_t kMinBodyForBandwidth = 128 << 10;

// Room for one more: what has passed goes first, then anything.
void Trim(std::map<std::string, absl::Duration>* times, absl::Duration now) {
  if (times->size() < kMaxEntries) return;
  std::erase_if(*times, [now](const auto& entry) { return entry.second <= now; });
  if (times->size() >= kMaxEntries) times->erase(times->begin());
}

}  // namespace

void HostStates::Pause(const std::string& origin, absl::Duration pause) {
  absl::MutexLock lock(&mutex_);
  Trim(&paused_until_, clock_.Monotonic());
  absl::Duration until = clock_.Monotonic() + std::clamp(pause, absl::ZeroDuration(), kMaxPause);
  absl::Duration& known = paused_until_[origin];
  known = std::max(known, until);
}

absl::Duration HostStates::PausedUntil(const std::string& origin) const {
  absl::MutexLock lock(&mutex_);
  auto found = paused_until_.find(origin);
  return found == paused_until_.end() ? absl::ZeroDuration() : found->second;
}

absl::Status HostStates::AwaitTurn(const Url& url, const CallContext& context, const Sleeper& sleep) const {
  while (true) {
    RETURN_IF_ERROR(CheckLive(context, clock_));
    absl::Duration until = PausedUntil(url.Origin());
    absl::Duration now = clock_.Monotonic();
    if (until <= now) return absl::OkStatus();
    if (until >= context.deadline) {
      return absl::UnavailableError(
          absl::StrCat(url.HostForMessages(), " asked to be left alone for another ",
                       absl::FormatDuration(absl::Ceil(until - now, absl::Seconds(1))),
                       ", longer than this call may take"));
    }
    sleep(until - now, context);
  }
}

void HostStates::Observe(const std::string& host, const TransferTiming& timing) {
  absl::MutexLock lock(&mutex_);
  if (links_.size() >= kMaxEntries && links_.count(host) == 0) links_.erase(links_.begin());
  Client::LinkEstimate& link = links_[host];
  if (timing.first_byte > absl::ZeroDuration()) {
    bool first = link.round_trip == absl::ZeroDuration();
    link.round_trip =
        first ? timing.first_byte : link.round_trip * (1 - kWeight) + timing.first_byte * kWeight;
  }
  if (timing.body_bytes >= kMinBodyForBandwidth && timing.body > absl::ZeroDuration()) {
    double rate = static_cast<double>(timing.body_bytes) / absl::ToDoubleSeconds(timing.body);
    bool first = link.bytes_per_second <= 0;
    link.bytes_per_second = first ? rate : link.bytes_per_second * (1 - kWeight) + rate * kWeight;
  }
}

void HostStates::SetIgnoresRanges(const std::string& host) {
  absl::MutexLock lock(&mutex_);
  links_[host].ignores_ranges = true;
}

Client::LinkEstimate HostStates::Estimate(const std::string& host) const {
  absl::MutexLock lock(&mutex_);
  auto found = links_.find(host);
  return found == links_.end() ? Client::LinkEstimate() : found->second;
}

void HostStates::Note(const std::string& fact, absl::Duration lifetime) {
  absl::MutexLock lock(&mutex_);
  Trim(&facts_, clock_.Monotonic());
  facts_[fact] = clock_.Monotonic() + lifetime;
}

bool HostStates::Noted(const std::string& fact) const {
  absl::MutexLock lock(&mutex_);
  auto found = facts_.find(fact);
  return found != facts_.end() && clock_.Monotonic() < found->second;
}

}  // namespace lazyblob::registry::internal
