// What images say of a layer: believed only as far as it was verified, and never against another image. And
// when a layer is refused for it, and when not any more.

#include "absl/strings/match.h"
#include "contentstore/internal/layer_record.h"
#include "tests/contentstore/made_estargz.h"
#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

using support::GatedBlobSource;

class ClaimsTest : public StoreTest {
 protected:
  static support::Layer MakeLayer() {
    return support::MakeLayer(support::MakeTar({support::File("a", support::TextBytes(300'000, 3))}),
                              oci::Compression::kGzip);
  }
  // What an image says of the layer, and another registry that has it.
  absl::StatusOr<std::shared_ptr<LazyLayer>> AddFrom(const support::Layer& layer,
                                                     std::shared_ptr<GatedBlobSource> source) {
    source->PutBlob(layer.blob);
    DescriptorHandler handler;
    handler.descriptor = layer.descriptor;
    handler.diff_id = layer.diff_id;
    handler.sources = {std::move(source)};
    return store_->AddHandler(handler);
  }
  static support::Layer LieAbout(support::Layer layer) {
    layer.diff_id = base::Digest::Of("something else");
    return layer;
  }
  // Its diffID turns out to be a lie.
  std::shared_ptr<LazyLayer> AddQuarantined(const support::Layer& lie) {
    std::shared_ptr<LazyLayer> layer = AddIndexed(lie);
    EXPECT_TRUE(absl::IsDataLoss(store_->Unlazy(*layer, {}, {})));
    EXPECT_EQ(layer->state(), LayerState::kQuarantined);
    return layer;
  }
  std::shared_ptr<GatedBlobSource> OtherSource(const std::string& name) {
    return std::make_shared<GatedBlobSource>(name, &clock_);
  }
};

TEST_F(ClaimsTest, WhatALiarSaidOfALayerDoesNotStandInTheWay) {
  Open();
  const support::Layer made = MakeLayer();
  std::shared_ptr<LazyLayer> layer = Add(LieAbout(made));
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

TEST_F(ClaimsTest, ANewSourceEndsAQuarantineForWrongBytes) {
  Open();
  const support::Layer made = MakeTarLayer(10, 3);
  source_->SetDefault(GatedBlobSource::Corrupt(3000));
  std::shared_ptr<LazyLayer> layer = Add(made);
  EXPECT_TRUE(absl::IsDataLoss(store_->EnsureIndexed(*layer, true, {}, {})));
  ASSERT_EQ(layer->state(), LayerState::kQuarantined);
  Add(made);  // nothing new
  EXPECT_EQ(layer->state(), LayerState::kQuarantined);
  layer.reset();
  Close();
  Open();
  const auto good = OtherSource("test:good");
  const auto added = AddFrom(made, good);
  ASSERT_TRUE(added.ok()) << added.status();
  ForgetRequests();
  const absl::Status indexed = store_->EnsureIndexed(**added, true, {}, {});
  ASSERT_TRUE(indexed.ok()) << indexed;
  EXPECT_EQ(RequestCount(), 0);  // the new one is asked first
  EXPECT_EQ((*added)->state(), LayerState::kComplete);
}

TEST_F(ClaimsTest, OneRightSourceIsEnough) {
  Open();
  const support::Layer made = MakeTarLayer(10, 3);
  source_->SetDefault(GatedBlobSource::Corrupt(3000));
  const std::shared_ptr<LazyLayer> layer = Add(made);
  const auto wrong = OtherSource("test:wrong");
  wrong->SetDefault(GatedBlobSource::Corrupt(4000));
  ASSERT_TRUE(AddFrom(made, wrong).ok());
  ASSERT_TRUE(AddFrom(made, OtherSource("test:right")).ok());
  const absl::Status indexed = store_->EnsureIndexed(*layer, true, {}, {});
  EXPECT_TRUE(indexed.ok()) << indexed;
  EXPECT_EQ(layer->state(), LayerState::kComplete);
}

TEST_F(ClaimsTest, WhatEndsTooEarlyOrIsNoAnswerQuarantinesNothing) {
  Open();
  const support::Layer made = MakeLayer();
  const std::shared_ptr<LazyLayer> layer = Add(made);
  for (const auto& outcome : {GatedBlobSource::Lie(made.blob.size() / 2),
                              GatedBlobSource::Fail(absl::DataLossError("no complete HTTP response"))}) {
    source_->SetDefault(outcome);
    const absl::Status status = store_->EnsureIndexed(*layer, true, {}, {});
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_EQ(layer->state(), LayerState::kNeedsIndex);
  }
  source_->SetDefault(GatedBlobSource::Succeed());
  const absl::Status indexed = store_->EnsureIndexed(*layer, true, {}, {});
  EXPECT_TRUE(indexed.ok()) << indexed;
}

TEST_F(ClaimsTest, ADiffIdOfAnotherKindIsComparedBeforeTheLayerIsMountedAgain) {
  Open();
  const Estargz made = MakeEstargz({support::RandomBytes(70'000, 5)}, 64 << 10);
  const std::shared_ptr<LazyLayer> layer = AddQuarantined(LieAbout(made.layer));
  support::Layer other = made.layer;
  base::Hasher sha512(base::DigestAlgorithm::kSha512);
  sha512.Update(made.layer.tar);
  other.diff_id = sha512.Finish();
  Add(other);
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kDisputed);
  ASSERT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kVerified);
  EXPECT_EQ(layer->diff_id(), other.diff_id);
}

TEST_F(ClaimsTest, AQuarantineWhoseReasonWasLostEndsWithTheRightImage) {
  Open();
  const Estargz made = MakeEstargz({support::RandomBytes(70'000, 5)}, 64 << 10);
  const support::Layer lie = LieAbout(made.layer);
  std::shared_ptr<LazyLayer> layer = AddQuarantined(lie);
  const std::string directory = layer->directory();
  layer.reset();
  Close();
  LayerRecord record = ReadLayerRecord(directory).value();
  ASSERT_FALSE(record.quarantine.empty());
  record.unpacked.clear();  // as by a version that does not know it
  ASSERT_TRUE(WriteLayerRecord(directory, record).ok());
  Open();
  layer = Add(lie);
  EXPECT_EQ(layer->state(), LayerState::kQuarantined);
  Add(made.layer);
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kDisputed);
  ASSERT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kVerified);
  EXPECT_EQ(layer->diff_id(), made.layer.diff_id);
}

TEST_F(ClaimsTest, ALayerBeyondTheLimitsOfUnpackingIsNotJudged) {
  options_.limits.max_ratio = 1;
  Open();
  // Chunks of zeros too large to be stored: the table does not count them.
  const Estargz made = MakeEstargz({std::string(68 << 20, '\0'), support::RandomBytes(5'000, 1)}, 17 << 20);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made.layer);
  for (int i = 0; i < 2; ++i) {
    const absl::Status status = store_->Unlazy(*layer, {}, {});
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(layer->state(), LayerState::kComplete);
    EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kClaimed);
    ASSERT_EQ(Log().size(), 1);
    EXPECT_TRUE(absl::StrContains(Log()[0], "not compared")) << Log()[0];
  }
  EXPECT_TRUE(Read(*layer, made.data_offset[1], 5'000).ok());
}

TEST_F(ClaimsTest, WhatMayNotBeParsedIsNotUnpackedEither) {
  const Estargz made = MakeEstargz({support::RandomBytes(70'000, 5)}, 64 << 10);
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made.layer);
  layer.reset();
  Close();
  options_.may_parse = [](const base::Digest&) { return absl::FailedPreconditionError("it crashes"); };
  Open();
  layer = store_->Find(made.layer.descriptor.digest);
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->Unlazy(*layer, {}, {})));
  const auto kept = store_->KeepBlob(*layer, {}, {});
  EXPECT_TRUE(kept.ok()) << kept.status();
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kClaimed);
}

TEST_F(ClaimsTest, ChunksTooLargeToHoldOnTheWayAreFetchedByThemselves) {
  Open();
  const Estargz made = MakeEstargz(
      {support::RandomBytes(9 << 20, 5), support::RandomBytes(3 << 20, 6), support::RandomBytes(5'000, 7)},
      16 << 20);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made.layer);
  const absl::Status status = store_->Unlazy(*layer, {}, {});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kVerified);
  EXPECT_EQ(TimesRequested(made.blob_offset[0]), 2);
  EXPECT_EQ(TimesRequested(made.blob_offset[1]), 1);
  EXPECT_EQ(TimesRequested(made.blob_offset[2]), 1);
}

}  // namespace
}  // namespace lazyblob::contentstore
