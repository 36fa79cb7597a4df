#pragma once

// Build caches that an export takes over: their documents are read, their layers stay where they are until
// somebody mounts them or they are pushed to a place that cannot mount them. Thread-safe as far as arguments
// are.

#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/cancel.h"
#include "contentstore/content_store.h"
#include "exporter/build_cache.h"
#include "exporter/content.h"
#include "oci/reference.h"
#include "registry/client.h"

namespace lazyblob::exporter {

struct ImportedCache {
  Cache build;                         // BuildKit's registry and inline caches, in one
  std::vector<PlainCacheLayer> plain;  // each name once, as the first import has it
  std::vector<ContentBlob> blobs;      // the layers of both, each digest once
  std::vector<std::string> warnings;   // imports that gave nothing, one line each

  const ContentBlob* Find(const base::Digest& digest) const;
};

struct ImportOptions {
  bool plain = false;                // plain cache images are wanted, else BuildKit's caches
  std::set<std::string> skip;        // names in plain caches that are not wanted
  registry::CallContext call;        // for the documents
  contentstore::FetchContext fetch;  // for the configs
};

// Adds the cache at `reference`: a registry cache in either form, or the inline or plain caches of an image
// and of all images of an index. What is not there (NotFound), or is an image that holds no cache, is a
// warning: so is every first build. Errors name `reference`. InvalidArgument: damaged, or of the other kind;
// DataLoss: parts of it are missing or are not what their digest says; others as registry::Client has them.
absl::Status ImportCache(const ContentParts& parts, const oci::ImageReference& reference,
                         const ImportOptions& options, ImportedCache* imported);

}  // namespace lazyblob::exporter
