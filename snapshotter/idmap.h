#pragma once

// The id mapping of a container's snapshot: containerd.io/snapshot/uidmapping and …/gidmapping. A value is
// "container:host:length" (containerd 1.7) or a comma-separated list of such (2.x). Pure; thread-safe.

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "fuse/mounter.h"
#include "snapshotter/snapshotter.h"

namespace lazyblob::snapshotter {

constexpr size_t kMaxIdRanges = 340;  // the kernel's, user_namespaces(7)

// nullopt: neither label (or both empty), or the snapshot is a layer of an image (it has a
// containerd.io/snapshot.ref): its labels may come from the image's author, who has no say in this.
// InvalidArgument: only one of the two, or a value that is malformed, maps an id twice (on either side),
// reaches past 2^32-2, has an empty range, more than kMaxIdRanges ranges, or leaves the container's id 0
// unmapped. Ranges come sorted by container id.
absl::StatusOr<std::optional<fuse::IdMapping>> ParseIdMapping(const Labels& labels);

// "0:100000:65536,…": what ParseIdMapping takes.
std::string FormatIdRanges(const std::vector<fuse::IdRange>& ranges);

}  // namespace lazyblob::snapshotter
