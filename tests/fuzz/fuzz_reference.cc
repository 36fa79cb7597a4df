// References and image references: whatever parses prints a canonical form that parses to itself.

#include <cstdint>
#include <cstdlib>

#include "oci/reference.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  absl::string_view text(reinterpret_cast<const char*>(data), size);
  absl::StatusOr<lazyblob::oci::ImageReference> parsed = lazyblob::oci::ParseImageReference(text);
  if (!parsed.ok()) return 0;
  std::string canonical = lazyblob::oci::ToString(*parsed);
  absl::StatusOr<lazyblob::oci::ImageReference> again = lazyblob::oci::ParseImageReference(canonical);
  if (!again.ok() || lazyblob::oci::ToString(*again) != canonical) abort();
  return 0;
}
