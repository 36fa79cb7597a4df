#include "daemon/memory_limit.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"

namespace lazyblob::daemon {
namespace {

uint64_t LimitIn(const std::string& file) {
  absl::StatusOr<std::string> text = base::ReadFile(file, 64);
  uint64_t limit = 0;
  return text.ok() && absl::SimpleAtoi(absl::StripAsciiWhitespace(*text), &limit) ? limit : UINT64_MAX;
}

// Of `group` below `top` and all groups above it.
uint64_t LimitAlong(const std::string& top, std::string group, absl::string_view file) {
  uint64_t limit = UINT64_MAX;
  while (true) {
    limit = std::min(limit, LimitIn(absl::StrCat(top, group, "/", file)));
    const size_t slash = group.rfind('/');
    if (slash == std::string::npos) return limit;
    group.resize(slash);
  }
}

}  // namespace

uint64_t MemoryLimit(const std::string& groups, const std::string& mounts) {
  absl::StatusOr<std::string> text = base::ReadFile(groups, 1 << 20);
  uint64_t limit = UINT64_MAX;
  if (!text.ok()) return limit;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    if (parts[1].empty()) {
      for (const char* top : {"", "/unified"}) {
        limit = std::min(limit, LimitAlong(mounts + top, parts[2], "memory.max"));
      }
    }
    const std::vector<absl::string_view> controllers = absl::StrSplit(parts[1], ',');
    if (std::find(controllers.begin(), controllers.end(), "memory") != controllers.end()) {
      limit = std::min(limit, LimitAlong(mounts + "/memory", parts[2], "memory.limit_in_bytes"));
    }
  }
  return limit;
}

}  // namespace lazyblob::daemon
