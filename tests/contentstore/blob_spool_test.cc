// Whole blobs: one pass shared by all who read, what it gives out when bytes are wrong, what it leaves
// behind, and what is kept.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

using support::GatedBlobSource;

constexpr uint64_t kStep = 32 << 10;      // containerd's
constexpr uint64_t kHeldBack = 32 << 10;  // until the digest is known

class BlobSpoolTest : public StoreTest {
 protected:
  BlobSpoolTest() {
    source_->set_piece_size(8 << 10);
    options_.blob_window_bytes = 64 << 10;
  }

  // Reads from `offset` on until the end or an error; what came before an error is in *read.
  absl::Status ReadFrom(LazyLayer& layer, uint64_t offset, std::string* read, FetchContext context = {}) {
    std::vector<uint8_t> step(kStep);
    while (true) {
      ASSIGN_OR_RETURN(const size_t got, store_->ReadBlob(layer, offset, absl::MakeSpan(step), context));
      if (got == 0) return absl::OkStatus();
      read->append(step.begin(), step.begin() + static_cast<ptrdiff_t>(got));
      offset += got;
    }
  }
  absl::StatusOr<std::string> ReadAll(LazyLayer& layer, FetchContext context = {}) {
    std::string read;
    RETURN_IF_ERROR(ReadFrom(layer, 0, &read, std::move(context)));
    return read;
  }
  absl::StatusOr<size_t> ReadByte(LazyLayer& layer, uint64_t offset, const FetchContext& context = {}) {
    uint8_t byte = 0;
    return store_->ReadBlob(layer, offset, absl::MakeSpan(&byte, 1), context);
  }
  absl::StatusOr<std::string> ReadAt(LazyLayer& layer, registry::ByteRange range) {
    std::string read;
    RETURN_IF_ERROR(store_->ReadBlobAt(layer, range,
                                       [&](absl::Span<const uint8_t> bytes) {
                                         read.append(bytes.begin(), bytes.end());
                                         return absl::OkStatus();
                                       },
                                       {}));
    return read;
  }
  std::shared_ptr<GatedBlobSource> AddSource(const support::Layer& made, const std::string& name) {
    auto source = std::make_shared<GatedBlobSource>(name, &clock_);
    source->PutBlob(made.blob);
    DescriptorHandler handler;
    handler.descriptor = made.descriptor;
    handler.sources = {source};
    EXPECT_TRUE(store_->AddHandler(handler).ok());
    return source;
  }
  bool Kept(const LazyLayer& layer) { return access(LayerFile(layer, "blob").c_str(), F_OK) == 0; }
  static FetchContext Cancellable() {
    FetchContext context;
    context.cancel = std::make_shared<base::CancelToken>();
    return context;
  }

  const support::Layer made_ = MakeTarLayer(100);  // 400 KiB
  const uint64_t size_ = made_.blob.size();
};

TEST_F(BlobSpoolTest, SmallStepsAreOneRequest) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
  ASSERT_EQ(RequestCount(), 1);
  EXPECT_EQ(Requests()[0].range.length, size_);
  EXPECT_EQ(ReadByte(*layer, size_).value(), 0);
  EXPECT_TRUE(absl::IsOutOfRange(ReadByte(*layer, size_ + 1).status()));
  EXPECT_TRUE(absl::IsOutOfRange(ReadByte(*layer, UINT64_MAX).status()));
  EXPECT_EQ(layer->state(), LayerState::kNeedsIndex);
  EXPECT_EQ(Fetched(*layer, FetchCause::kStream), size_);
  EXPECT_FALSE(Kept(*layer));
}

TEST_F(BlobSpoolTest, ManyReadersShareOneRequest) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  source_->Hold();
  std::vector<std::string> read(64);
  std::vector<std::thread> threads;
  for (std::string& mine : read) {
    threads.emplace_back([&] { mine = ReadAll(*layer).value_or("failed"); });
  }
  ASSERT_TRUE(source_->AwaitHeld(1));
  source_->Release();
  for (std::thread& thread : threads) thread.join();
  for (const std::string& mine : read) ASSERT_TRUE(Same(mine, made_.blob));
  EXPECT_EQ(RequestCount(), 1);
}

TEST_F(BlobSpoolTest, AFarReaderWaitsForTheStreamAndTheDigest) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  std::string tail;
  ASSERT_TRUE(ReadFrom(*layer, size_ - 10, &tail).ok());
  EXPECT_EQ(tail, made_.blob.substr(size_ - 10));
  EXPECT_EQ(RequestCount(), 1);
  EXPECT_EQ(ReadByte(*layer, 5).value(), 1);
  EXPECT_EQ(RequestCount(), 1);
}

