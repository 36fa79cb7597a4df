#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "contentstore/internal/blob_spools.h"
#include "contentstore/internal/fetch_engine.h"
#include "contentstore/internal/shared_task.h"

namespace lazyblob::contentstore {

struct UnlazyParts {
  FetchEngine* engine = nullptr;
  BlobSpools* spools = nullptr;
  std::shared_ptr<CacheBudget> budget;
  layer::BuildLimits limits;
  uint64_t range_bytes = 0;
  std::function<void(absl::string_view)> log;  // one line; never empty
};

// Makes every chunk of an indexed layer with random access local and marks the layer complete: in several
// large ranges at a time, or, where nobody knows yet what the layer unpacks to, by one reading of the whole
// blob. `background`: one request at a time, none while anybody waits for bytes or they are read ahead of
// him, and only into room that nothing else has to give way for (else ResourceExhausted). Blocks; ends early
// with Cancelled when the task is given up. DataLoss: the layer is quarantined, or the bytes are never right.
absl::Status UnlazyLayer(const UnlazyParts& parts, const std::shared_ptr<Layer>& layer, bool background,
                         SharedTask& task);

}  // namespace lazyblob::contentstore
