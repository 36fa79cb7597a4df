#pragma once

// Takes the pages of cache files out of the page cache once they were given to the kernel: EROFS (or the FUSE
// tree) caches the same bytes, so every byte stays cached once, not twice. Works in batches, off the path of
// reads.

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/file.h"

namespace lazyblob::fuse::internal {

// Thread-safe.
class PageDropper {
 public:
  // [offset, offset + length) of the cache file `fd` of layer `layer` has been served. `fd` is only used
  // here. True when there was nothing to drop before: somebody should call Flush from now on.
  bool Served(uint32_t layer, int fd, uint64_t offset, uint64_t length, absl::Duration now)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Drops what is old or big enough (`all`: everything). True while something is left.
  bool Flush(absl::Duration now, bool all) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Range {
    uint64_t begin = 0;
    uint64_t end = 0;
  };
  struct File {
    uint32_t layer = 0;
    base::UniqueFd fd;  // our own: the layer may be gone when it is used
    std::vector<Range> ranges;
    uint64_t bytes = 0;
    absl::Duration since;
    int pass = 1;  // 2: freshly fetched pages were still dirty the first time
  };
  // Sorted, widened to multiples of `unit`, without overlaps.
  static std::vector<Range> Merge(std::vector<Range> ranges, uint64_t unit);

  absl::Mutex mutex_;
  absl::flat_hash_map<uint32_t, File> fresh_ ABSL_GUARDED_BY(mutex_);  // by layer id
  std::vector<File> again_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::fuse::internal
