// Content-Range and Retry-After: what is accepted is consistent.

#include <cstdint>
#include <cstdlib>

#include "registry/internal/headers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  absl::string_view text(reinterpret_cast<const char*>(data), size);
  auto range = lazyblob::registry::internal::ParseContentRange(text);
  if (range.ok() && (range->last < range->first || (range->total && *range->total <= range->last))) abort();
  auto pause = lazyblob::registry::internal::ParseRetryAfter(text, absl::FromUnixSeconds(1'700'000'000));
  if (pause && *pause < absl::ZeroDuration()) abort();
  return 0;
}
