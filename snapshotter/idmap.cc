#include "snapshotter/idmap.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "snapshotter/labels.h"

namespace lazyblob::snapshotter {
namespace {

constexpr uint64_t kIdEnd = 0xFFFF'FFFF;  // one past the highest id: 2^32-1 means "no id"

absl::Status Bad(const char* label, absl::string_view value, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("label ", label, ": \"", base::Printable(value.substr(0, 200)), "\": ", why));
}

// Decimal digits only: no sign, no space.
bool ParseId(absl::string_view text, uint32_t* id) {
  return !text.empty() && text.find_first_not_of("0123456789") == absl::string_view::npos &&
         absl::SimpleAtoi(text, id);
}

absl::StatusOr<fuse::IdRange> ParseRange(const char* label, absl::string_view text) {
  std::vector<absl::string_view> parts = absl::StrSplit(text, ':');
  fuse::IdRange range;
  if (parts.size() != 3 || !ParseId(parts[0], &range.container) || !ParseId(parts[1], &range.host) ||
      !ParseId(parts[2], &range.length)) {
    return Bad(label, text, "want container:host:length, three numbers below 2^32");
  }
  if (range.length == 0) return Bad(label, text, "the range is empty");
  if (uint64_t{range.container} + range.length > kIdEnd || uint64_t{range.host} + range.length > kIdEnd) {
    return Bad(label, text, "the range reaches past the highest id, 4294967294");
  }
  return range;
}

// Whether two ranges that begin at `first` share an id; sorts.
bool Overlap(std::vector<fuse::IdRange> ranges, uint32_t fuse::IdRange::* first) {
  std::sort(ranges.begin(), ranges.end(),
            [&](const fuse::IdRange& a, const fuse::IdRange& b) { return a.*first < b.*first; });
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (uint64_t{ranges[i - 1].*first} + ranges[i - 1].length > ranges[i].*first) return true;
  }
  return false;
}

absl::StatusOr<std::vector<fuse::IdRange>> ParseRanges(const char* label, absl::string_view text) {
  std::vector<fuse::IdRange> ranges;
  for (absl::string_view item : absl::StrSplit(text, ',')) {
    if (ranges.size() == kMaxIdRanges) {
      return Bad(label, text, absl::StrCat("more than ", kMaxIdRanges, " ranges"));
    }
    ASSIGN_OR_RETURN(fuse::IdRange range, ParseRange(label, item));
    ranges.push_back(range);
  }
  std::sort(ranges.begin(), ranges.end());
  if (Overlap(ranges, &fuse::IdRange::container)) return Bad(label, text, "a container id is mapped twice");
  if (Overlap(ranges, &fuse::IdRange::host)) return Bad(label, text, "a host id is mapped to twice");
  if (ranges.front().container != 0) return Bad(label, text, "the container's id 0 is not mapped");
  return ranges;
}

absl::string_view Value(const Labels& labels, const char* key) {
  auto label = labels.find(key);
  return label == labels.end() ? absl::string_view() : absl::string_view(label->second);
}

}  // namespace

absl::StatusOr<std::optional<fuse::IdMapping>> ParseIdMapping(const Labels& labels) {
  absl::string_view uids = Value(labels, kLabelUidMapping);
  absl::string_view gids = Value(labels, kLabelGidMapping);
  if ((uids.empty() && gids.empty()) || !Value(labels, kLabelSnapshotRef).empty()) return std::nullopt;
  if (uids.empty() || gids.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("label ", uids.empty() ? kLabelGidMapping : kLabelUidMapping, " without ",
                     uids.empty() ? kLabelUidMapping : kLabelGidMapping));
  }
  fuse::IdMapping mapping;
  ASSIGN_OR_RETURN(mapping.uids, ParseRanges(kLabelUidMapping, uids));
  ASSIGN_OR_RETURN(mapping.gids, ParseRanges(kLabelGidMapping, gids));
  return mapping;
}

std::string FormatIdRanges(const std::vector<fuse::IdRange>& ranges) {
  return absl::StrJoin(ranges, ",", [](std::string* out, const fuse::IdRange& range) {
    absl::StrAppend(out, range.container, ":", range.host, ":", range.length);
  });
}

}  // namespace lazyblob::snapshotter
