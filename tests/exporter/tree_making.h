#pragma once

// Directories on disk for tests: one with every kind of thing a layer can hold, and random ones.

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace lazyblob::exporter {

void WriteFile(const std::string& path, absl::string_view contents);
void SetTime(const std::string& path, int64_t seconds, long nanoseconds);
void SetXattr(const std::string& path, const char* name, absl::string_view value);

// Needs root: devices, owners beyond 21 bits, capabilities, long names, hard links, holes, times to the
// nanosecond. `utf8_only`: no name that a table of contents cannot hold.
void MakeFullTree(const std::string& root, bool utf8_only = false);

// The same for the same seed. Needs root.
void MakeRandomTree(const std::string& root, uint64_t seed);

}  // namespace lazyblob::exporter
