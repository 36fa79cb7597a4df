// Layers with a table of contents: indexed by few requests, read at random, plain when the table is wrong.

#include "absl/strings/match.h"
#include "base/digest.h"
#include "tests/contentstore/made_estargz.h"
#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

using support::GatedBlobSource;

class EstargzTest : public StoreTest {
 protected:
  Estargz made_ = MakeEstargz({support::RandomBytes(100'000, 1), support::TextBytes(50'000, 2),
                               support::RandomBytes(5'000, 3), support::RandomBytes(200'000, 4)},
                              64 << 10);
};

TEST_F(EstargzTest, IsIndexedByOneRequestAndReadAtRandom) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  EXPECT_EQ(layer->not_lazy_reason(), "");
  EXPECT_EQ(RequestCount(), 1);
  const uint64_t toc_bytes = Fetched(*layer, FetchCause::kIndex);
  EXPECT_GT(toc_bytes, 0);
  EXPECT_LT(toc_bytes, made_.layer.blob.size());
  ForgetRequests();
  EXPECT_EQ(Read(*layer, made_.data_offset[2], 5'000).value(),
            made_.data.substr(made_.data_offset[2], 5'000));
  ASSERT_EQ(RequestCount(), 1);
  EXPECT_EQ(Requests()[0].range.offset, made_.blob_offset[2]);
  EXPECT_LT(Requests()[0].range.length, 20'000);
  EXPECT_TRUE(Same(Read(*layer, 0, made_.data.size()).value(), made_.data));
}

TEST_F(EstargzTest, FromItsTableAloneOrNotAtAll) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  ASSERT_TRUE(store_->EnsureIndexedFromToc(*layer, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  std::shared_ptr<LazyLayer> plain = Add(MakeTarLayer(4));
  ForgetRequests();
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->EnsureIndexedFromToc(*plain, {})));
  EXPECT_EQ(plain->state(), LayerState::kNeedsIndex);
  EXPECT_EQ(plain->not_lazy_reason(), "no-index");
  EXPECT_EQ(RequestCount(), 0);
  ASSERT_TRUE(store_->EnsureIndexed(*plain, false, {}, {}).ok());
  EXPECT_TRUE(store_->EnsureIndexedFromToc(*plain, {}).ok());  // our own index is as good
}

TEST_F(EstargzTest, ATableInAnotherImageIsAsGood) {
  Open();
  made_ = MakeEstargz({support::RandomBytes(100'000, 1), support::TextBytes(50'000, 2)}, 64 << 10, true);
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  DescriptorHandler handler;
  handler.descriptor = made_.layer.descriptor;
  int calls = 0;
  handler.external_toc = [&](const base::Digest& digest, const registry::CallContext& context) {
    ++calls;
    EXPECT_EQ(digest, made_.layer.descriptor.digest);
    EXPECT_NE(context.cancel, nullptr);
    if (context.bytes_received != nullptr) *context.bytes_received += made_.external_toc.size();
    return absl::StatusOr<std::string>(made_.external_toc);
  };
  ASSERT_TRUE(store_->AddHandler(handler).ok());
  handler.external_toc = nullptr;
  ASSERT_TRUE(store_->AddHandler(handler).ok());  // one that knows less takes nothing away
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  EXPECT_EQ(layer->not_lazy_reason(), "");
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(RequestCount(), 1);
  EXPECT_GT(Fetched(*layer, FetchCause::kIndex), made_.external_toc.size());
  EXPECT_EQ(Read(*layer, made_.data_offset[1], 5'000).value(),
            made_.data.substr(made_.data_offset[1], 5'000));
}

TEST_F(EstargzTest, ATableInAnotherImageIsAskedForWithTheCredentialsOfTheLiving) {
  Open();
  made_ = MakeEstargz({support::TextBytes(5'000, 2)}, 64 << 10, true);
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  auto mine = std::make_shared<TestCredentials>("me");
  DescriptorHandler handler;
  handler.descriptor = made_.layer.descriptor;
  handler.external_toc = [&](const base::Digest&, const registry::CallContext& context) {
    if (context.credentials != mine) return absl::StatusOr<std::string>(absl::UnauthenticatedError("who?"));
    return absl::StatusOr<std::string>(made_.external_toc);
  };
  ASSERT_TRUE(store_->AddHandler(handler).ok());
  FetchContext context;
  context.credentials = mine;
  ASSERT_TRUE(store_->EnsureIndexed(*layer, false, context, {}).ok());
  EXPECT_EQ(layer->not_lazy_reason(), "");
}

TEST_F(EstargzTest, ATableInAnotherImageThatIsNotThereMakesTheLayerPlain) {
  Open();
  made_ = MakeEstargz({support::TextBytes(5'000, 2)}, 64 << 10, true);
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->EnsureIndexedFromToc(*layer, {})));
  DescriptorHandler handler;
  handler.descriptor = made_.layer.descriptor;
  handler.external_toc = [](const base::Digest&, const registry::CallContext&) {
    return absl::StatusOr<std::string>(absl::NotFoundError("TOC image x:1-esgztoc: no such tag"));
  };
  ASSERT_TRUE(store_->AddHandler(handler).ok());
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(layer->not_lazy_reason(), "toc-missing");
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_TRUE(absl::StrContains(Log().back(), "x:1-esgztoc"));
}

TEST_F(EstargzTest, ATableOfNoUseIsReadOnceBeforeTheLayerIsStreamed) {
  Open();
  made_ = MakeEstargz({support::TextBytes(5'000, 2)}, 64 << 10, true);
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  int asked = 0;
  DescriptorHandler handler;
  handler.descriptor = made_.layer.descriptor;
  handler.external_toc = [&](const base::Digest&, const registry::CallContext&) {
    ++asked;
    return absl::StatusOr<std::string>(absl::NotFoundError("no such tag"));
  };
  ASSERT_TRUE(store_->AddHandler(handler).ok());
  ASSERT_TRUE(absl::IsFailedPrecondition(store_->EnsureIndexedFromToc(*layer, {})));
  ForgetRequests();
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(RequestCount(), 1);
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(Log().size(), 1);
  EXPECT_EQ(layer->not_lazy_reason(), "toc-missing");
  EXPECT_EQ(layer->state(), LayerState::kComplete);
}

TEST_F(EstargzTest, ATableOfNoUseIsReadAgainForAHandlerThatMayKnowBetter) {
  Open();
  made_ = MakeEstargz({support::TextBytes(5'000, 2)}, 64 << 10, true);
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  ASSERT_TRUE(absl::IsFailedPrecondition(store_->EnsureIndexedFromToc(*layer, {})));
  DescriptorHandler handler;
  handler.descriptor = made_.layer.descriptor;
  handler.external_toc = [&](const base::Digest&, const registry::CallContext&) {
    return absl::StatusOr<std::string>(made_.external_toc);
  };
  ASSERT_TRUE(store_->AddHandler(handler).ok());
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kLazy);
}

TEST_F(EstargzTest, UnlazyMakesItComplete) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  ASSERT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  source_->Hold();
  EXPECT_TRUE(Same(Read(*layer, 0, made_.data.size()).value(), made_.data));
}

TEST_F(EstargzTest, ATableThatIsNotTheOneNamedIsRefused) {
  Open();
  made_.layer.descriptor.annotations["containerd.io/snapshot/stargz/toc.digest"] =
      base::Digest::Of("another").ToString();
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  const absl::Status status = store_->EnsureIndexed(*layer, true, {}, {});
  EXPECT_FALSE(status.ok());
  EXPECT_TRUE(absl::StrContains(status.message(), made_.layer.descriptor.digest.ToString())) << status;
  EXPECT_EQ(layer->state(), LayerState::kNeedsIndex);
}

TEST_F(EstargzTest, AnIndexIsOnlyForImagesThatNameItsTable) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made_.layer);
  ASSERT_EQ(layer->state(), LayerState::kLazy);
  DescriptorHandler other;
  other.descriptor = made_.layer.descriptor;
  other.descriptor.annotations["containerd.io/snapshot/stargz/toc.digest"] =
      base::Digest::Of("another").ToString();
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->AddHandler(other).status()));
  other.descriptor = made_.layer.descriptor;
  EXPECT_TRUE(store_->AddHandler(other).ok());
}

TEST_F(EstargzTest, AForgedTableDoesNotStandInTheWay) {
  Open();
  support::Layer forged = made_.layer;
  forged.descriptor.annotations["containerd.io/snapshot/stargz/toc.digest"] =
      base::Digest::Of("another").ToString();
  std::shared_ptr<LazyLayer> layer = Add(forged);
  ASSERT_FALSE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  layer = AddIndexed(made_.layer);
  EXPECT_EQ(layer->state(), LayerState::kLazy);
}

TEST_F(EstargzTest, ALayerThatIsReadAsPlainSaysSoAfterARestart) {
  Open();
  made_.layer.descriptor.annotations["io.github.containers.zstd-chunked.manifest-checksum"] =
      base::Digest::Of("another").ToString();
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  ASSERT_EQ(Log().size(), 1);
  EXPECT_TRUE(absl::StrContains(Log()[0], made_.layer.descriptor.digest.ToString()));
  layer.reset();
  Close();
  Open();
  EXPECT_EQ(store_->Find(made_.layer.descriptor.digest)->not_lazy_reason(), "toc-conflict");
}

TEST_F(EstargzTest, TablesThatContradictEachOtherMakeTheLayerPlain) {
  Open();
  made_.layer.descriptor.annotations["io.github.containers.zstd-chunked.manifest-checksum"] =
      base::Digest::Of("another").ToString();
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(layer->not_lazy_reason(), "toc-conflict");
  EXPECT_EQ(layer->state(), LayerState::kComplete);
}

TEST_F(EstargzTest, ATableThatWasDamagedOnTheWayIsReadAgain) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  source_->Enqueue(GatedBlobSource::Corrupt(made_.layer.blob.size() - 300));
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  EXPECT_EQ(layer->not_lazy_reason(), "");
  EXPECT_EQ(RequestCount(), 2);
}

TEST_F(EstargzTest, ASourceThatFailsDoesNotMakeTheLayerPlain) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_.layer);
  source_->SetDefault(GatedBlobSource::Fail(absl::UnavailableError("down")));
  EXPECT_TRUE(absl::IsUnavailable(store_->EnsureIndexed(*layer, true, {}, {})));
  EXPECT_EQ(layer->state(), LayerState::kNeedsIndex);
  source_->SetDefault(GatedBlobSource::Succeed());
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kLazy);
}

TEST_F(EstargzTest, SmallFilesBesideEachOtherComeWithOneRequest) {
  options_.min_range_bytes = 256 << 10;
  options_.max_range_bytes = 1 << 20;
  Open();
  std::vector<std::string> files;
  for (uint64_t i = 0; i < 100; ++i) files.push_back(support::RandomBytes(700, i));
  made_ = MakeEstargz(files, 64 << 10);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made_.layer);
  for (size_t i = 0; i < files.size(); ++i) {
    EXPECT_EQ(Read(*layer, made_.data_offset[i], 700).value(), files[i]);
  }
  EXPECT_EQ(RequestCount(), 1);
}

TEST_F(EstargzTest, NoFlippedByteIsEverVisible) {
  Open();
  made_ = MakeEstargz({support::TextBytes(3'000, 1)}, 64 << 10);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made_.layer);
  uint64_t refused = 0;
  for (uint64_t byte = made_.blob_offset[0]; layer->stats().cached_bytes == 0; ++byte) {
    ASSERT_LT(byte, made_.layer.blob.size());
    source_->SetDefault(GatedBlobSource::Corrupt(byte));
    const absl::StatusOr<std::string> read = Read(*layer, 0, 3'000);
    if (!read.ok()) {
      ++refused;
    } else {
      ASSERT_EQ(*read, made_.data.substr(0, 3'000)) << byte;
      break;  // a byte that does not matter, or one beyond the file's
    }
  }
  EXPECT_GT(refused, 0);
  source_->SetDefault(GatedBlobSource::Succeed());
  EXPECT_EQ(Read(*layer, 0, 3'000).value(), made_.data.substr(0, 3'000));
}

}  // namespace
}  // namespace lazyblob::contentstore
