// What images say of a layer: believed only as far as it was verified, and never against another image.

#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

class ClaimsTest : public StoreTest {
 protected:
  static support::Layer MakeLayer() {
    return support::MakeLayer(support::MakeTar({support::File("a", support::TextBytes(300'000, 3))}),
                              oci::Compression::kGzip);
  }
};

TEST_F(ClaimsTest, WhatALiarSaidOfALayerDoesNotStandInTheWay) {
  Open();
  const support::Layer made = MakeLayer();
  support::Layer lie = made;
  lie.diff_id = base::Digest::Of("something else");
  std::shared_ptr<LazyLayer> layer = Add(lie);
  ASSERT_FALSE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  ASSERT_EQ(layer->state(), LayerState::kQuarantined);
  layer = Add(made);
  EXPECT_EQ(layer->state(), LayerState::kNeedsIndex);
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_TRUE(Same(Read(*layer, 0, layer->data_size()).value_or("unreadable"), DataArea(made)));
}

TEST_F(ClaimsTest, HandlersThatContradictEachOtherAreRefused) {
  Open();
  const support::Layer made = MakeLayer();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  DescriptorHandler handler;
  handler.descriptor = made.descriptor;
  handler.diff_id = base::Digest::Of("other");
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->AddHandler(handler).status()));
  handler.diff_id = base::Digest();
  handler.descriptor.size += 1;
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->AddHandler(handler).status()));
  handler.descriptor.size -= 1;
  EXPECT_EQ(store_->AddHandler(handler).value(), layer);
}

}  // namespace
}  // namespace lazyblob::contentstore
