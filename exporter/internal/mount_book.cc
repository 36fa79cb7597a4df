#include "exporter/internal/mount_book.h"

#include <algorithm>

#include "absl/strings/str_split.h"

namespace lazyblob::exporter::internal {
namespace {

// A registry may collect what nobody refers to; other clients may delete.
constexpr absl::Duration kThereTtl = absl::Minutes(10);
constexpr absl::Duration kFailureTtl = absl::Minutes(10);
constexpr int kAnonymousMisses = 3;
constexpr size_t kMaxDigests = 20'000;  // per host
constexpr size_t kMaxFailures = 20'000;

size_t CommonComponents(const std::string& a, const std::string& b) {
  const std::vector<absl::string_view> left = absl::StrSplit(a, '/');
  const std::vector<absl::string_view> right = absl::StrSplit(b, '/');
  const size_t limit = std::min(left.size(), right.size());
  size_t count = 0;
  while (count < limit && left[count] == right[count]) ++count;
  return count;
}

}  // namespace

void MountBook::Trim(Host* host) {
  const absl::Duration now = clock_.Monotonic();
  if (host->failed.size() > kMaxFailures) {
    std::erase_if(host->failed, [&](const auto& one) { return one.second <= now; });
    if (host->failed.size() > kMaxFailures) host->failed.clear();
  }
  if (host->places.size() <= kMaxDigests) return;
  std::erase_if(host->places, [&](const auto& one) {
    return std::all_of(one.second.begin(), one.second.end(),
                       [&](const auto& place) { return now - place.second.seen > kThereTtl; });
  });
  if (host->places.size() > kMaxDigests) host->places.clear();  // costs requests, no bytes
}

void MountBook::Learn(const base::Digest& digest, const oci::Reference& repository) {
  const absl::MutexLock lock(&mutex_);
  Host& host = hosts_[repository.host];
  host.places[digest].try_emplace(repository.repository, Place{false, clock_.Monotonic()});
  Trim(&host);
}

void MountBook::NoteThere(const base::Digest& digest, const oci::Reference& repository) {
  const absl::MutexLock lock(&mutex_);
  Host& host = hosts_[repository.host];
  host.places[digest][repository.repository] = Place{true, clock_.Monotonic()};
  Trim(&host);
}

void MountBook::Forget(const base::Digest& digest, const oci::Reference& repository) {
  const absl::MutexLock lock(&mutex_);
  Host& host = hosts_[repository.host];
  const auto found = host.places.find(digest);
  if (found == host.places.end()) return;
  found->second.erase(repository.repository);
  if (found->second.empty()) host.places.erase(found);
}

bool MountBook::IsThere(const base::Digest& digest, const oci::Reference& repository) {
  const absl::MutexLock lock(&mutex_);
  const Host& host = hosts_[repository.host];
  const auto found = host.places.find(digest);
  if (found == host.places.end()) return false;
  const auto place = found->second.find(repository.repository);
  return place != found->second.end() && place->second.certain &&
         clock_.Monotonic() - place->second.seen <= kThereTtl;
}

std::vector<std::string> MountBook::Candidates(const base::Digest& digest, const oci::Reference& to) {
  const absl::MutexLock lock(&mutex_);
  const Host& host = hosts_[to.host];
  const absl::Duration now = clock_.Monotonic();
  if (now < host.no_mounts_until) return {};
  const auto found = host.places.find(digest);
  if (found == host.places.end()) return {};
  struct Ranked {
    int score;
    size_t common;
    std::string from;
  };
  std::vector<Ranked> ranked;
  for (const auto& [from, place] : found->second) {
    if (from == to.repository) continue;
    const auto failed = host.failed.find({digest, from, to.repository});
    if (failed != host.failed.end() && now < failed->second) continue;
    const auto score = host.scores.find({from, to.repository});
    const int known = score == host.scores.end() ? 0 : std::clamp(score->second, -3, 3);
    ranked.push_back({known + (place.certain ? 1 : 0), CommonComponents(from, to.repository), from});
  }
  std::sort(ranked.begin(), ranked.end(), [](const Ranked& a, const Ranked& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.common != b.common ? a.common > b.common : a.from < b.from;
  });
  std::vector<std::string> candidates;
  for (Ranked& one : ranked) candidates.push_back(std::move(one.from));
  return candidates;
}

void MountBook::NoteMount(const base::Digest& digest, const std::string& from, const oci::Reference& to,
                          bool mounted) {
  const absl::MutexLock lock(&mutex_);
  Host& host = hosts_[to.host];
  const absl::Duration now = clock_.Monotonic();
  host.scores[{from, to.repository}] += mounted ? 1 : -1;
  if (mounted) {
    host.has_mounted = true;
    host.no_mounts_until = -absl::InfiniteDuration();
    return;
  }
  host.failed[{digest, from, to.repository}] = now + kFailureTtl;
  Trim(&host);
}

void MountBook::NoteNoneMounted(const base::Digest& digest, const oci::Reference& to) {
  const absl::MutexLock lock(&mutex_);
  Host& host = hosts_[to.host];
  const auto found = host.places.find(digest);
  // A host that has mounted before may refuse this repository only.
  if (host.has_mounted || found == host.places.end()) return;
  const bool was_there = std::any_of(found->second.begin(), found->second.end(), [&](const auto& place) {
    return place.second.certain && place.first != to.repository;
  });
  if (was_there) host.no_mounts_until = clock_.Monotonic() + kFailureTtl;
}

bool MountBook::Mounts(const std::string& host) {
  const absl::MutexLock lock(&mutex_);
  return clock_.Monotonic() >= hosts_[host].no_mounts_until;
}

bool MountBook::TryAnonymous(const std::string& host) {
  const absl::MutexLock lock(&mutex_);
  return clock_.Monotonic() >= hosts_[host].no_anonymous_until;
}

void MountBook::NoteAnonymous(const std::string& host, bool mounted) {
  const absl::MutexLock lock(&mutex_);
  Host& entry = hosts_[host];
  if (mounted) {
    entry.anonymous_misses = 0;
  } else if (++entry.anonymous_misses >= kAnonymousMisses) {
    entry.no_anonymous_until = clock_.Monotonic() + kFailureTtl;
    entry.anonymous_misses = 0;
  }
}

}  // namespace lazyblob::exporter::internal
