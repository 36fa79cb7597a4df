#pragma once

// Node ids of the FUSE file system: pure functions of layer id and EROFS inode number, so that a successor of
// this process knows every node the kernel remembers (docs/FUSE.md fixes the bits).
//
//   63 62 | 61 60 | 59 … 40  | 39 … 32 | 31 … 0
//     0   | kind  | layer id |  image  | nid     kind 0: fixed nodes (layer 0), 1: blob (image and nid 0), 2:
//     node of a
//                                               tree; image 0: the layer's own, else a chain image's number

#include <cstdint>
#include <optional>

namespace lazyblob::fuse::internal {

enum class NodeKind : uint8_t { kRoot, kBlobs, kTrees, kBlob, kTree };

struct Node {
  NodeKind kind = NodeKind::kRoot;
  uint32_t layer = 0;  // contentstore's id, 1 … 2^20-1
  uint32_t image = 0;  // 0: the layer's own EROFS image; else the number of a chain image, 1 … 255
  uint64_t nid = 0;    // of that image
};

inline constexpr uint64_t kRootNode = 1;  // FUSE_ROOT_ID
inline constexpr uint64_t kBlobsNode = 2;
inline constexpr uint64_t kTreesNode = 3;

inline constexpr int kNidBits = 32;
inline constexpr int kImageBits = 8;
inline constexpr int kLayerBits = 20;
inline constexpr int kLayerShift = kNidBits + kImageBits;
inline constexpr int kKindShift = kLayerShift + kLayerBits;
inline constexpr uint64_t kMaxNid = (uint64_t{1} << kNidBits) - 1;
inline constexpr uint32_t kMaxImage = (uint32_t{1} << kImageBits) - 1;
inline constexpr uint32_t kMaxLayer = (uint32_t{1} << kLayerBits) - 1;

// The generation of every node: ids are never given to another file.
inline constexpr uint64_t kGeneration = 1;

inline constexpr uint64_t BlobNode(uint32_t layer) {
  return uint64_t{1} << kKindShift | uint64_t{layer} << kLayerShift;
}

// Zero (never a node) when the numbers do not fit.
inline constexpr uint64_t TreeNode(uint32_t layer, uint32_t image, uint64_t nid) {
  if (layer == 0 || layer > kMaxLayer || image > kMaxImage || nid > kMaxNid) return 0;
  return uint64_t{2} << kKindShift | uint64_t{layer} << kLayerShift | uint64_t{image} << kNidBits | nid;
}

// nullopt: no node of ours.
inline std::optional<Node> ParseNode(uint64_t id) {
  switch (id) {
    case kRootNode:
      return Node{NodeKind::kRoot, 0, 0, 0};
    case kBlobsNode:
      return Node{NodeKind::kBlobs, 0, 0, 0};
    case kTreesNode:
      return Node{NodeKind::kTrees, 0, 0, 0};
    default:
      break;
  }
  const uint64_t kind = id >> kKindShift;
  const auto layer = static_cast<uint32_t>(id >> kLayerShift) & kMaxLayer;
  const auto image = static_cast<uint32_t>(id >> kNidBits) & kMaxImage;
  const uint64_t nid = id & kMaxNid;
  if (layer == 0) return std::nullopt;
  if (kind == 1 && image == 0 && nid == 0) return Node{NodeKind::kBlob, layer, 0, 0};
  if (kind == 2) return Node{NodeKind::kTree, layer, image, nid};
  return std::nullopt;
}

}  // namespace lazyblob::fuse::internal
