#pragma once

// From layers, a base and cache records to the documents that are put: the phase between making and placing.

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/cancel.h"
#include "contentstore/content_store.h"
#include "exporter/cache_import.h"
#include "exporter/content.h"
#include "exporter/make.h"
#include "proto/exporter.pb.h"

namespace lazyblob::exporter {

using MadeLayers = std::vector<std::shared_ptr<MadeLayer>>;  // bottom first

// A cache: what it takes over, with new layers.
struct CacheAssembly {
  const v1::ExportRequest* request = nullptr;
  MadeLayers layers;  // those of the request, in its order
  ImportedCache imported;
};

// An image that is a base with layers on top.
struct ImageAssembly {
  const v1::ExportRequest* request = nullptr;
  const v1::Image* image = nullptr;
  std::optional<Content> base;  // one image; absent: from scratch
  MadeLayers layers;
  const CacheAssembly* cache = nullptr;  // inline; else null
};

// Blobs that can be placed before the image is whole: the base's layers, and those being made.
Content EarlyContent(const ImageAssembly& assembly);
// Waits for the layers. InvalidArgument: base, config or platform do not fit together.
absl::StatusOr<Content> WholeContent(const ImageAssembly& assembly,
                                     const contentstore::FetchContext& context);

// A cache that has a destination of its own. Early blobs are those that no choice between min and max leaves
// out.
Content EarlyCache(const CacheAssembly& assembly);
// FailedPrecondition: there is nothing in it.
absl::StatusOr<Content> WholeCache(const CacheAssembly& assembly, base::CancelToken* cancel);
// The name of a layer in a plain cache: where the directory belongs, or what it is called.
std::string PlainCacheName(const v1::LayerSource& layer);

}  // namespace lazyblob::exporter