TEST_F(BlobSpoolTest, TheStreamStaysAWindowAheadRestsAndGoesOnFromThere) {
  options_.blob_idle = absl::InfiniteDuration();
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  ASSERT_TRUE(ReadByte(*layer, 0).ok());
  ASSERT_TRUE(Eventually([&] { return source_->bytes_given() > options_.blob_window_bytes; }));
  EXPECT_FALSE(Requests()[0].finished);
  EXPECT_LE(source_->bytes_given(), options_.blob_window_bytes + (40 << 10));
  ASSERT_TRUE(Eventually([&] {
    clock_.Advance(absl::Seconds(1));
    return Requests()[0].finished;
  }));
  EXPECT_TRUE(absl::IsCancelled(Requests()[0].result));
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
  ASSERT_EQ(RequestCount(), 2);
  EXPECT_GE(Requests()[1].range.offset, options_.blob_window_bytes);
}

TEST_F(BlobSpoolTest, WhoOnlyLooksAtTheStartCostsLittle) {
  options_.blob_window_bytes = 32 << 20;
  Open();
  const support::Layer large = MakeTarLayer(1024);  // 4 MiB
  std::shared_ptr<LazyLayer> layer = Add(large);
  ASSERT_TRUE(ReadByte(*layer, 0).ok());
  ASSERT_TRUE(Eventually([&] {
    clock_.Advance(absl::Milliseconds(10));
    return Requests()[0].finished;
  }));
  EXPECT_LE(source_->bytes_given(), 3 << 19);
  EXPECT_TRUE(Same(ReadAll(*layer).value(), large.blob));
}

TEST_F(BlobSpoolTest, WrongBytesThatNobodyGotAreReplacedUnseen) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  const std::shared_ptr<GatedBlobSource> second = AddSource(made_, "test:second");
  source_->Enqueue(GatedBlobSource::Corrupt(size_ - 1));
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
  EXPECT_EQ(RequestCount(), 1);
  EXPECT_EQ(second->request_count(), 1);
}

TEST_F(BlobSpoolTest, WhoGotWrongBytesLearnsItBeforeTheEnd) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  const std::shared_ptr<GatedBlobSource> second = AddSource(made_, "test:second");
  source_->Enqueue(GatedBlobSource::Corrupt(1000));
  std::string read;
  EXPECT_TRUE(absl::IsDataLoss(ReadFrom(*layer, 0, &read)));
  EXPECT_LE(read.size(), size_ - kHeldBack);
  EXPECT_GT(read.size(), 1000);
  // Going on is refused too, until somebody reads from the beginning.
  EXPECT_TRUE(absl::IsDataLoss(ReadByte(*layer, size_ - 1).status()));
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
  EXPECT_EQ(RequestCount(), 1);
  EXPECT_EQ(second->request_count(), 1);
}

TEST_F(BlobSpoolTest, TheOnlySourceIsAskedTwiceThenNothingOfTheEndIsGiven) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  source_->SetDefault(GatedBlobSource::Corrupt(size_ / 2));
  std::string read;
  const absl::Status status = ReadFrom(*layer, 0, &read);
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_TRUE(absl::StrContains(status.message(), made_.descriptor.digest.ToString())) << status;
  EXPECT_LE(read.size(), size_ - kHeldBack);
  EXPECT_EQ(RequestCount(), 2);
  // Who goes on has wrong bytes already; who begins anew finds out anew.
  EXPECT_TRUE(absl::IsDataLoss(ReadByte(*layer, size_ - 1).status()));
  EXPECT_EQ(RequestCount(), 2);
  read.clear();
  EXPECT_TRUE(absl::IsDataLoss(ReadFrom(*layer, 0, &read)));
  EXPECT_EQ(RequestCount(), 4);
  source_->SetDefault(GatedBlobSource::Succeed());
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
}

