#pragma once

// The root directory of a store: who may have it, and what lies in it besides layers.

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/digest.h"
#include "base/file.h"

namespace lazyblob::contentstore {

// Makes <root>/layers, both ours alone, whatever the umask, and locks the root; waits so long for another to
// let go of it. FailedPrecondition: it is another's.
absl::StatusOr<base::UniqueFd> TakeRoot(const std::string& root, absl::Duration patience);

// The name of a layer's directory in <root>/layers.
std::string LayerDirectoryName(const base::Digest& digest);

// The id that the next new layer gets; 1 where none was written.
uint32_t ReadNextId(const std::string& root);
absl::Status WriteNextId(const std::string& root, uint32_t id);

// The mark of a run that ended well: when it was put; InfinitePast: there is none. It is gone, durably, on
// return.
absl::StatusOr<absl::Time> TakeCleanMark(const std::string& root);
void PutCleanMark(const std::string& root);
// Whether a layer's presence map is as it was when the mark was put; if not, the mark says nothing from then
// on (InfinitePast): a build that knows nothing of marks has had the root since.
bool StillClean(const std::string& layer_directory, absl::Time* mark);

// What the root's file system has left.
std::function<absl::StatusOr<uint64_t>()> FreeBytesOf(const std::string& root);

}  // namespace lazyblob::contentstore
