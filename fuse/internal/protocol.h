#pragma once

// Numbers of the FUSE protocol that Debian's <linux/fuse.h> (7.38) does not have yet. Source: Linux 6.9,
// include/uapi/linux/fuse.h and fs/fuse/dev.c.

#include <cstddef>
#include <cstdint>

namespace lazyblob::fuse::internal {

// Notification without a body: put what was read and not answered back into the queue (7.40, Linux 6.9).
// Older kernels answer EINVAL.
inline constexpr int32_t kNotifyResend = 7;

// Set in the id of a request that comes again. The kernel keeps it in the request, so answers carry the id as
// read; the id without the bit is the one of the first time.
inline constexpr uint64_t kUniqueResend = uint64_t{1} << 63;

inline constexpr uint64_t FirstUnique(uint64_t unique) { return unique & ~kUniqueResend; }
inline constexpr bool IsResent(uint64_t unique) { return (unique & kUniqueResend) != 0; }

// What is negotiated in INIT. One EROFS request must be one FUSE request (docs/FUSE.md).
inline constexpr uint32_t kMaxRead = 1 << 20;  // also max_write, from which libfuse makes max_pages = 256
inline constexpr uint32_t kMaxReadAhead = 1 << 20;
inline constexpr uint16_t kMaxBackground = 65535;

// A buffer that any request fits: the kernel refuses smaller ones (header, write arguments, max_write).
inline constexpr size_t kRequestBuffer = size_t{kMaxRead} + 4096;

// Names longer than this corrupt kernel memory where directories are cached (CVE-2026-31694).
inline constexpr size_t kMaxName = 255;

}  // namespace lazyblob::fuse::internal
