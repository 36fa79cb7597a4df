#include "fuse/internal/node_id.h"

#include <gtest/gtest.h>

#include "fuse/internal/filesystem.h"
#include "fuse/server.h"

namespace lazyblob::fuse::internal {
namespace {

// The kernel remembers these numbers over restarts and upgrades of ours: they must never change.
TEST(NodeIdTest, NumbersAreFixedForEver) {
  EXPECT_EQ(BlobNode(1), 0x1000010000000000u);
  EXPECT_EQ(BlobNode(0xfffff), 0x1fffff0000000000u);
  EXPECT_EQ(TreeNode(1, 0, 0), 0x2000010000000000u);
  EXPECT_EQ(TreeNode(0xabcde, 0x12, 0x34567890), 0x2abcde1234567890u);
  EXPECT_EQ(kRootNode, 1u);
  EXPECT_EQ(kBlobsNode, 2u);
  EXPECT_EQ(kTreesNode, 3u);
  EXPECT_EQ(kGeneration, 1u);
}

TEST(NodeIdTest, ParseGivesBackWhatWasMade) {
  for (uint32_t layer : {1u, 77u, kMaxLayer}) {
    auto blob = ParseNode(BlobNode(layer));
    ASSERT_TRUE(blob.has_value());
    EXPECT_EQ(blob->kind, NodeKind::kBlob);
    EXPECT_EQ(blob->layer, layer);
    for (uint64_t nid : {uint64_t{0}, uint64_t{36}, kMaxNid}) {
      auto tree = ParseNode(TreeNode(layer, 7, nid));
      ASSERT_TRUE(tree.has_value());
      EXPECT_EQ(tree->kind, NodeKind::kTree);
      EXPECT_EQ(tree->layer, layer);
      EXPECT_EQ(tree->image, 7u);
      EXPECT_EQ(tree->nid, nid);
    }
  }
}

TEST(NodeIdTest, WhatDoesNotFitIsNoNode) {
  EXPECT_EQ(TreeNode(0, 0, 1), 0u);
  EXPECT_EQ(TreeNode(kMaxLayer + 1, 0, 1), 0u);
  EXPECT_EQ(TreeNode(1, 0, kMaxNid + 1), 0u);
  EXPECT_EQ(TreeNode(1, kMaxImage + 1, 1), 0u);
  for (uint64_t id :
       {uint64_t{0}, uint64_t{4}, uint64_t{1} << 40, uint64_t{1} << 60, uint64_t{2} << 60, BlobNode(5) | 1,
        uint64_t{3} << 60 | uint64_t{1} << 40, BlobNode(5) | uint64_t{1} << 63}) {
    EXPECT_FALSE(ParseNode(id).has_value()) << id;
  }
}

TEST(LayerNameTest, RoundTripsAndRefusesTheRest) {
  const base::Digest digest = base::Digest::Of(absl::string_view("x"));
  const std::string name = LayerName(digest);
  EXPECT_EQ(name, "sha256-" + digest.hex());
  EXPECT_EQ(*ParseLayerName(name), digest);
  for (const char* bad : {"", "sha256", "sha256-", "sha256-00", "sha256:00", "md5-00", "-", "."}) {
    EXPECT_TRUE(absl::IsNotFound(ParseLayerName(bad).status())) << bad;
  }
  EXPECT_TRUE(absl::IsNotFound(ParseLayerName(digest.ToString()).status()));
}

TEST(TreeNameTest, NamesTheLayersOwnImageOrAChainImage) {
  const base::Digest digest = base::Digest::Of(absl::string_view("x"));
  const std::string name = LayerName(digest);
  EXPECT_EQ(ParseTreeName(name)->image, 0u);
  EXPECT_EQ(ParseTreeName(name + ".255")->image, 255u);
  EXPECT_EQ(ParseTreeName(name + ".255")->layer, digest);
  for (const char* bad : {".", ".0", ".256", ".01", ".+1", ".1.1", ".x"}) {
    EXPECT_TRUE(absl::IsNotFound(ParseTreeName(name + bad).status())) << bad;
  }
}

}  // namespace
}  // namespace lazyblob::fuse::internal
