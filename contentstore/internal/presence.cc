#include "contentstore/internal/presence.h"

#include <algorithm>
#include <cstring>

#include "base/digest.h"

namespace lazyblob::contentstore {
namespace {

constexpr size_t kSummedBytes = 32;
constexpr char kMagic[9] = "LBPRES01";
constexpr uint64_t kFlagComplete = 1;

}  // namespace

void PutUint64(uint8_t* at, uint64_t value) {
  for (int i = 0; i < 8; ++i) at[i] = static_cast<uint8_t>(value >> (8 * i));
}

PresenceHeader MakePresenceHeader(const layer::LayerIndex& index, bool complete) {
  PresenceHeader header{};
  std::memcpy(header.data(), kMagic, 8);
  PutUint64(&header[8], index.chunk_count());
  PutUint64(&header[16], index.info().data_size);
  PutUint64(&header[24], complete ? kFlagComplete : 0);
  const base::Sha256Bytes sum = base::Sha256({header.data(), kSummedBytes});
  std::copy(sum.begin(), sum.end(), header.begin() + kSummedBytes);
  return header;
}

uint64_t PresenceBytes(uint64_t chunks) { return kPresenceHeaderBytes + (chunks + 63) / 64 * 8; }

}  // namespace lazyblob::contentstore