TEST_F(BlobSpoolTest, AnotherSourceGoesOnWhereOneBreaksOrEndsEarly) {
  for (const auto& outcome : {GatedBlobSource::BreakAfter(100'000), GatedBlobSource::Lie(100'000)}) {
    Open();
    std::shared_ptr<LazyLayer> layer = Add(made_);
    const std::shared_ptr<GatedBlobSource> second = AddSource(made_, "test:second");
    source_->Enqueue(outcome);
    EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
    ASSERT_EQ(second->request_count(), 1);
    EXPECT_EQ(second->requests()[0].range.offset, 100'000);
    layer.reset();
    RemoveOnceUnused(made_.descriptor.digest);
    Close();
  }
}

TEST_F(BlobSpoolTest, AnErrorWakesAllAndTheNextReaderGoesOn) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  source_->Enqueue(GatedBlobSource::BreakAfter(100'000));
  EXPECT_TRUE(absl::IsUnavailable(ReadByte(*layer, size_ - 1).status()));
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
  ASSERT_EQ(RequestCount(), 2);
  EXPECT_EQ(Requests()[1].range.offset, 100'000);
  EXPECT_EQ(source_->bytes_given(), size_);
}

TEST_F(BlobSpoolTest, WithoutASourceTheProviderIsMissing) {
  Open();
  DescriptorHandler handler;
  handler.descriptor = made_.descriptor;
  std::shared_ptr<LazyLayer> layer = store_->AddHandler(handler).value();
  const absl::Status status = ReadByte(*layer, 0).status();
  ASSERT_EQ(GetMissingProviders(status).size(), 1) << status;
}

TEST_F(BlobSpoolTest, CancellingOneOfTwoEndsOnlyItsOwnWait) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  source_->Hold();
  const FetchContext first = Cancellable();
  absl::Status ended;
  std::string read;
  std::thread cancelled([&] { ended = ReadByte(*layer, 0, first).status(); });
  ASSERT_TRUE(source_->AwaitHeld(1));
  std::thread other([&] { read = ReadAll(*layer).value_or("failed"); });
  first.cancel->Cancel();
  cancelled.join();
  EXPECT_TRUE(absl::IsCancelled(ended));
  source_->Release();
  other.join();
  EXPECT_TRUE(Same(read, made_.blob));
}

TEST_F(BlobSpoolTest, TheLastOneToGiveUpEndsTheRequest) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  source_->Hold();
  const FetchContext patient = Cancellable();
  FetchContext hasty = Cancellable();
  hasty.deadline = clock_.Monotonic() + absl::Seconds(1);
  absl::Status first;
  absl::Status second;
  std::thread one([&] { first = ReadByte(*layer, 0, patient).status(); });
  std::thread two([&] { second = ReadByte(*layer, 7, hasty).status(); });
  ASSERT_TRUE(source_->AwaitHeld(1));
  clock_.Advance(absl::Seconds(2));
  two.join();
  EXPECT_TRUE(absl::IsDeadlineExceeded(second));
  patient.cancel->Cancel();
  one.join();
  EXPECT_TRUE(absl::IsCancelled(first));
  ASSERT_TRUE(Eventually([&] {
    const auto all = Requests();
    return std::all_of(all.begin(), all.end(), [](const auto& one) { return one.finished; });
  }));
  source_->Release();
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
  EXPECT_TRUE(absl::IsCancelled(ReadByte(*layer, 0, patient).status()));
}

TEST_F(BlobSpoolTest, WhoReadsToTheEndHasTheRightBytesWhateverHappens) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  // Several readers hide from the store who of them was given what: for them, wrong bytes are at the end.
  for (const int readers : {1, 8}) {
    std::mt19937 random(7);
    for (int i = 0; i < 60; ++i) {
      const uint64_t wrong = readers == 1 ? random() % size_ : size_ - 1 - random() % kHeldBack;
      const uint64_t length = random() % 20'000;
      source_->Enqueue(i % 3 == 0   ? GatedBlobSource::Corrupt(wrong)
                       : i % 3 == 1 ? GatedBlobSource::BreakAfter(length)
                                    : GatedBlobSource::Lie(length));
    }
    std::atomic<int> whole = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < readers; ++i) {
      threads.emplace_back([&, i] {
        std::mt19937 mine(static_cast<unsigned>(i));
        for (int tries = 0; tries < 100 && whole < 20; ++tries) {
          const FetchContext context = Cancellable();
          std::thread canceller([&, now = mine() % 4 == 0] {
            if (now) context.cancel->Cancel();
          });
          const absl::StatusOr<std::string> read = ReadAll(*layer, context);
          canceller.join();
          if (!read.ok()) continue;
          EXPECT_TRUE(Same(*read, made_.blob));
          ++whole;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_GT(whole, 0);
    EXPECT_EQ(source_->held(), 0);
    clock_.Advance(options_.blob_idle * 2);
  }
  layer.reset();
  RemoveOnceUnused(made_.descriptor.digest);
}

TEST_F(BlobSpoolTest, CredentialsAreThoseOfSomebodyWhoReads) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  source_->Hold();
  FetchContext refused;
  refused.credentials = std::make_shared<TestCredentials>("refused");
  FetchContext allowed;
  allowed.credentials = std::make_shared<TestCredentials>("allowed");
  std::thread one([&] { EXPECT_TRUE(ReadByte(*layer, 0, refused).ok()); });
  ASSERT_TRUE(source_->AwaitHeld(1));
  std::string read;
  std::thread two([&] { read = ReadAll(*layer, allowed).value_or("failed"); });
  // Each reader holds the layer twice; until the second one is inside, its credentials cannot be tried.
  ASSERT_TRUE(Eventually([&] { return layer.use_count() >= 8; }));
  ASSERT_TRUE(source_->ReleaseOne(GatedBlobSource::Fail(absl::UnauthenticatedError("who?"))));
  source_->Release();
  one.join();
  two.join();
  EXPECT_TRUE(Same(read, made_.blob));
  EXPECT_EQ(Requests()[0].username, "refused");
  EXPECT_EQ(Requests()[1].username, "allowed");
}

TEST_F(BlobSpoolTest, AFullDiskIsSaidAndStreamsGoOnWithoutIt) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  {
    base::ScopedFault full("contentstore.blob.write", [] { return base::ErrnoStatus(ENOSPC, "write"); });
    const absl::Status status = ReadByte(*layer, 0).status();
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "free space")) << status;
    EXPECT_TRUE(Same(ReadAt(*layer, {0, size_}).value(), made_.blob));
  }
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
}

