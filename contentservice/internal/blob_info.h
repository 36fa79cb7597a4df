#pragma once

// What is said of one blob: errors, labels, filters.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "containerd/filter.h"
#include "contentservice/content.h"

namespace lazyblob::contentservice {

absl::Status NoSuchBlob(const base::Digest& digest);
absl::Status IsThere(const base::Digest& digest);
// The labels of an Update: all of `given`, or those that `paths` name.
absl::StatusOr<Labels> Changed(const Labels& now, const Labels& given, const std::vector<std::string>& paths);
bool Matches(const containerd::Filter& filter, const Info& info);

}  // namespace lazyblob::contentservice
