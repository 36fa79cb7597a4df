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
#include "exporter/content.h"
#include "exporter/make.h"
#include "proto/exporter.pb.h"

namespace lazyblob::exporter {

using MadeLayers = std::vector<std::shared_ptr<MadeLayer>>;  // bottom first

// An image that is a base with layers on top.
struct ImageAssembly {
  const v1::ExportRequest* request = nullptr;
  const v1::Image* image = nullptr;
  std::optional<Content> base;  // one image; absent: from scratch
  MadeLayers layers;
  MadeLayers cache_layers;  // for an inline cache; else none
};

// Blobs that can be placed before the image is whole: the base's layers, and those being made.
Content EarlyContent(const ImageAssembly& assembly);
// Waits for the layers. InvalidArgument: base, config or platform do not fit together.
absl::StatusOr<Content> WholeContent(const ImageAssembly& assembly,
                                     const contentstore::FetchContext& context);

// A cache that has a destination of its own.
Content EarlyCache(const MadeLayers& layers);
absl::StatusOr<Content> WholeCache(const v1::ExportRequest& request, const MadeLayers& layers,
                                   base::CancelToken* cancel);

// One index over images of several platforms, each named as in the request.
absl::StatusOr<Content> JoinPlatforms(std::vector<Content> contents, const v1::ExportRequest& request);

}  // namespace lazyblob::exporter
