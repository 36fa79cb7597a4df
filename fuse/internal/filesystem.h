#pragma once

// What the FUSE file system shows, without any FUSE: names, attributes, directories, links, xattrs, and where
// the bytes of a file are. Every answer is a function of node id, layer and index; nothing has to be
// remembered.

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "contentstore/content_store.h"
#include "fuse/internal/node_id.h"
#include "fuse/internal/read_engine.h"
#include "layer/erofs.h"

namespace lazyblob::fuse::internal {

// Thread-safe; never waits for the network. Nodes that are none of ours, or whose layer is gone, are ESTALE
// (which makes the kernel look the name up again).
class Filesystem {
 public:
  // A blob whose size is not known yet says this one.
  static constexpr uint64_t kUnknownSize = uint64_t{1} << 40;

  explicit Filesystem(contentstore::ContentStore* store) : store_(store) {}

  // st_ino is the node id. NotFound when there is no such name.
  absl::StatusOr<struct stat> Lookup(uint64_t parent, absl::string_view name);
  absl::StatusOr<struct stat> Attributes(uint64_t node);
  absl::StatusOr<std::string> ReadLink(uint64_t node);
  absl::StatusOr<std::vector<std::pair<std::string, std::string>>> Xattrs(uint64_t node);
  absl::StatusOr<struct statvfs> Statistics(uint64_t node);

  // The layer a node belongs to; null for the fixed directories.
  absl::StatusOr<std::shared_ptr<contentstore::LazyLayer>> LayerOf(uint64_t node);

  struct Entry {
    absl::string_view name;
    uint64_t node = 0;
    uint32_t type = 0;  // S_IFMT bits
    uint64_t next = 0;  // cookie of what follows
  };
  // Entries from `cookie` on (0: the first) until `visit` returns false. Cookies are functions of the index.
  absl::Status ReadDirectory(uint64_t directory, uint64_t cookie,
                             absl::FunctionRef<bool(const Entry&)> visit);

  // Where [offset, offset + size) of a file is. `layer` may be null (then it is found by the node id).
  // OutOfRange past the padded end of a blob; what a tree's file does not have is zeros.
  absl::StatusOr<ReadPlan> Plan(uint64_t node, std::shared_ptr<contentstore::LazyLayer> layer,
                                uint64_t offset, uint64_t size);

 private:
  using LayerPtr = std::shared_ptr<contentstore::LazyLayer>;
  using ImagePtr = std::shared_ptr<const layer::ErofsImage>;

  absl::StatusOr<Node> Parse(uint64_t id) const;
  absl::StatusOr<LayerPtr> FindLayer(uint32_t id);
  // `number` as in Node::image.
  absl::StatusOr<ImagePtr> Image(const LayerPtr& layer, uint32_t number) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<ImagePtr> ImageOf(const Node& node);
  uint64_t BlobSize(contentstore::LazyLayer& layer) ABSL_LOCKS_EXCLUDED(mutex_);
  struct stat BlobStat(contentstore::LazyLayer& layer);
  // Of inode `nid` of the tree that `node` is in.
  absl::StatusOr<struct stat> TreeStat(const Node& node, const layer::ErofsImage& image, uint64_t nid) const;
  absl::StatusOr<ReadPlan> PlanTree(const Node& node, LayerPtr layer, uint64_t offset, uint64_t size);

  contentstore::ContentStore* const store_;

  struct OpenImage {
    std::weak_ptr<contentstore::LazyLayer> layer;  // never keeps a layer alive
    ImagePtr image;
  };
  absl::Mutex mutex_;
  // By layer id and image number.
  absl::flat_hash_map<std::pair<uint32_t, uint32_t>, OpenImage> images_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<uint32_t> said_unknown_ ABSL_GUARDED_BY(mutex_);  // st_size never shrinks
};

// "sha256-<hex>" back to a digest; "sha256-<hex>.<n>" also names chain image n. NotFound when it is no such
// name.
struct TreeName {
  base::Digest layer;
  uint32_t image = 0;
};
absl::StatusOr<base::Digest> ParseLayerName(absl::string_view name);
absl::StatusOr<TreeName> ParseTreeName(absl::string_view name);

}  // namespace lazyblob::fuse::internal
