// What a layer with a table of contents unpacks to is compared with what images say, by whatever reads all of
// it; and the reading of it in the background.

#include <functional>
#include <memory>
#include <thread>

#include "absl/strings/match.h"
#include "tests/contentstore/made_estargz.h"
#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

using support::GatedBlobSource;

const base::Digest kWrong = base::Digest::Of("what another layer unpacks to");

class DiffIdTest : public StoreTest {
 protected:
  // Says another diffID of the layer than before, or the right one again.
  absl::StatusOr<std::shared_ptr<LazyLayer>> Claim(const base::Digest& diff_id) {
    DescriptorHandler handler;
    handler.descriptor = made_.layer.descriptor;
    handler.diff_id = diff_id;
    handler.sources = {source_};
    return store_->AddHandler(handler);
  }
  std::shared_ptr<LazyLayer> AddLie() {
    support::Layer lie = made_.layer;
    lie.diff_id = kWrong;
    return AddIndexed(lie);
  }
  absl::Status ReadBlobToItsEnd(LazyLayer& layer) {
    std::string bytes(made_.layer.blob.size(), '\0');
    for (uint64_t at = 0; at < bytes.size();) {
      absl::Span<uint8_t> rest(reinterpret_cast<uint8_t*>(bytes.data()) + at, bytes.size() - at);
      const absl::StatusOr<size_t> got =
          store_->ReadBlob(layer, at, rest.first(std::min<size_t>(rest.size(), 9000)), {});
      if (!got.ok()) return got.status();
      at += *got;
    }
    return Same(bytes, made_.layer.blob) ? absl::OkStatus() : absl::DataLossError("other bytes");
  }
  absl::Status StreamBlob(LazyLayer& layer) {
    return store_->ReadBlobAt(layer, {0, made_.layer.blob.size()},
                              [](absl::Span<const uint8_t>) { return absl::OkStatus(); }, {});
  }
  static FetchContext Background(std::shared_ptr<base::CancelToken> cancel = nullptr) {
    FetchContext context;
    context.cause = FetchCause::kBackground;
    context.cancel = std::move(cancel);
    return context;
  }

  Estargz made_ = MakeEstargz({support::RandomBytes(100'000, 1), support::TextBytes(50'000, 2),
                               support::RandomBytes(5'000, 3), support::RandomBytes(200'000, 4)},
                              64 << 10);
};

TEST_F(DiffIdTest, UnlazyReadsTheBlobOnceAndComparesWhatItUnpacksTo) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made_.layer);
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kClaimed);
  ForgetRequests();
  uint64_t told = 0;
  ASSERT_TRUE(store_->Unlazy(*layer, {}, [&](uint64_t received) { told = received; }).ok());
  EXPECT_EQ(RequestCount(), 1);
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kVerified);
  EXPECT_TRUE(Same(Read(*layer, 0, made_.data.size()).value_or("unreadable"), made_.data));
  EXPECT_TRUE(Log().empty());
  layer.reset();
  Close();
  Open();
  layer = store_->Find(made_.layer.descriptor.digest);
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kVerified);
  ForgetRequests();
  EXPECT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
  EXPECT_EQ(RequestCount(), 0);
}

TEST_F(DiffIdTest, WhateverReadsTheWholeBlobComparesIt) {
  const std::vector<std::pair<std::string, std::function<absl::Status(LazyLayer&)>>> readers = {
      {"ReadBlob", [&](LazyLayer& layer) { return ReadBlobToItsEnd(layer); }},
      {"ReadBlobAt", [&](LazyLayer& layer) { return StreamBlob(layer); }},
      {"KeepBlob", [&](LazyLayer& layer) { return store_->KeepBlob(layer, {}, {}).status(); }},
      {"Unlazy", [&](LazyLayer& layer) { return store_->Unlazy(layer, {}, {}); }},
      {"background", [&](LazyLayer& layer) { return store_->Unlazy(layer, Background(), {}); }},
  };
  uint64_t seed = 10;
  Open();
  for (const bool right : {true, false}) {
    for (const auto& [name, read] : readers) {
      SCOPED_TRACE(name);
      made_ = MakeEstargz({support::RandomBytes(90'000, ++seed), support::TextBytes(50'000, seed)}, 64 << 10);
      std::shared_ptr<LazyLayer> layer = right ? AddIndexed(made_.layer) : AddLie();
      const size_t lines = Log().size();
      ForgetRequests();
      const absl::Status status = read(*layer);
      EXPECT_EQ(TimesRequested(1), 1);
      if (right) {
        EXPECT_TRUE(status.ok()) << status;
        EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kVerified);
        EXPECT_EQ(Log().size(), lines);
        continue;
      }
      EXPECT_TRUE(status.ok() || absl::IsDataLoss(status)) << status;
      EXPECT_EQ(layer->state(), LayerState::kQuarantined);
      ASSERT_EQ(Log().size(), lines + 1);
      EXPECT_TRUE(absl::StrContains(Log().back(), made_.layer.descriptor.digest.ToString())) << Log().back();
      EXPECT_TRUE(absl::StrContains(Log().back(), made_.layer.diff_id.ToString())) << Log().back();
      EXPECT_TRUE(absl::StrContains(Log().back(), kWrong.ToString())) << Log().back();
    }
  }
}

