#pragma once

// What the snapshotter needs of lazy layers, as a role: daemon/ has the real one (registry, content store,
// keeper), tests have a fake. A layer is *mounted* below the state root at a path that overlayfs takes as a
// lower directory; layers are shared by all snapshots that hold them.

#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/cancel.h"
#include "base/digest.h"
#include "fuse/mounter.h"

namespace lazyblob::snapshotter {

// What the labels of a Prepare say of the layer it is for (labels.h). Image authors can write labels: nothing
// of this is believed before the image's manifest, fetched by digest, says the same.
struct LayerClaim {
  std::string reference;                   // "host[:port]/name[:tag|@digest]"
  base::Digest layer;                      // of the blob
  base::Digest manifest;                   // empty: not told, the reference is resolved
  std::string chain;                       // containerd.io/snapshot.ref; opaque, often a chain id
  base::Digest diff_id;                    // empty: not told
  std::vector<base::Digest> image_layers;  // this layer and those above it, perhaps not all; a hint
  std::vector<std::string> urls;           // where else the blob is said to be; of any host and scheme
};

// A lazy layer as it is mounted; what is recorded with a snapshot so that a successor finds it again.
struct LayerMount {
  base::Digest layer;
  std::string meta_path;  // the EROFS image: the layer's own, or one made for its chain
  std::string target;     // where it is mounted
  fuse::Mode mode = fuse::Mode::kErofs;
  bool direct = false;       // on its complete cache file, without FUSE
  bool opaque_root = false;  // hides everything below it; overlayfs does not look, so lowers end here
};

// A layer below the one that is mounted: lazy, or the directory of a snapshot on the local disk.
using LowerLayer = std::variant<LayerMount, std::string>;

struct Usage {
  uint64_t bytes = 0;  // allocated on disk
  uint64_t inodes = 0;
};

// Why a layer is not lazy: a short code ("no-reference", "layer-not-in-manifest", "resolve-failed",
// "chain-mismatch", "unsupported-format", …) carried by the status of a failed Mount. Empty: none given.
absl::Status NotLazyError(absl::string_view reason, const absl::Status& why);
std::string NotLazyReason(const absl::Status& status);

// Layers that are known though no label names them, because containerd's content service saw the documents of
// their images. Thread-safe.
class LearnedChains {
 public:
  virtual ~LearnedChains() = default;

  // The layers known to make `chain`, one claim per layer digest; none: unknown. `diff_id` empty: not told.
  // Waits some seconds at most for what is just being learned.
  virtual std::vector<LayerClaim> ClaimsOf(const std::string& chain, const base::Digest& diff_id,
                                           const std::shared_ptr<base::CancelToken>& cancel) = 0;
  // A Prepare of `key` ("<namespace>/<number>/<name>" where containerd asks) was answered with the lazy layer
  // of `claim`: no client will write its blob into that namespace. Returns at once.
  virtual void Prepared(const std::string& key, const LayerClaim& claim) = 0;
};

// Thread-safe.
class LazyLayers {
 public:
  virtual ~LazyLayers() = default;

  // Makes the layer readable and mounts it, or counts one more user of what is mounted. The first call for an
  // image resolves it and works on all its layers at once. Blocks on the network; `lowers` are topmost first.
  // Errors carry a NotLazyReason; nothing stays mounted then.
  virtual absl::StatusOr<LayerMount> Mount(const LayerClaim& claim, const std::vector<LowerLayer>& lowers,
                                           std::shared_ptr<base::CancelToken> cancel) = 0;
  // Brings back, after a restart, what Mount once returned: adopts it where it is still mounted, else mounts
  // it from local files (the target may then differ). Never asks a registry. NotFound: its files are gone.
  virtual absl::StatusOr<LayerMount> Restore(const LayerMount& recorded) = 0;
  // One user less; the last one unmounts it.
  virtual void Unmount(const LayerMount& mount) = 0;
  // Unavailable when the mount is gone or its layer is quarantined: a container on it would read errors.
  virtual absl::Status Check(const LayerMount& mount) = 0;
  // What the layer unpacks to, where that was compared; else empty.
  virtual base::Digest VerifiedDiffId(const base::Digest& layer) {
    static_cast<void>(layer);
    return {};
  }
  // What the layer occupies in the cache.
  virtual Usage CacheUsage(const base::Digest& layer) = 0;

  // A view of the tree at `source` (a lower directory) with ids mapped, counted like a mount; returns its
  // path. After a restart the same call adopts a view that is still mounted.
  virtual absl::StatusOr<std::string> MapIds(const std::string& source, const fuse::IdMapping& mapping) = 0;
  virtual void UnmapIds(const std::string& source, const fuse::IdMapping& mapping) = 0;

  // Drops cached layers that nothing uses, as far as the configured limit asks. Called after Cleanup.
  virtual absl::Status Trim() = 0;
};

}  // namespace lazyblob::snapshotter
