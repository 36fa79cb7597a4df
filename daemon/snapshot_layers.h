#pragma once

// The lazy layers of containerd's snapshots: a claim made by labels is held against the image's manifest and
// config, fetched by digest; what agrees is indexed, mounted below the state root and counted.

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "daemon/image_layers.h"
#include "daemon/prepared_images.h"
#include "snapshotter/lazy_layers.h"

namespace lazyblob::daemon {

// Reasons of Mount: "bad-reference", "resolve-failed" (the image), "layer-not-in-manifest", "chain-mismatch"
// (the snapshot's name is not the chain id that the config gives), "diff-id-mismatch" (of label and config,
// or of config and layer), "unsupported-format", "no-index" and "no-random-access" (with plain_layers =
// "client"), "toc-missing" and "toc-conflict" likewise, "index-failed", "quarantined", "lower-missing" (a
// layer below is not there any more), "mount-failed", "cancelled".
class SnapshotLayers final : public snapshotter::LazyLayers {
 public:
  struct Options {
    std::optional<fuse::Mode> mode;  // absent: the best that works here
    uint64_t max_cache_bytes = 0;    // of layers that nothing holds; 0: no limit
    std::function<std::set<base::Digest>()> held = [] { return std::set<base::Digest>(); };  // by leases
    std::vector<std::string> url_hosts;  // that LayerClaim::urls may name; see snapshotter::IsAllowedUrl
    std::function<void(absl::string_view)> log = [](absl::string_view) {};  // one line each; any thread
  };
  // Both outlive it.
  SnapshotLayers(ImageLayers* layers, PreparedImages* images, Options options);

  absl::StatusOr<snapshotter::LayerMount> Mount(const snapshotter::LayerClaim& claim,
                                                const std::vector<snapshotter::LowerLayer>& lowers,
                                                std::shared_ptr<base::CancelToken> cancel) override;
  absl::StatusOr<snapshotter::LayerMount> Restore(const snapshotter::LayerMount& recorded) override;
  void Unmount(const snapshotter::LayerMount& mount) override;
  absl::Status Check(const snapshotter::LayerMount& mount) override;
  base::Digest VerifiedDiffId(const base::Digest& layer) override;
  snapshotter::Usage CacheUsage(const base::Digest& layer) override;
  absl::StatusOr<std::string> MapIds(const std::string& source, const fuse::IdMapping& mapping) override;
  void UnmapIds(const std::string& source, const fuse::IdMapping& mapping) override;
  // Removes layers that are neither mounted nor held, the one not used for longest first, until they fit the
  // limit.
  absl::Status Trim() override;

 private:
  // Of the claim's URLs those that may be asked; says how many others there are.
  std::vector<std::string> UsableUrls(const snapshotter::LayerClaim& claim) const;
  // Waits until layer `i` can be mounted.
  absl::Status Await(PreparedImages::Use& use, size_t i, const snapshotter::LayerClaim& claim);

  ImageLayers* const layers_;
  PreparedImages* const images_;
  const Options options_;
};

}  // namespace lazyblob::daemon