TEST_F(DiffIdTest, ALayerOfAWrongDiffIdIsNotServedAnyMore) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddLie();
  ASSERT_TRUE(Read(*layer, 0, 5'000).ok());
  const absl::Status status = store_->Unlazy(*layer, {}, {});
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  for (const bool restarted : {false, true}) {
    EXPECT_EQ(layer->state(), LayerState::kQuarantined) << restarted;
    EXPECT_EQ(layer->not_lazy_reason(), "quarantined");
    EXPECT_FALSE(layer->TryAcquire(0, 5'000).has_value());
    const absl::Status read = Read(*layer, 0, 5'000).status();
    EXPECT_TRUE(absl::IsDataLoss(read)) << read;
    EXPECT_TRUE(absl::StrContains(read.message(), kWrong.ToString())) << read;
    EXPECT_TRUE(absl::IsDataLoss(store_->EnsureIndexed(*layer, true, {}, {})));
    layer.reset();
    Close();
    Open();
    layer = store_->Find(made_.layer.descriptor.digest);
  }
}

TEST_F(DiffIdTest, OfImagesThatDisagreeOnlyTheWrongOneIsRefused) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddLie();
  ASSERT_TRUE(Claim(made_.layer.diff_id).ok());
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kDisputed);
  layer.reset();
  Close();
  Open();
  layer = store_->Find(made_.layer.descriptor.digest);
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kDisputed);
  ASSERT_TRUE(Claim(made_.layer.diff_id).ok());
  ASSERT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kVerified);
  EXPECT_EQ(layer->diff_id(), made_.layer.diff_id);
  ASSERT_EQ(Log().size(), 1);
  EXPECT_TRUE(absl::StrContains(Log()[0], kWrong.ToString()));
  EXPECT_TRUE(absl::IsFailedPrecondition(Claim(kWrong).status()));
  EXPECT_TRUE(Claim(made_.layer.diff_id).ok());
  EXPECT_TRUE(Same(Read(*layer, 0, made_.data.size()).value_or("unreadable"), made_.data));
}

TEST_F(DiffIdTest, AnImageThatSaysTheRightDiffIdEndsTheQuarantine) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddLie();
  ASSERT_TRUE(absl::IsDataLoss(store_->Unlazy(*layer, {}, {})));
  EXPECT_TRUE(absl::IsFailedPrecondition(Claim(kWrong).status()));
  EXPECT_EQ(layer->state(), LayerState::kQuarantined);
  ASSERT_TRUE(Claim(made_.layer.diff_id).ok());
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kVerified);
  EXPECT_TRUE(Same(Read(*layer, 0, made_.data.size()).value_or("unreadable"), made_.data));
}

TEST_F(DiffIdTest, WrongBytesOfTheRegistryAreNotTheImagesFault) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made_.layer);
  const uint64_t header = made_.blob_offset[1] - 5;  // of no chunk
  source_->SetDefault(GatedBlobSource::Corrupt(header));
  const absl::Status status = store_->Unlazy(*layer, {}, {});
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kClaimed);
  source_->SetDefault(GatedBlobSource::Succeed());
  source_->Enqueue(GatedBlobSource::Corrupt(header));
  EXPECT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kVerified);
}

TEST_F(DiffIdTest, TheBackgroundWaitsForReaders) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made_.layer);
  std::shared_ptr<LazyLayer> other = AddIndexed(MakeTarLayer(4, 7));
  ForgetRequests();
  source_->Hold();
  std::shared_ptr<PendingRead> reader = StartRead(*other, 0, kChunk);
  ASSERT_TRUE(source_->AwaitHeld(1));
  absl::Status status = absl::UnknownError("not yet");
  std::thread fill([&] { status = store_->Unlazy(*layer, Background(), {}); });
  ASSERT_TRUE(source_->ReleaseOne());
  ASSERT_TRUE(reader->Await());
  ASSERT_TRUE(source_->AwaitHeld(1));  // its first request
  EXPECT_EQ(RequestCount(), 2);
  EXPECT_EQ(Requests()[0].digest, other->descriptor().digest);
  source_->Release();
  fill.join();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_EQ(Fetched(*layer, FetchCause::kBackground), made_.layer.blob.size());
}

TEST_F(DiffIdTest, TheBackgroundEvictsNothing) {
  options_.max_cache_bytes = 384 << 10;
  Open();
  std::shared_ptr<LazyLayer> other = AddIndexed(MakeTarLayer(64, 7));
  ASSERT_TRUE(Read(*other, 0, other->data_size()).ok());
  const uint64_t cached = other->stats().cached_bytes;
  std::shared_ptr<LazyLayer> layer = AddIndexed(made_.layer);
  ForgetRequests();
  const absl::Status status = store_->Unlazy(*layer, Background(), {});
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(RequestCount(), 0);
  EXPECT_EQ(other->stats().cached_bytes, cached);
  EXPECT_EQ(layer->state(), LayerState::kLazy);
}

