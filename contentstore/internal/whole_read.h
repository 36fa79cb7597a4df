#pragma once

// Reading a blob from its start to its end, for what only that can tell: that it has its digest, and what it
// unpacks to.

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "contentstore/internal/blob_spools.h"
#include "contentstore/internal/layer.h"
#include "contentstore/internal/source_read.h"

namespace lazyblob::contentstore {

// Of the bytes of one reading. One thread at a time; the layer outlives it.
class WholeCheck {
 public:
  // `unpacked`: of Layer::StartUnpacking; null: the digest alone is looked at.
  WholeCheck(Layer& layer, std::unique_ptr<UnpackedDigest> unpacked)
      : layer_(layer), hasher_(layer.descriptor().digest.algorithm()), unpacked_(std::move(unpacked)) {}
  void Feed(absl::Span<const uint8_t> bytes);
  // All were fed. DataLoss: the digest is wrong; else the layer is told what they unpack to.
  absl::Status Finish(const std::function<void(absl::string_view)>& log);

 private:
  Layer& layer_;
  base::Hasher hasher_;
  const std::unique_ptr<UnpackedDigest> unpacked_;
};

// Of an indexed layer; chunks that are missing are stored on the way.
struct WholeRead {
  std::shared_ptr<Layer> layer;
  BlobSpools* spools = nullptr;
  layer::BuildLimits limits;
  StreamCaller caller;
  uint64_t range_bytes = UINT64_MAX;              // of one request
  std::function<void(uint64_t received)> report;  // never empty
  std::function<void(absl::string_view)> log;     // one line; never empty
  // Called before each request and now and then while its bytes come; may block. Aborted: to end the request,
  // and ask for the rest with another one. Other errors end the reading. Empty: always OK.
  std::function<absl::Status(bool between_requests)> pause;
  CacheRoom room = CacheRoom::kEvicting;  // for the chunks
};

// Blocks. OK: the blob has its digest, and the layer knows what it unpacks to (Layer::NoteUnpacked); what of
// its chunks was not stored, for want of room or because they lie out of order, is still missing. DataLoss:
// the digest is wrong, also of what the next source, or the only one once more, gives.
absl::Status ReadWhole(const WholeRead& read);

}  // namespace lazyblob::contentstore
