// List's filters: whatever parses can be matched, and an empty filter beside it matches all.

#include <cstdint>
#include <cstdlib>

#include "snapshotter/filter.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace sn = lazyblob::snapshotter;
  const std::string text(reinterpret_cast<const char*>(data), size);
  sn::Info info;
  info.name = "default/1/extract-1 sha256:ab";
  info.kind = sn::Kind::kCommitted;
  info.labels = {{"foo", "bar"}, {"containerd.io/snapshot.ref", "sha256:ab"}};
  absl::StatusOr<sn::Filter> filter = sn::ParseFilters({text});
  if (!filter.ok()) {
    if (filter.status().code() != absl::StatusCode::kInvalidArgument ||
        filter.status().message().size() > 70'000) {
      abort();
    }
    return 0;
  }
  filter->Matches(info);
  absl::StatusOr<sn::Filter> twice = sn::ParseFilters({text, ""});
  if (!twice.ok() || !twice->Matches(info)) abort();
  return 0;
}
