#pragma once

// Node ids of the FUSE file system: pure functions of layer id and EROFS inode number, so that a successor of
// this process knows every node the kernel remembers (docs/FUSE.md fixes the bits).
//
//   63 62 | 61 60 | 59 … 40  | 39 … 0
//     0   | kind  | layer id | nid         kind 0: fixed nodes (layer 0), 1: blob (nid 0), 2: node of a tree

#include <cstdint>
#include <optional>

namespace lazyblob::fuse::internal {

enum class NodeKind : uint8_t { kRoot, kBlobs, kTrees, kBlob, kTree };

struct Node {
  NodeKind kind = NodeKind::kRoot;
  uint32_t layer = 0;  // contentstore's id, 1 … 2^20-1
  uint64_t nid = 0;    // of the layer's EROFS image
};

inline constexpr uint64_t kRootNode = 1;  // FUSE_ROOT_ID
inline constexpr uint64_t kBlobsNode = 2;
inline constexpr uint64_t kTreesNode = 3;

inline constexpr int kNidBits = 40;
inline constexpr int kLayerBits = 20;
inline constexpr uint64_t kMaxNid = (uint64_t{1} << kNidBits) - 1;
inline constexpr uint32_t kMaxLayer = (uint32_t{1} << kLayerBits) - 1;

// The generation of every node: ids are never given to another file.
inline constexpr uint64_t kGeneration = 1;

inline constexpr uint64_t BlobNode(uint32_t layer) {
  return uint64_t{1} << (kNidBits + kLayerBits) | uint64_t{layer} << kNidBits;
}

// Zero (never a node) when the numbers do not fit.
inline constexpr uint64_t TreeNode(uint32_t layer, uint64_t nid) {
  if (layer == 0 || layer > kMaxLayer || nid > kMaxNid) return 0;
  return uint64_t{2} << (kNidBits + kLayerBits) | uint64_t{layer} << kNidBits | nid;
}

// nullopt: no node of ours.
inline std::optional<Node> ParseNode(uint64_t id) {
  switch (id) {
    case kRootNode:
      return Node{NodeKind::kRoot, 0, 0};
    case kBlobsNode:
      return Node{NodeKind::kBlobs, 0, 0};
    case kTreesNode:
      return Node{NodeKind::kTrees, 0, 0};
    default:
      break;
  }
  const uint64_t kind = id >> (kNidBits + kLayerBits);
  const auto layer = static_cast<uint32_t>(id >> kNidBits) & kMaxLayer;
  const uint64_t nid = id & kMaxNid;
  if (layer == 0) return std::nullopt;
  if (kind == 1 && nid == 0) return Node{NodeKind::kBlob, layer, 0};
  if (kind == 2) return Node{NodeKind::kTree, layer, nid};
  return std::nullopt;
}

}  // namespace lazyblob::fuse::internal
