#pragma once

// Checked 64-bit arithmetic for numbers that come from outside. Each returns false, and leaves *out alone,
// when the exact result does not fit.

#include <cstdint>

namespace lazyblob::base {

[[nodiscard]] inline bool CheckedAdd(uint64_t a, uint64_t b, uint64_t* out) {
  uint64_t result;
  if (__builtin_add_overflow(a, b, &result)) return false;
  *out = result;
  return true;
}

[[nodiscard]] inline bool CheckedMul(uint64_t a, uint64_t b, uint64_t* out) {
  uint64_t result;
  if (__builtin_mul_overflow(a, b, &result)) return false;
  *out = result;
  return true;
}

// `value` rounded up to a multiple of `alignment` (a power of two).
[[nodiscard]] inline bool CheckedAlignUp(uint64_t value, uint64_t alignment, uint64_t* out) {
  uint64_t result;
  if (!CheckedAdd(value, alignment - 1, &result)) return false;
  *out = result & ~(alignment - 1);
  return true;
}

// True when [offset, offset + length) lies inside [0, limit).
[[nodiscard]] inline bool RangeWithin(uint64_t offset, uint64_t length, uint64_t limit) {
  return offset <= limit && length <= limit - offset;
}

}  // namespace lazyblob::base
