#pragma once

// A fixed number of bits that many threads test and change without a lock. What was written before Set() is
// visible to whoever sees the bit. All in one order with other sequentially consistent operations: of a
// thread that pins and then tests and one that clears and then looks for pins, one sees the other.

#include <atomic>
#include <bit>
#include <cstdint>
#include <vector>

namespace lazyblob::contentstore {

class AtomicBitmap {
 public:
  explicit AtomicBitmap(uint64_t size) : size_(size), words_((size + 63) / 64) {}

  uint64_t size() const { return size_; }
  uint64_t words() const { return words_.size(); }
  uint64_t word(uint64_t w) const { return words_[w].load(std::memory_order_seq_cst); }

  bool Test(uint64_t i) const { return (word(i / 64) >> (i % 64) & 1) != 0; }
  // True when the bit changed.
  bool Set(uint64_t i) {
    const uint64_t bit = uint64_t{1} << (i % 64);
    return (words_[i / 64].fetch_or(bit, std::memory_order_seq_cst) & bit) == 0;
  }
  bool Clear(uint64_t i) {
    const uint64_t bit = uint64_t{1} << (i % 64);
    return (words_[i / 64].fetch_and(~bit, std::memory_order_seq_cst) & bit) != 0;
  }

  // The first bit of [first, end) that is not set; `end` if all are.
  uint64_t FindUnset(uint64_t first, uint64_t end) const {
    for (uint64_t i = first; i < end;) {
      const uint64_t unset = ~word(i / 64) >> (i % 64);
      if (unset != 0) {
        const uint64_t found = i + static_cast<uint64_t>(std::countr_zero(unset));
        return found < end ? found : end;
      }
      i = (i / 64 + 1) * 64;
    }
    return end;
  }
  bool AllSet(uint64_t first, uint64_t end) const { return FindUnset(first, end) >= end; }

 private:
  const uint64_t size_;
  std::vector<std::atomic<uint64_t>> words_;
};

}  // namespace lazyblob::contentstore
