#pragma once

// From a reference to what has to be mounted: manifest, config, and where the layers' bytes can be had.
// Thread-safe; blocks on the network. One request per document: tag, platform's manifest, config.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "contentstore/blob_source.h"
#include "contentstore/content_store.h"
#include "oci/manifest.h"
#include "oci/reference.h"
#include "registry/client.h"

namespace lazyblob::daemon {

// A document as it was received: `raw` has the descriptor's digest.
struct ImageDocument {
  oci::Descriptor descriptor;
  std::string raw;
};

struct ResolvedImage {
  std::string reference;  // canonical text of what was asked for
  base::Digest manifest_digest;
  // What was read on the way: indexes (none for a plain manifest), the manifest, the config; in this order.
  std::vector<ImageDocument> documents;
  std::vector<oci::Descriptor> layers;  // bottom first
  std::vector<base::Digest> diff_ids;   // same order and length
  std::vector<std::shared_ptr<contentstore::BlobSource>> sources;
  contentstore::ExternalTocSource external_toc;  // for its layers; may be null
};

// `client` outlives the call and the sources. InvalidArgument: not an image (artifact, config and manifest
// disagree). Single layers may be of a type that nobody can mount (CheckLayerType), but not all of them.
absl::StatusOr<ResolvedImage> ResolveImage(registry::Client* client, const oci::ImageReference& reference,
                                           const oci::Platform& platform,
                                           const registry::CallContext& context);

// InvalidArgument: not a file system layer.
absl::Status CheckLayerType(const oci::Descriptor& layer);

}  // namespace lazyblob::daemon
