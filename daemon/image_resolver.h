#pragma once

// From a reference to what has to be mounted: manifest, config, and where the layers' bytes can be had.
// Thread-safe; blocks on the network. One request per document: tag, platform's manifest, config.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "contentstore/blob_source.h"
#include "oci/manifest.h"
#include "oci/reference.h"
#include "registry/client.h"

namespace lazyblob::daemon {

struct ResolvedImage {
  std::string reference;  // canonical text of what was asked for
  base::Digest manifest_digest;
  std::vector<oci::Descriptor> layers;  // bottom first
  std::vector<base::Digest> diff_ids;   // same order and length
  std::vector<std::shared_ptr<contentstore::BlobSource>> sources;
};

// `client` outlives the call and the sources. InvalidArgument: not an image (artifact, unknown layer type,
// config and manifest disagree).
absl::StatusOr<ResolvedImage> ResolveImage(registry::Client* client, const oci::ImageReference& reference,
                                           const oci::Platform& platform,
                                           const registry::CallContext& context);

}  // namespace lazyblob::daemon
