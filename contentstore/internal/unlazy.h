#pragma once

#include <memory>

#include "absl/status/status.h"
#include "contentstore/internal/fetch_engine.h"
#include "contentstore/internal/shared_task.h"

namespace lazyblob::contentstore {

// Makes every chunk of an indexed layer with random access local, in several large ranges at a time, and
// marks the layer complete. Blocks; ends early with Cancelled when the task is given up.
absl::Status UnlazyChunks(FetchEngine& engine, const std::shared_ptr<Layer>& layer, uint64_t range_bytes,
                          SharedTask& task);

}  // namespace lazyblob::contentstore
