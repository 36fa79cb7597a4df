#include "fuse/mounter.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::fuse {
namespace {

constexpr uint64_t kIdLimit = 0xffffffff;  // 2^32-1 means "no id"

absl::Status CheckSide(const char* kind, std::vector<IdRange> ranges, uint32_t IdRange::* side) {
  std::sort(ranges.begin(), ranges.end(),
            [&](const IdRange& a, const IdRange& b) { return a.*side < b.*side; });
  uint64_t end = 0;
  for (const IdRange& range : ranges) {
    auto error = [&](absl::string_view what) {
      return absl::InvalidArgumentError(
          absl::StrCat(kind, " range ", range.container, ":", range.host, ":", range.length, " ", what));
    };
    if (range.length == 0) return error("is empty");
    if (range.*side < end) return error("overlaps another one");
    end = uint64_t{range.*side} + range.length;
    if (end > kIdLimit) return error("ends behind 2^32-2");
  }
  return absl::OkStatus();
}

absl::Status CheckRanges(const char* kind, const std::vector<IdRange>& ranges) {
  if (ranges.empty() || ranges.size() > kMaxIdRanges) {
    return absl::InvalidArgumentError(
        absl::StrCat(ranges.size(), " ", kind, " ranges; a mapping has 1 to ", kMaxIdRanges));
  }
  RETURN_IF_ERROR(CheckSide(kind, ranges, &IdRange::container));
  return CheckSide(kind, ranges, &IdRange::host);
}

}  // namespace

absl::string_view ModeName(Mode mode) {
  switch (mode) {
    case Mode::kErofs:
      return "erofs";
    case Mode::kLoop:
      return "loop";
    case Mode::kFuse:
      return "fuse";
  }
  return "unknown";
}

absl::StatusOr<std::optional<Mode>> ParseMode(absl::string_view text) {
  if (text == "auto") return std::optional<Mode>();
  for (Mode mode : {Mode::kErofs, Mode::kLoop, Mode::kFuse}) {
    if (text == ModeName(mode)) return std::optional<Mode>(mode);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown mode \"", base::Printable(text), "\"; use auto, erofs, loop or fuse"));
}

absl::Status CheckIdMapping(const IdMapping& mapping) {
  RETURN_IF_ERROR(CheckRanges("uid", mapping.uids));
  return CheckRanges("gid", mapping.gids);
}

std::string LayerName(const base::Digest& layer) {
  std::string name = layer.ToString();
  name[name.find(':')] = '-';
  return name;
}

}  // namespace lazyblob::fuse