TEST_F(DiffIdTest, WhatTheBackgroundAskedForWhenThereWasRoomEvictsNothing) {
  options_.max_cache_bytes = 256 * kChunk;
  Open();
  const auto other = std::make_shared<GatedBlobSource>("test:other", &clock_);
  std::shared_ptr<LazyLayer> wanted = AddIndexedFrom(other, MakeTarLayer(230, 8));
  std::shared_ptr<LazyLayer> filled = AddIndexed(MakeTarLayer(200, 7));
  source_->Hold();
  absl::Status status;
  std::thread fill([&] { status = store_->Unlazy(*filled, Background(), {}); });
  EXPECT_TRUE(source_->AwaitHeld(1));
  EXPECT_TRUE(Read(*wanted, 0, wanted->data_size()).ok());
  const uint64_t cached = wanted->stats().cached_bytes;
  source_->Release();
  fill.join();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(wanted->stats().cached_bytes, cached);
  EXPECT_LT(filled->stats().cached_bytes, 26 * kChunk);
}

TEST_F(DiffIdTest, WhatTheBackgroundHasBroughtGivesWayWhileItWaits) {
  options_.max_cache_bytes = 256 * kChunk;
  Open();
  const auto busy = std::make_shared<GatedBlobSource>("test:busy", &clock_);
  std::shared_ptr<LazyLayer> hanging = AddIndexedFrom(busy, MakeTarLayer(4, 9));
  std::shared_ptr<LazyLayer> filled = AddIndexed(MakeTarLayer(200, 7));
  std::shared_ptr<LazyLayer> wanted = AddIndexed(MakeTarLayer(230, 8));
  busy->Hold();
  source_->Hold();
  absl::Status status;
  std::thread fill([&] { status = store_->Unlazy(*filled, Background(), {}); });
  EXPECT_TRUE(source_->AwaitHeld(1));
  std::shared_ptr<PendingRead> reader = StartRead(*hanging, 0, kChunk);
  EXPECT_TRUE(busy->AwaitHeld(1));
  source_->Release();
  EXPECT_TRUE(Eventually([&] { return filled->stats().cached_bytes >= 60 * kChunk; }));
  const absl::StatusOr<std::string> read = Read(*wanted, 0, wanted->data_size());
  EXPECT_TRUE(read.ok()) << read.status();
  EXPECT_GT(wanted->stats().cached_bytes, 229 * kChunk);
  busy->Release();
  EXPECT_TRUE(reader->Await());
  fill.join();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_GT(wanted->stats().cached_bytes, 229 * kChunk);
}

TEST_F(DiffIdTest, WhoWantsTheLayerNowDoesNotWaitForTheBackground) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made_.layer);
  source_->Hold();
  absl::Status status;
  std::thread fill([&] { status = store_->Unlazy(*layer, Background(), {}); });
  ASSERT_TRUE(source_->AwaitHeld(1));
  absl::Status wanted;
  std::thread now([&] { wanted = store_->Unlazy(*layer, {}, {}); });
  fill.join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  source_->Release();
  now.join();
  EXPECT_TRUE(wanted.ok()) << wanted;
}

TEST_F(DiffIdTest, TheBackgroundFillsPlainLayersToo) {
  Open();
  const support::Layer made = MakeTarLayer(200, 7);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  EXPECT_EQ(layer->diff_id_check(), DiffIdCheck::kVerified);
  ASSERT_TRUE(Read(*layer, 0, kChunk).ok());
  ForgetRequests();
  ASSERT_TRUE(store_->Unlazy(*layer, Background(), {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_EQ(TimesRequested(0), 0);  // it was there
  auto cancel = std::make_shared<base::CancelToken>();
  cancel->Cancel();
  std::shared_ptr<LazyLayer> next = AddIndexed(MakeTarLayer(200, 8));
  EXPECT_TRUE(absl::IsCancelled(store_->Unlazy(*next, Background(cancel), {})));
}

TEST_F(DiffIdTest, ABlobThatCannotBeUnpackedIsOfNoImage) {
  Open();
  const Estargz good = made_;
  // Bytes between two chunks that are no gzip: the table does not need them.
  Estargz broken = MakeEstargz({support::RandomBytes(70'000, 5)}, 64 << 10);
  made_ = broken;
  support::Layer layer = broken.layer;
  layer.blob[broken.blob_offset[0] - 30] = static_cast<char>(layer.blob[broken.blob_offset[0] - 30] ^ 0x55);
  layer.descriptor.digest = base::Digest::Of(layer.blob);
  std::shared_ptr<LazyLayer> known = AddIndexed(layer);
  ASSERT_TRUE(Read(*known, 0, 5'000).ok());
  EXPECT_TRUE(absl::IsDataLoss(store_->Unlazy(*known, {}, {})));
  EXPECT_EQ(known->state(), LayerState::kQuarantined);
}

}  // namespace
}  // namespace lazyblob::contentstore
