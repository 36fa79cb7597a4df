#include "fuse/internal/page_dropper.h"

#include <fcntl.h>

#include <algorithm>
#include <utility>

namespace lazyblob::fuse::internal {
namespace {

// Neighbours are wanted soon (one small file after the other), so pages stay for a moment; a fast reader is
// caught by the byte limit before it has filled the page cache.
constexpr absl::Duration kAge = absl::Seconds(1);
constexpr uint64_t kBytes = 16 << 20;
// The second pass comes when write-back, which the first one starts, is over.
constexpr absl::Duration kSecondPass = absl::Seconds(6);
// Ranges of one layer that came within this time share a descriptor while they wait for it.
constexpr absl::Duration kTogether = absl::Seconds(2);
// The kernel reads ahead of what we ask for; that is dropped too.
constexpr uint64_t kPage = 4096;
constexpr uint64_t kReadAhead = 128 << 10;
// Pages come in folios of up to this size, and the kernel only drops whole ones. The first pass spares what
// lies beside a served range, because it is likely to be wanted next; the last one does not.
constexpr uint64_t kLargestFolio = 2 << 20;

}  // namespace

bool PageDropper::Served(uint32_t layer, int fd, uint64_t offset, uint64_t length, absl::Duration now) {
  absl::MutexLock lock(&mutex_);
  const bool was_idle = fresh_.empty() && again_.empty();
  File& file = fresh_[layer];
  if (!file.fd.valid()) {
    file.fd = base::UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!file.fd.valid()) {
      fresh_.erase(layer);  // out of descriptors: the pages stay
      return false;
    }
    file.layer = layer;
    file.since = now;
  }
  file.bytes += length;
  if (!file.ranges.empty() && file.ranges.back().end == offset) {
    file.ranges.back().end = offset + length;
  } else {
    file.ranges.push_back({offset, offset + length});
  }
  return was_idle;
}

bool PageDropper::Flush(absl::Duration now, bool all) {
  std::vector<File> due;
  {
    absl::MutexLock lock(&mutex_);
    for (auto it = fresh_.begin(); it != fresh_.end();) {
      auto here = it++;
      if (!all && here->second.bytes < kBytes && now - here->second.since < kAge) continue;
      due.push_back(std::move(here->second));
      fresh_.erase(here);
    }
    auto keep = std::partition(again_.begin(), again_.end(),
                               [&](const File& file) { return !all && now - file.since < kSecondPass; });
    std::move(keep, again_.end(), std::back_inserter(due));
    again_.erase(keep, again_.end());
  }
  for (File& file : due) {
    file.ranges = Merge(std::move(file.ranges), all || file.pass == 2 ? kLargestFolio : kPage);
    for (const Range& range : file.ranges) {
      posix_fadvise(file.fd.get(), static_cast<off_t>(range.begin),
                    static_cast<off_t>(range.end - range.begin), POSIX_FADV_DONTNEED);
    }
  }
  absl::MutexLock lock(&mutex_);
  for (File& file : due) {
    if (all || file.pass == 2) continue;
    auto young = std::find_if(again_.begin(), again_.end(), [&](const File& other) {
      return other.layer == file.layer && now - other.since < kTogether;
    });
    if (young != again_.end()) {
      young->ranges.insert(young->ranges.end(), file.ranges.begin(), file.ranges.end());
      continue;
    }
    file.pass = 2;
    file.since = now;
    again_.push_back(std::move(file));
  }
  return !fresh_.empty() || !again_.empty();
}

std::vector<PageDropper::Range> PageDropper::Merge(std::vector<Range> ranges, uint64_t unit) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> merged;
  for (const Range& range : ranges) {
    const uint64_t end = (range.end + kReadAhead + unit - 1) / unit * unit;
    const uint64_t begin = range.begin / unit * unit;
    if (!merged.empty() && begin <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, end);
    } else {
      merged.push_back({begin, end});
    }
  }
  return merged;
}

}  // namespace lazyblob::fuse::internal
