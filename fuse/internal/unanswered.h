#pragma once

// Requests of a FUSE connection that a dead daemon has read and not answered.

#include <cstdint>

#include "absl/status/status.h"

namespace lazyblob::fuse::internal {

// Has the kernel put them back into the queue. FailedPrecondition: it cannot (Linux < 6.9).
absl::Status AskAgain(int device);

// Where AskAgain cannot: ends them with EIO, knowing only that a request with the id `unique` was read after
// all of them. Reaches 2^20 ids back; ids that nobody waits for cost a system call each.
void FailOlder(int device, uint64_t unique);

// Whether the kernel is one for which AskAgain fails.
bool KernelForgetsRequests();

}  // namespace lazyblob::fuse::internal
