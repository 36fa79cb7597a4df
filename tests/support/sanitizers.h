#pragma once

// Whether this program is built with AddressSanitizer or ThreadSanitizer, of either compiler: they end
// crashed processes in their own way, and take several times the memory.

namespace lazyblob::support {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
inline constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace lazyblob::support
