// List's filters: whatever parses can be matched, and an empty filter beside it matches all.

#include <cstdint>
#include <cstdlib>

#include "containerd/filter.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace ct = lazyblob::containerd;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const std::map<std::string, std::string> labels = {{"foo", "bar"},
                                                     {"containerd.io/snapshot.ref", "sha256:ab"}};
  auto field = [&](absl::string_view name, const std::string& rest) {
    if (name == "labels") return ct::LabelOf(labels, rest);
    return name == "name" ? std::optional<absl::string_view>("default/1/extract-1 sha256:ab") : std::nullopt;
  };
  absl::StatusOr<ct::Filter> filter = ct::ParseFilters({text});
  if (!filter.ok()) {
    if (filter.status().code() != absl::StatusCode::kInvalidArgument ||
        filter.status().message().size() > 70'000) {
      abort();
    }
    return 0;
  }
  filter->Matches(field);
  absl::StatusOr<ct::Filter> twice = ct::ParseFilters({text, ""});
  if (!twice.ok() || !twice->Matches(field)) abort();
  return 0;
}