TEST_F(BlobSpoolTest, WhatNobodyReadsIsDropped) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  ASSERT_TRUE(ReadAll(*layer).ok());
  ASSERT_TRUE(ReadAll(*layer).ok());
  EXPECT_EQ(RequestCount(), 1);
  ASSERT_TRUE(Eventually([&] {
    clock_.Advance(options_.blob_idle);
    return ReadByte(*layer, size_ - 1).ok() && RequestCount() > 1;
  }));
  EXPECT_EQ(Requests()[1].range.offset, 0);
}

TEST_F(BlobSpoolTest, ALayerIsRemovedAlthoughItsBlobWasBeingRead) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  ASSERT_TRUE(ReadByte(*layer, 0).ok());
  const std::string directory = layer->directory();
  layer.reset();
  RemoveOnceUnused(made_.descriptor.digest);
  EXPECT_NE(access(directory.c_str(), F_OK), 0);
}

TEST_F(BlobSpoolTest, TogetherTheyAreBoundedOnDiskAndOldOnesGiveWay) {
  options_.max_spool_bytes = size_ / 2;
  Open();
  const support::Layer other = MakeTarLayer(90, 2);
  std::shared_ptr<LazyLayer> first = Add(made_);
  std::shared_ptr<LazyLayer> second = Add(other);
  // Larger than all may be together: alone.
  EXPECT_TRUE(Same(ReadAll(*first).value(), made_.blob));
  ForgetRequests();
  std::string read;
  std::thread waits([&] { read = ReadAll(*second).value_or("failed"); });
  FetchContext hasty;
  hasty.deadline = clock_.Monotonic();
  EXPECT_TRUE(absl::IsDeadlineExceeded(ReadByte(*second, 0, hasty).status()));
  EXPECT_EQ(RequestCount(), 0);
  clock_.Advance(absl::Seconds(2));
  waits.join();
  EXPECT_TRUE(Same(read, other.blob));
  EXPECT_EQ(RequestCount(), 1);
}

TEST_F(BlobSpoolTest, AStreamJoinsThePassUnderWay) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  source_->Hold();
  std::thread reader([&] { EXPECT_TRUE(ReadAll(*layer).ok()); });
  ASSERT_TRUE(source_->AwaitHeld(1));
  std::string read;
  std::thread stream([&] { read = ReadAt(*layer, {100, size_ - 100}).value_or("failed"); });
  source_->Release();
  reader.join();
  stream.join();
  EXPECT_TRUE(Same(read, made_.blob.substr(100)));
  EXPECT_EQ(RequestCount(), 1);
}

TEST_F(BlobSpoolTest, AStreamAloneLeavesNothing) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  {
    base::ScopedFault none("contentstore.blob.write", [] { return base::ErrnoStatus(EIO, "write"); });
    EXPECT_TRUE(Same(ReadAt(*layer, {0, size_}).value(), made_.blob));
  }
  EXPECT_TRUE(ReadByte(*layer, 0).ok());
  EXPECT_EQ(RequestCount(), 2);
}

