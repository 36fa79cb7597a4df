#include "daemon/background_fill.h"

#include "tests/contentstore/made_estargz.h"
#include "tests/contentstore/store_harness.h"

namespace lazyblob::daemon {
namespace {

using contentstore::DiffIdCheck;
using contentstore::Estargz;
using contentstore::Eventually;
using contentstore::LayerState;
using contentstore::LazyLayer;
using support::GatedBlobSource;

class BackgroundFillTest : public contentstore::StoreTest {
 protected:
  std::unique_ptr<BackgroundFill> Start() {
    BackgroundFillOptions options;
    options.store = store_.get();
    options.clock = &clock_;
    options.look_interval = absl::Milliseconds(1);
    options.mounted = [this] {
      absl::MutexLock lock(&mutex_);
      return mounted_;
    };
    return std::make_unique<BackgroundFill>(std::move(options));
  }
  void Mount(const LazyLayer& layer) {
    absl::MutexLock lock(&mutex_);
    mounted_.insert(layer.descriptor().digest);
  }
  void Unmount(const LazyLayer& layer) {
    absl::MutexLock lock(&mutex_);
    mounted_.erase(layer.descriptor().digest);
  }
  static base::Digest DigestOf(const LazyLayer& layer) { return layer.descriptor().digest; }

  const Estargz made_ = contentstore::MakeEstargz({support::RandomBytes(100'000, 1)}, 64 << 10);

 private:
  absl::Mutex mutex_;
  std::set<base::Digest> mounted_ ABSL_GUARDED_BY(mutex_);
};

TEST_F(BackgroundFillTest, FillsWhatIsMountedAndNothingElse) {
  Open();
  std::shared_ptr<LazyLayer> plain = AddIndexed(MakeTarLayer(50, 1));
  std::shared_ptr<LazyLayer> other = AddIndexed(MakeTarLayer(50, 2));
  std::shared_ptr<LazyLayer> toc = AddIndexed(made_.layer);
  Mount(*plain);
  Mount(*toc);
  const auto fill = Start();
  EXPECT_TRUE(Eventually(
      [&] { return plain->state() == LayerState::kComplete && toc->state() == LayerState::kComplete; }));
  EXPECT_TRUE(Eventually([&] { return toc->diff_id_check() == DiffIdCheck::kVerified; }));
  EXPECT_EQ(other->state(), LayerState::kLazy);
  EXPECT_EQ(other->stats().cached_bytes, 0);
  Mount(*other);
  EXPECT_TRUE(Eventually([&] { return other->state() == LayerState::kComplete; }));
  EXPECT_TRUE(Eventually([&] { return fill->StateOf(DigestOf(*other)).empty(); }));
}

TEST_F(BackgroundFillTest, WhatFailsIsTriedAgainLater) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(MakeTarLayer(50, 1));
  source_->SetDefault(GatedBlobSource::Fail(absl::UnavailableError("down")));
  Mount(*layer);
  const auto fill = Start();
  EXPECT_TRUE(Eventually([&] { return fill->StateOf(DigestOf(*layer)) == "failed"; }));
  source_->SetDefault(GatedBlobSource::Succeed());
  clock_.Advance(absl::Minutes(2));
  EXPECT_TRUE(Eventually([&] { return layer->state() == LayerState::kComplete; }));
}

TEST_F(BackgroundFillTest, ALayerWithoutRoomStaysLazy) {
  options_.max_cache_bytes = 64 << 10;
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(MakeTarLayer(50, 1));
  Mount(*layer);
  const auto fill = Start();
  EXPECT_TRUE(Eventually([&] { return fill->StateOf(DigestOf(*layer)) == "no-room"; }));
  EXPECT_EQ(layer->state(), LayerState::kLazy);
}

TEST_F(BackgroundFillTest, EndsWhatIsUnderWay) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(MakeTarLayer(50, 1));
  source_->Hold();
  Mount(*layer);
  auto fill = Start();
  ASSERT_TRUE(source_->AwaitHeld(1));
  EXPECT_EQ(fill->StateOf(DigestOf(*layer)), "running");
  fill.reset();
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  source_->Release();
}

TEST_F(BackgroundFillTest, ALayerThatIsUnmountedIsLetGoAlthoughNothingArrives) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(MakeTarLayer(50, 1));
  source_->Hold();
  Mount(*layer);
  const auto fill = Start();
  ASSERT_TRUE(source_->AwaitHeld(1));
  Unmount(*layer);
  EXPECT_TRUE(Eventually([&] { return fill->StateOf(DigestOf(*layer)).empty(); }));
  EXPECT_TRUE(Eventually([&] { return source_->held() == 0; }));
  const base::Digest digest = DigestOf(*layer);
  layer.reset();
  EXPECT_TRUE(Eventually([&] { return store_->Remove(digest).ok(); }));
  source_->Release();
}

TEST_F(BackgroundFillTest, WhatCannotBeComparedIsNotReadAgainAtOnce) {
  options_.limits.max_ratio = 1;
  Open();
  const Estargz zeros = contentstore::MakeEstargz({std::string(68 << 20, '\0')}, 17 << 20);
  std::shared_ptr<LazyLayer> layer = AddIndexed(zeros.layer);
  Mount(*layer);
  const auto fill = Start();
  EXPECT_TRUE(Eventually([&] { return fill->StateOf(DigestOf(*layer)) == "failed"; }));
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kClaimed);
}

TEST_F(BackgroundFillTest, AQuarantinedLayerIsLeftAlone) {
  Open();
  support::Layer lie = made_.layer;
  lie.diff_id = base::Digest::Of("something else");
  std::shared_ptr<LazyLayer> layer = AddIndexed(lie);
  Mount(*layer);
  const auto fill = Start();
  EXPECT_TRUE(Eventually([&] { return layer->state() == LayerState::kQuarantined; }));
  EXPECT_TRUE(Eventually([&] { return fill->StateOf(DigestOf(*layer)).empty(); }));
  // Another one is filled after it: it has looked at both.
  const size_t before = source_->TimesRequested(DigestOf(*layer), 1);
  std::shared_ptr<LazyLayer> other = AddIndexed(MakeTarLayer(50, 1));
  Mount(*other);
  EXPECT_TRUE(Eventually([&] { return other->state() == LayerState::kComplete; }));
  EXPECT_EQ(source_->TimesRequested(DigestOf(*layer), 1), before);
}

}  // namespace
}  // namespace lazyblob::daemon
