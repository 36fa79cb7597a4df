#pragma once

// What is durably known of a layer besides its bytes: the file layer.json in its directory. Pure but for the
// two file functions. docs/CONTENT_STORE.md fixes the format.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/digest.h"
#include "oci/descriptor.h"

namespace lazyblob::contentstore {

inline constexpr uint32_t kMaxLayerId = (1 << 20) - 1;

struct LayerRecord {
  uint32_t id = 0;
  oci::Descriptor descriptor;
  base::Digest diff_id;                // empty: unknown
  std::vector<base::Digest> claims;    // more than one: images disagree about the diffID, all they say
  std::vector<base::Digest> unpacked;  // what the blob, read whole, unpacks to; by algorithm
  std::vector<std::string> sources;    // names, in order
  std::string not_lazy_reason;         // empty: none
  std::string quarantine;              // why the layer is quarantined; empty: it is not
};

std::string EncodeLayerRecord(const LayerRecord& record);
// DataLoss when the text is not a record of this version.
absl::StatusOr<LayerRecord> DecodeLayerRecord(absl::string_view text);

// Durable on return.
absl::Status WriteLayerRecord(const std::string& directory, const LayerRecord& record);
absl::StatusOr<LayerRecord> ReadLayerRecord(const std::string& directory);

}  // namespace lazyblob::contentstore
