#pragma once

// Making all bytes of an image local: every layer whole in the content store.

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "contentstore/content_store.h"
#include "exporter/content.h"
#include "proto/exporter.pb.h"

namespace lazyblob::exporter {

// `content` was read with `keep`. Blocks; layers come side by side, each verified. Payloads that are no file
// system layers stay where they are, and so do layers that are local without the store (just made, or of a
// lease). ProviderMissing lists all that nobody has before anything is fetched. InvalidArgument: config and
// manifest disagree.
absl::Status Unlazy(const Content& content, contentstore::ContentStore* store,
                    const contentstore::FetchContext& context,
                    const std::function<void(const v1::Progress&)>& progress);

// The same for layers that are known to the store. The first failure ends the others; each layer ends in one
// of "exists", "written", "failed".
absl::Status UnlazyLayers(const std::vector<std::shared_ptr<contentstore::LazyLayer>>& layers,
                          contentstore::ContentStore* store, const contentstore::FetchContext& context,
                          const std::function<void(const v1::Progress&)>& progress);

// The bytes of a small blob of `content`, verified. ResourceExhausted over `max_bytes`.
absl::StatusOr<std::string> ReadSmall(const Content& content, const oci::Descriptor& descriptor,
                                      uint64_t max_bytes, const contentstore::FetchContext& context);

}  // namespace lazyblob::exporter
