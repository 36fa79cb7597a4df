#pragma once

// What standalone mounts and snapshots share: from an image to layers that can be read, and from a layer to
// where it is mounted.

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "base/crash_record.h"
#include "contentstore/content_store.h"
#include "daemon/image_resolver.h"
#include "daemon/layer_mounts.h"
#include "daemon/mount_table.h"
#include "daemon/plain_http_hosts.h"
#include "fuse/mounter.h"
#include "registry/client.h"

namespace lazyblob::daemon {

// An image and how to reach it, as a client asks for it.
struct ImageRequest {
  std::string reference;
  std::string platform;  // empty: the host's
  bool plain_http = false;
  std::string docker_config;  // path; empty: anonymous
};

// Bytes of one layer's blob received so far; called from several threads.
using LayerProgress = std::function<void(const oci::Descriptor& layer, uint64_t received)>;

using LazyLayerPtr = std::shared_ptr<contentstore::LazyLayer>;

// Null when `docker_config` is empty.
std::shared_ptr<const registry::CredentialsProvider> CredentialsOf(const std::string& docker_config);

// Whether what the layer unpacks to is to be compared before it is mounted; see ImageLayers::CompareDiffId.
bool MustCompare(const contentstore::LazyLayer& layer, bool always);

// Whether a layer hides everything below it.
absl::StatusOr<bool> HasOpaqueRoot(const std::string& meta_path);

// Thread-safe.
class ImageLayers {
 public:
  struct Parts {
    std::string root;  // state root
    registry::Client* client = nullptr;
    contentstore::ContentStore* store = nullptr;
    fuse::Mounter* mounter = nullptr;
    LayerMounts::ReadGate reads;  // of the FUSE server
    PlainHttpHosts* plain_http = nullptr;
    const base::CrashRecord* crashes = nullptr;  // null: none is kept
  };
  // All parts outlive it.
  explicit ImageLayers(Parts parts);
  ImageLayers(const ImageLayers&) = delete;

  // Reference to manifest and config: one request each. Blocks on the network.
  absl::StatusOr<ResolvedImage> Resolve(const ImageRequest& request, const registry::CallContext& context);

  // Makes layer `i` known, with the image's sources.
  absl::StatusOr<LazyLayerPtr> Add(const ResolvedImage& image, size_t i);
  // The same, and where else its bytes may be fetched, after those.
  absl::StatusOr<LazyLayerPtr> AddWithUrls(const ResolvedImage& image, size_t i,
                                           const std::vector<std::string>& urls);
  // Brings an indexed layer to where it can be mounted: one whose index gives no random access is fetched
  // whole.
  absl::Status MakeReadable(contentstore::LazyLayer& layer, const contentstore::FetchContext& context,
                            const contentstore::Progress& progress);
  // Reads layer `i` whole where images disagree what it unpacks to (with `always`: where nobody has compared
  // it yet), and holds what this image says against it. FailedPrecondition: it is wrong.
  absl::Status CompareDiffId(const ResolvedImage& image, size_t i, bool always,
                             const contentstore::FetchContext& context,
                             const contentstore::Progress& progress);
  // Makes every layer of the image known and indexed, several at a time; bottom first.
  absl::StatusOr<std::vector<LazyLayerPtr>> Prepare(const ResolvedImage& image, bool keep_data,
                                                    const contentstore::FetchContext& context,
                                                    const LayerProgress& progress);

  // A layer below another: an indexed one, or a directory on the local disk.
  using Lower = std::variant<LazyLayerPtr, std::string>;
  // Mounts an indexed layer, or counts one more user of what is mounted; with `lowers` (topmost first) its
  // implied directories look as they do below. The caller gives it back with mounts().Release(target).
  absl::StatusOr<MountedLayer> Mount(const LazyLayerPtr& layer, absl::Span<const Lower> lowers,
                                     fuse::Mode mode);
  // `recorded` as it is mounted now, or mounted again from local files. NotFound: they are gone.
  absl::StatusOr<MountedLayer> Restore(const MountedLayer& recorded, fuse::Mode* mode);

  // Holds a layer, and its bytes, for a mount of its cache file; as ContentStore::PinForMount.
  absl::StatusOr<std::shared_ptr<const void>> PinForMount(const LazyLayerPtr& layer, bool mounted);

  // How this kernel can mount; found out once.
  absl::StatusOr<fuse::ProbeResult> Probe() ABSL_LOCKS_EXCLUDED(probe_mutex_);

  LayerMounts& mounts() { return mounts_; }
  contentstore::ContentStore& store() { return *parts_.store; }
  const std::string& root() const { return parts_.root; }

 private:
  // The metadata image of a layer above `lowers`: its own, or one with the attributes of the layers below.
  absl::StatusOr<std::string> MetadataPath(contentstore::LazyLayer& layer, absl::Span<const Lower> lowers)
      ABSL_LOCKS_EXCLUDED(chain_mutex_);
  absl::StatusOr<WantedLayer> Wanted(const LazyLayerPtr& layer, const std::string& meta_path,
                                     fuse::Mode mode);

  const Parts parts_;
  LayerMounts mounts_;

  absl::Mutex probe_mutex_;
  std::optional<fuse::ProbeResult> probe_ ABSL_GUARDED_BY(probe_mutex_);

  absl::Mutex chain_mutex_;  // one chain image is made at a time; nothing else is locked under it
};

}  // namespace lazyblob::daemon