TEST_F(BlobSpoolTest, AKeptBlobIsReadWithoutASource) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  uint64_t told = 0;
  const std::string path = store_->KeepBlob(*layer, {}, [&](uint64_t bytes) { told = bytes; }).value();
  EXPECT_TRUE(Same(base::ReadFile(path, size_).value(), made_.blob));
  EXPECT_LE(told, size_);
  EXPECT_EQ(RequestCount(), 1);
  EXPECT_EQ(store_->KeepBlob(*layer, {}, {}).value(), path);
  // Who reads chunks, or indexes, does so from there.
  ASSERT_TRUE(store_->EnsureIndexed(*layer, false, {}, {}).ok());
  EXPECT_EQ(Read(*layer, 0, layer->data_size()).value(), DataArea(made_));
  EXPECT_TRUE(Same(ReadAt(*layer, {5, 100}).value(), made_.blob.substr(5, 100)));
  EXPECT_EQ(RequestCount(), 1);
  layer.reset();
  Close();
  Open();
  layer = Add(made_);
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
  EXPECT_EQ(store_->KeepBlob(*layer, {}, {}).value(), path);
  EXPECT_EQ(RequestCount(), 1);
  layer.reset();
  RemoveOnceUnused(made_.descriptor.digest);
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

TEST_F(BlobSpoolTest, AKeptBlobThatRottedIsFetchedAgain) {
  for (const uint64_t rotten : {uint64_t{7}, size_ - 7}) {
    Open();
    std::shared_ptr<LazyLayer> layer = Add(made_);
    const std::string path = store_->KeepBlob(*layer, {}, {}).value();
    layer.reset();
    Close();
    {
      const uint8_t wrong = static_cast<uint8_t>(made_.blob[rotten] ^ 1);
      base::UniqueFd file = base::OpenFile(path, O_RDWR).value();
      ASSERT_TRUE(base::PwriteFull(file.get(), rotten, absl::MakeConstSpan(&wrong, 1)).ok());
    }
    Open();
    layer = Add(made_);
    ForgetRequests();
    EXPECT_EQ(ReadByte(*layer, size_ - 1).value(), 1);
    EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
    EXPECT_EQ(RequestCount(), 1);
    EXPECT_FALSE(Kept(*layer));
    EXPECT_TRUE(absl::StrContains(absl::StrJoin(Log(), "\n"), "damaged"));
    layer.reset();
    RemoveOnceUnused(made_.descriptor.digest);
    Close();
  }
}

TEST_F(BlobSpoolTest, AKeptBlobOfAnotherLengthIsFetchedAgain) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  const std::string path = store_->KeepBlob(*layer, {}, {}).value();
  layer.reset();
  Close();
  ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(size_ - 1)), 0);
  Open();
  layer = Add(made_);
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
  EXPECT_EQ(RequestCount(), 2);
  EXPECT_EQ(store_->KeepBlob(*layer, {}, {}).value(), path);
  EXPECT_TRUE(Same(base::ReadFile(path, size_).value(), made_.blob));
}

TEST_F(BlobSpoolTest, KeepBlobsKeepsWhatWasReadOrStreamedWhole) {
  options_.keep_blobs = true;
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_TRUE(Eventually([&] { return Kept(*layer); }));
  EXPECT_EQ(RequestCount(), 1);

  const support::Layer other = MakeTarLayer(50, 3);
  std::shared_ptr<LazyLayer> second = Add(other);
  ASSERT_TRUE(ReadByte(*second, 0).ok());
  EXPECT_FALSE(Kept(*second));
  EXPECT_TRUE(Same(ReadAll(*second).value(), other.blob));
  EXPECT_TRUE(Eventually([&] { return Kept(*second); }));
}

TEST_F(BlobSpoolTest, OneReaderMayAskForTheBlobToBeKept) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  ASSERT_TRUE(ReadAll(*layer).ok());
  FetchContext context;
  context.keep_blob = true;
  EXPECT_TRUE(Same(ReadAll(*layer, context).value(), made_.blob));
  EXPECT_TRUE(Eventually([&] { return Kept(*layer); }));
  EXPECT_EQ(RequestCount(), 1);
}

TEST_F(BlobSpoolTest, ABlobThatCannotBeKeptIsStillRead) {
  options_.keep_blobs = true;
  Open();
  std::shared_ptr<LazyLayer> layer = Add(made_);
  base::ScopedFault full("contentstore.blob.sync", [] { return base::ErrnoStatus(ENOSPC, "sync"); });
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
  EXPECT_TRUE(absl::IsResourceExhausted(store_->KeepBlob(*layer, {}, {}).status()));
  EXPECT_TRUE(Same(ReadAll(*layer).value(), made_.blob));
  EXPECT_FALSE(Kept(*layer));
  EXPECT_EQ(RequestCount(), 1);
}

}  // namespace
}  // namespace lazyblob::contentstore
