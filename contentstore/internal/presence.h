#pragma once

// The file `presence` of a layer: a header, then a bit for each chunk (docs/CONTENT_STORE.md fixes the
// bytes). Pure; thread-safe.

#include <array>
#include <cstddef>
#include <cstdint>

#include "layer/layer_index.h"

namespace lazyblob::contentstore {

constexpr size_t kPresenceHeaderBytes = 64;
using PresenceHeader = std::array<uint8_t, kPresenceHeaderBytes>;

// `complete`: with the mark that all chunks are there.
PresenceHeader MakePresenceHeader(const layer::LayerIndex& index, bool complete);
// Of the whole file.
uint64_t PresenceBytes(uint64_t chunks);
// Little-endian, as all numbers of the file.
void PutUint64(uint8_t* at, uint64_t value);

}  // namespace lazyblob::contentstore
