// What readers of missing chunks are promised: one request per chunk, right bytes or an error, each wait its
// own.

#include <thread>

#include "absl/strings/match.h"
#include "base/fault.h"
#include "base/status.h"
#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

using support::GatedBlobSource;

class FetchTest : public StoreTest {
 protected:
  // A lazy tar layer of `chunks` chunks; the source holds what is asked from now on.
  void Start(uint64_t chunks = 64) {
    Open();
    made_ = MakeTarLayer(chunks);
    data_ = DataArea(made_);
    layer_ = AddIndexed(made_);
    source_->Hold();
  }
  std::string Bytes(uint64_t chunk, uint64_t chunks = 1) const {
    return data_.substr(chunk * kChunk, chunks * kChunk);
  }
  std::shared_ptr<PendingRead> StartChunk(uint64_t chunk, FetchContext context = {}) {
    return StartRead(*layer_, chunk * kChunk, kChunk, std::move(context));
  }
  static FetchContext Because(FetchCause cause) {
    FetchContext context;
    context.cause = cause;
    return context;
  }
  static FetchContext CancelledBy(const std::shared_ptr<base::CancelToken>& token) {
    FetchContext context;
    context.cancel = token;
    return context;
  }

  support::Layer made_;
  std::string data_;
  std::shared_ptr<LazyLayer> layer_;
};

TEST_F(FetchTest, ManyReadersOfOneColdRangeCauseOneRequestPerChunk) {
  Start();
  constexpr int kReaders = 64;
  std::vector<std::shared_ptr<PendingRead>> reads(kReaders);
  std::vector<std::thread> threads;
  for (int i = 0; i < kReaders; ++i) {
    threads.emplace_back([&, i] { reads[i] = StartRead(*layer_, 8 * kChunk + i, 8 * kChunk); });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE(source_->AwaitHeld(1));
  source_->Release();
  for (int i = 0; i < kReaders; ++i) {
    ASSERT_TRUE(reads[i]->Await());
    ASSERT_TRUE(reads[i]->status().ok()) << reads[i]->status();
    EXPECT_EQ(reads[i]->bytes(), data_.substr(8 * kChunk + i, 8 * kChunk));
  }
  for (uint64_t chunk = 8; chunk < 17; ++chunk) EXPECT_EQ(TimesRequested(chunk * kChunk), 1) << chunk;
  EXPECT_EQ(layer_->stats().served_bytes, kReaders * 8 * kChunk);
}

TEST_F(FetchTest, AHitNeedsNoSourceAndNoWait) {
  Start();
  EXPECT_FALSE(layer_->TryAcquire(0, kChunk).has_value());
  source_->Release();
  ASSERT_TRUE(Read(*layer_, 0, kChunk).ok());
  source_->Hold();
  ForgetRequests();
  std::optional<PinnedRange> hit = layer_->TryAcquire(100, 200);
  ASSERT_TRUE(hit.has_value());
  std::string bytes(200, '\0');
  ASSERT_TRUE(hit->CopyTo({reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}).ok());
  EXPECT_EQ(bytes, data_.substr(100, 200));
  EXPECT_EQ(hit->offset(), 100);
  EXPECT_FALSE(hit->in_memory());
  // Acquire of what is there calls back on this thread, with everything else stuck.
  EXPECT_TRUE(StartChunk(0)->ended());
  EXPECT_EQ(RequestCount(), 0);
}

TEST_F(FetchTest, RangesOutsideTheDataAreaAreRefused) {
  Start();
  EXPECT_TRUE(absl::IsInvalidArgument(Read(*layer_, layer_->data_size(), 1).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Read(*layer_, UINT64_MAX, 2).status()));
  EXPECT_FALSE(layer_->TryAcquire(layer_->data_size() - 1, 2).has_value());
  EXPECT_TRUE(Read(*layer_, layer_->data_size(), 0).ok());
}

TEST_F(FetchTest, CancellingOneWaiterLeavesTheOthers) {
  Start();
  auto token = std::make_shared<base::CancelToken>();
  auto first = StartChunk(3, CancelledBy(token));
  auto second = StartChunk(3);
  ASSERT_TRUE(source_->AwaitHeld(1));
  token->Cancel();
  ASSERT_TRUE(first->Await());
  EXPECT_TRUE(absl::IsCancelled(first->status())) << first->status();
  EXPECT_FALSE(second->ended());
  source_->Release();
  ASSERT_TRUE(second->Await());
  EXPECT_EQ(second->bytes(), Bytes(3));
  EXPECT_EQ(RequestCount(), 1);
}

TEST_F(FetchTest, TheLastWaiterToLeaveStopsTheFetch) {
  Start();
  auto token = std::make_shared<base::CancelToken>();
  auto other = std::make_shared<base::CancelToken>();
  auto first = StartChunk(3, CancelledBy(token));
  auto second = StartChunk(3, CancelledBy(other));
  ASSERT_TRUE(source_->AwaitHeld(1));
  token->Cancel();
  other->Cancel();
  ASSERT_TRUE(first->Await());
  ASSERT_TRUE(second->Await());
  ASSERT_TRUE(Eventually([&] { return Requests()[0].finished; }));
  EXPECT_TRUE(absl::IsCancelled(Requests()[0].result)) << Requests()[0].result;
  // Nothing of it stays: the next reader gets its bytes.
  source_->Release();
  EXPECT_EQ(Read(*layer_, 3 * kChunk, kChunk).value(), Bytes(3));
}

TEST_F(FetchTest, AReadThatIsCancelledBeforeItStartsIsNeverAskedFor) {
  Start();
  auto token = std::make_shared<base::CancelToken>();
  token->Cancel();
  auto read = StartChunk(3, CancelledBy(token));
  ASSERT_TRUE(read->Await());
  EXPECT_TRUE(absl::IsCancelled(read->status()));
  EXPECT_EQ(RequestCount(), 0);
}

TEST_F(FetchTest, AnErrorWakesAllWaitersAndIsNotRemembered) {
  Start();
  std::vector<std::shared_ptr<PendingRead>> reads;
  for (int i = 0; i < 5; ++i) reads.push_back(StartChunk(7));
  ASSERT_TRUE(source_->ReleaseOne(GatedBlobSource::Fail(absl::UnavailableError("the registry is away"))));
  for (const auto& read : reads) {
    ASSERT_TRUE(read->Await());
    EXPECT_TRUE(absl::IsUnavailable(read->status())) << read->status();
    EXPECT_TRUE(absl::StrContains(read->status().message(), "the registry is away"));
  }
  EXPECT_TRUE(absl::StrContains(layer_->stats().last_error, "the registry is away"));
  source_->Release();
  EXPECT_EQ(Read(*layer_, 7 * kChunk, kChunk).value(), Bytes(7));
}

TEST_F(FetchTest, ChunksBeforeABreakAreServedAndOnlyTheRestIsLost) {
  Start();
  auto whole = StartRead(*layer_, 0, 4 * kChunk);
  ASSERT_TRUE(source_->AwaitHeld(1));
  auto first = StartChunk(0);
  auto last = StartChunk(3);
  ASSERT_TRUE(source_->ReleaseOne(GatedBlobSource::BreakAfter(2 * kChunk + 17)));
  for (const auto& read : {whole, first, last}) ASSERT_TRUE(read->Await());
  EXPECT_EQ(first->bytes(), Bytes(0));
  EXPECT_FALSE(last->status().ok());
  EXPECT_FALSE(whole->status().ok());
  EXPECT_TRUE(layer_->TryAcquire(kChunk, kChunk).has_value());
  EXPECT_FALSE(layer_->TryAcquire(2 * kChunk, kChunk).has_value());
}

TEST_F(FetchTest, TheFirstWaiterIsAnsweredBeforeTheRangeIsWhole) {
  Start(64);
  support::Gate gate;
  auto whole = StartRead(*layer_, 0, 32 * kChunk);
  ASSERT_TRUE(source_->AwaitHeld(1));
  auto first = StartChunk(0);
  // The disk takes the first chunk, and stops at the next.
  std::atomic<int> writes{0};
  base::ScopedFault fault("contentstore.chunk.write", [&]() -> absl::Status {
    if (writes.fetch_add(1) == 1) gate.Pass();
    return absl::OkStatus();
  });
  source_->Release();
  ASSERT_TRUE(gate.AwaitWaiting(1));
  ASSERT_TRUE(first->Await());
  EXPECT_EQ(first->bytes(), Bytes(0));
  EXPECT_FALSE(whole->ended());
  gate.Open();
  ASSERT_TRUE(whole->Await());
  EXPECT_EQ(whole->bytes(), Bytes(0, 32));
}

TEST_F(FetchTest, AfterADeadlineTheRangeFailsAtOnceForSomeSeconds) {
  Start();
  FetchContext context;
  context.deadline = clock_.Monotonic() + absl::Seconds(10);
  auto read = StartChunk(5, context);
  auto patient = StartChunk(9);
  ASSERT_TRUE(source_->AwaitHeld(1));
  clock_.Advance(absl::Seconds(11));
  ASSERT_TRUE(read->Await());
  EXPECT_TRUE(absl::IsDeadlineExceeded(read->status())) << read->status();
  EXPECT_FALSE(patient->ended());
  // The kernel tries again: it hears at once, and nothing is asked for.
  const size_t requests = RequestCount();
  context.deadline = clock_.Monotonic() + absl::Seconds(10);
  auto again = StartRead(*layer_, 5 * kChunk + 1, 10, context);
  EXPECT_TRUE(again->ended());
  EXPECT_TRUE(absl::IsDeadlineExceeded(again->status()));
  EXPECT_EQ(RequestCount(), requests);
  // Other ranges do not suffer, and neither does this one later.
  source_->Release();
  EXPECT_EQ(Read(*layer_, 6 * kChunk, kChunk).value(), Bytes(6));
  clock_.Advance(absl::Seconds(4));
  EXPECT_EQ(Read(*layer_, 5 * kChunk, kChunk).value(), Bytes(5));
}

TEST_F(FetchTest, AWaiterWithMoreTimeOutlivesTheDeadlineOfTheRequest) {
  Start();
  FetchContext hasty;
  hasty.deadline = clock_.Monotonic() + absl::Seconds(1);
  auto first = StartChunk(5, hasty);
  ASSERT_TRUE(source_->AwaitHeld(1));
  FetchContext patient;
  patient.deadline = clock_.Monotonic() + absl::Seconds(100);
  auto second = StartChunk(5, patient);
  clock_.Advance(absl::Seconds(2));
  ASSERT_TRUE(first->Await());
  EXPECT_TRUE(absl::IsDeadlineExceeded(first->status()));
  source_->Release();
  ASSERT_TRUE(second->Await());
  EXPECT_EQ(second->bytes(), Bytes(5));
}

TEST_F(FetchTest, FailOutstandingEndsTheReadsOfThatLayerOnly) {
  Start();
  const support::Layer other_made = MakeTarLayer(8, 2);
  source_->Release();
  std::shared_ptr<LazyLayer> other = AddIndexed(other_made);
  source_->Hold();
  auto read = StartChunk(5);
  auto other_read = StartRead(*other, 0, kChunk);
  ASSERT_TRUE(source_->AwaitHeld(2));
  layer_->FailOutstanding(absl::AbortedError("the mount goes away"));
  ASSERT_TRUE(read->Await());
  EXPECT_TRUE(absl::IsAborted(read->status()));
  EXPECT_FALSE(other_read->ended());
  source_->Release();
  ASSERT_TRUE(other_read->Await());
  EXPECT_TRUE(other_read->status().ok());
  EXPECT_EQ(Read(*layer_, 5 * kChunk, kChunk).value(), Bytes(5));
}

TEST_F(FetchTest, AdjacentMissingChunksAreOneRequest) {
  options_.fetch_threads = 1;
  Start();
  auto first = StartChunk(0);
  ASSERT_TRUE(source_->AwaitHeld(1));
  std::vector<std::shared_ptr<PendingRead>> reads;
  for (const uint64_t chunk : {23, 20, 21, 27, 22, 25, 24, 26}) reads.push_back(StartChunk(chunk));
  source_->Release();
  for (const auto& read : reads) ASSERT_TRUE(read->Await());
  ASSERT_EQ(RequestCount(), 2);
  EXPECT_EQ(Requests()[1].range.offset, 20 * kChunk);
  EXPECT_EQ(Requests()[1].range.length, 8 * kChunk);
}

TEST_F(FetchTest, ARequestNeverExceedsTheLargestRange) {
  options_.max_range_bytes = 4 * kChunk;
  Start();
  source_->Release();
  EXPECT_EQ(Read(*layer_, 0, 32 * kChunk).value(), Bytes(0, 32));
  for (const auto& request : Requests()) EXPECT_LE(request.range.length, 4 * kChunk);
  for (uint64_t chunk = 0; chunk < 32; ++chunk) EXPECT_EQ(TimesRequested(chunk * kChunk), 1);
}

TEST_F(FetchTest, RangesFollowTheLink) {
  Start();
  registry::Client::LinkEstimate link;
  link.bytes_per_second = 1e6;
  link.round_trip = absl::Microseconds(16 * kChunk);  // bandwidth × round trip: 16 chunks
  source_->set_link(link);
  source_->Release();
  // A first touch takes what it wants, the next twice that, a plainly sequential reader what fits on the
  // link, once it has come that far.
  for (uint64_t chunk = 0; chunk < 48; ++chunk) ASSERT_TRUE(Read(*layer_, chunk * kChunk, 1).ok());
  const auto requests = Requests();
  EXPECT_EQ(requests[0].range.length, kChunk);
  EXPECT_EQ(requests[1].range.length, 2 * kChunk);
  EXPECT_TRUE(std::any_of(requests.begin(), requests.end(),
                          [](const auto& request) { return request.range.length >= 16 * kChunk; }));
}

TEST_F(FetchTest, DemandGoesBeforeBackground) {
  options_.fetch_threads = 1;
  Start();
  auto running = StartChunk(0);
  ASSERT_TRUE(source_->AwaitHeld(1));
  auto stream = StartChunk(10, Because(FetchCause::kStream));
  auto background = StartChunk(20, Because(FetchCause::kBackground));
  auto ahead = StartChunk(30, Because(FetchCause::kReadAhead));
  auto trace = StartChunk(40, Because(FetchCause::kTracePrefetch));
  auto demand = StartChunk(50);
  source_->Release();
  for (const auto& read : {running, stream, background, ahead, trace, demand}) ASSERT_TRUE(read->Await());
  std::vector<uint64_t> order;
  for (const auto& request : Requests()) order.push_back(request.range.offset / kChunk);
  EXPECT_EQ(order[0], 0);
  EXPECT_EQ(order[1], 50);
  EXPECT_EQ(order[2], 40);
  EXPECT_EQ(order[3], 30);
  EXPECT_EQ(order[4], 20);
}

TEST_F(FetchTest, AReaderMakesAWaitingBackgroundFetchUrgent) {
  options_.fetch_threads = 1;
  Start();
  auto running = StartChunk(0);
  ASSERT_TRUE(source_->AwaitHeld(1));
  auto ahead = StartChunk(30, Because(FetchCause::kReadAhead));
  auto background = StartChunk(50, Because(FetchCause::kBackground));
  auto demand = StartChunk(50);
  source_->Release();
  for (const auto& read : {running, background, ahead, demand}) ASSERT_TRUE(read->Await());
  EXPECT_EQ(Requests()[1].range.offset, 50 * kChunk);
}

TEST_F(FetchTest, BackgroundLeavesAThreadForDemand) {
  options_.fetch_threads = 4;
  Start();
  std::vector<std::shared_ptr<PendingRead>> background;
  for (const uint64_t chunk : {0, 10, 20, 30, 40, 50}) {
    background.push_back(StartChunk(chunk, Because(FetchCause::kBackground)));
  }
  ASSERT_TRUE(source_->AwaitHeld(3));
  auto demand = StartChunk(60);
  ASSERT_TRUE(source_->AwaitHeld(4));
  EXPECT_EQ(Requests()[3].range.offset, 60 * kChunk);
  source_->Release();
  for (const auto& read : background) ASSERT_TRUE(read->Await());
  ASSERT_TRUE(demand->Await());
}

TEST_F(FetchTest, NoFlippedByteIsEverVisible) {
  Start(4);
  source_->Release();
  for (uint64_t byte = kChunk; byte < 2 * kChunk; ++byte) {
    source_->SetDefault(GatedBlobSource::Corrupt(byte));
    const absl::StatusOr<std::string> read = Read(*layer_, kChunk, kChunk);
    ASSERT_TRUE(absl::IsDataLoss(read.status())) << byte << " " << read.status();
    ASSERT_FALSE(layer_->TryAcquire(kChunk, 1).has_value());
  }
  source_->SetDefault(GatedBlobSource::Succeed());
  EXPECT_EQ(Read(*layer_, kChunk, kChunk).value(), Bytes(1));
}

TEST_F(FetchTest, NoFlippedByteOfAGzipBlobIsEverVisible) {
  options_.limits.checkpoint_spacing = 1 << 20;
  Open();
  made_ = support::MakeLayer(support::MakeTar({support::File("f", support::TextBytes(3000, 5))}),
                             oci::Compression::kGzip);
  data_ = DataArea(made_);
  layer_ = AddIndexed(made_);
  size_t refused = 0;
  for (uint64_t byte = 0; byte < made_.blob.size() && layer_->stats().cached_bytes == 0; ++byte) {
    source_->SetDefault(GatedBlobSource::Corrupt(byte));
    const absl::StatusOr<std::string> read = Read(*layer_, 0, data_.size());
    if (read.ok()) {
      ASSERT_EQ(*read, data_) << byte;  // a byte that does not matter
      std::shared_ptr<LazyLayer> again;
      layer_.reset();
      RemoveOnceUnused(made_.descriptor.digest);
      source_->SetDefault(GatedBlobSource::Succeed());
      layer_ = AddIndexed(made_);
    } else {
      ++refused;
    }
  }
  EXPECT_GT(refused, made_.blob.size() / 2);
}

TEST_F(FetchTest, WrongBytesAreAskedForOnceMore) {
  Start();
  source_->Release();
  source_->Enqueue(GatedBlobSource::Corrupt(2 * kChunk + 5));
  EXPECT_EQ(Read(*layer_, 0, 4 * kChunk).value(), Bytes(0, 4));
  ASSERT_EQ(RequestCount(), 2);
  const GatedBlobSource::Request again = Requests()[1];
  EXPECT_TRUE(again.range.offset == 2 * kChunk && again.range.length == kChunk && again.distrust_mirrors);
}

TEST_F(FetchTest, ASourceThatLiesAboutLengthsIsNotBelieved) {
  Start();
  source_->Release();
  source_->SetDefault(GatedBlobSource::Lie(100));
  EXPECT_TRUE(absl::IsDataLoss(Read(*layer_, 0, kChunk).status()));
  source_->SetDefault(GatedBlobSource::Lie(3 * kChunk));
  // The chunk itself was right, so it may be served; what came beyond it may not.
  const absl::StatusOr<std::string> read = Read(*layer_, 0, kChunk);
  EXPECT_TRUE(!read.ok() || *read == Bytes(0));
  EXPECT_FALSE(layer_->TryAcquire(kChunk, kChunk).has_value());
}

class FailoverTest : public FetchTest {
 protected:
  void Start() {
    FetchTest::Start();
    second_->PutBlob(made_.blob);
    DescriptorHandler handler;
    handler.descriptor = made_.descriptor;
    handler.sources = {second_};
    ASSERT_TRUE(store_->AddHandler(handler).ok());
    source_->Release();
  }
  std::shared_ptr<GatedBlobSource> second_ = std::make_shared<GatedBlobSource>("test:second", &clock_);
};

TEST_F(FailoverTest, TheNextSourceServesWhereOneFails) {
  Start();
  source_->SetDefault(GatedBlobSource::Fail(absl::UnavailableError("down")));
  EXPECT_EQ(Read(*layer_, 0, kChunk).value(), Bytes(0));
  EXPECT_EQ(layer_->stats().last_source, "test:second");
  // The one that works is asked first from now on.
  EXPECT_EQ(Read(*layer_, 30 * kChunk, kChunk).value(), Bytes(30));
  EXPECT_EQ(RequestCount(), 1);
}

TEST_F(FailoverTest, TheNextSourceGoesOnWhereOneBroke) {
  Start();
  source_->SetDefault(GatedBlobSource::BreakAfter(3 * kChunk + 7));
  EXPECT_EQ(Read(*layer_, 0, 8 * kChunk).value(), Bytes(0, 8));
  ASSERT_EQ(second_->request_count(), 1);
  EXPECT_EQ(second_->requests()[0].range.offset, 3 * kChunk);
}

TEST_F(FailoverTest, TheNextSourceReplacesWrongBytes) {
  Start();
  source_->SetDefault(GatedBlobSource::Corrupt(10));
  EXPECT_EQ(Read(*layer_, 0, kChunk).value(), Bytes(0));
  EXPECT_EQ(layer_->stats().last_source, "test:second");
}

TEST_F(FailoverTest, TheErrorOfTheLastSourceIsTold) {
  Start();
  source_->SetDefault(GatedBlobSource::Fail(absl::UnavailableError("first is down")));
  second_->SetDefault(GatedBlobSource::Fail(absl::NotFoundError("second lost it")));
  const absl::Status status = Read(*layer_, 0, kChunk).status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_TRUE(absl::StrContains(status.message(), "second lost it")) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "test:second")) << status;
}

TEST_F(FetchTest, CredentialsAreThoseOfALivingRequester) {
  Start();
  auto token = std::make_shared<base::CancelToken>();
  FetchContext first = CancelledBy(token);
  first.credentials = std::make_shared<TestCredentials>("first");
  FetchContext second;
  second.credentials = std::make_shared<TestCredentials>("second");
  auto one = StartChunk(3, first);
  ASSERT_TRUE(source_->AwaitHeld(1));
  auto two = StartChunk(3, second);
  // The first is refused after its requester has gone: only the second's credentials are tried then.
  token->Cancel();
  ASSERT_TRUE(one->Await());
  ASSERT_TRUE(source_->ReleaseOne(GatedBlobSource::Fail(absl::UnauthenticatedError("who are you"))));
  ASSERT_TRUE(source_->ReleaseOne());
  ASSERT_TRUE(two->Await());
  EXPECT_EQ(two->bytes(), Bytes(3));
  ASSERT_EQ(RequestCount(), 2);
  EXPECT_EQ(Requests()[0].username, "first");
  EXPECT_EQ(Requests()[1].username, "second");
}

TEST_F(FetchTest, EveryLivingRequestersCredentialsAreTriedBeforeTheReadFails) {
  Start();
  auto holder = StartChunk(60);
  std::vector<std::shared_ptr<PendingRead>> reads;
  for (const char* user : {"a", "b", "c"}) {
    FetchContext context;
    context.credentials = std::make_shared<TestCredentials>(user);
    reads.push_back(StartChunk(3, context));
  }
  source_->SetDefault(GatedBlobSource::Fail(absl::PermissionDeniedError("no")));
  source_->Release();
  for (const auto& read : reads) {
    ASSERT_TRUE(read->Await());
    EXPECT_TRUE(absl::IsPermissionDenied(read->status())) << read->status();
  }
  std::set<std::string> users;
  for (const auto& request : Requests()) users.insert(request.username);
  EXPECT_EQ(users.count("a") + users.count("b") + users.count("c"), 3);
}

TEST_F(FetchTest, FetchedBytesAreCountedByCauseAndNotForLocalSources) {
  Start();
  const uint64_t before = Fetched(*layer_, FetchCause::kIndex);
  EXPECT_EQ(before, made_.blob.size());
  source_->Release();
  ASSERT_TRUE(Read(*layer_, 0, kChunk).ok());
  EXPECT_EQ(Fetched(*layer_, FetchCause::kDemand), kChunk);
  // Retries count.
  source_->Enqueue(GatedBlobSource::Corrupt(20 * kChunk));
  ASSERT_TRUE(Read(*layer_, 20 * kChunk, kChunk).ok());
  EXPECT_EQ(Fetched(*layer_, FetchCause::kDemand), 3 * kChunk);
  source_->set_local(true);
  ASSERT_TRUE(Read(*layer_, 40 * kChunk, kChunk).ok());
  EXPECT_EQ(Fetched(*layer_, FetchCause::kDemand), 3 * kChunk);
  EXPECT_EQ(layer_->stats().served_bytes, 3 * kChunk);
}

TEST_F(FetchTest, AFullDiskIsReadPast) {
  Start();
  source_->Release();
  {
    base::ScopedFault full("contentstore.chunk.write", [] { return base::ErrnoStatus(ENOSPC, "write"); });
    auto read = StartRead(*layer_, 100, 5 * kChunk);
    ASSERT_TRUE(read->Await());
    ASSERT_TRUE(read->status().ok()) << read->status();
    EXPECT_TRUE(read->in_memory());
    EXPECT_EQ(read->bytes(), data_.substr(100, 5 * kChunk));
    EXPECT_EQ(layer_->stats().cached_bytes, 0);
    // Small steps through what is in memory are not asked for again.
    const size_t requests = RequestCount();
    EXPECT_EQ(Read(*layer_, kChunk, 100).value(), data_.substr(kChunk, 100));
    EXPECT_EQ(RequestCount(), requests);
    ASSERT_TRUE(Read(*layer_, 30 * kChunk, kChunk).ok());
    ASSERT_EQ(Log().size(), 1);  // told once
    EXPECT_TRUE(absl::StrContains(Log()[0], "No space left"));
    const absl::Status status = store_->Unlazy(*layer_, {}, {});
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  }
  // Space again: bytes partly on disk and partly in memory, then all on disk.
  EXPECT_EQ(Read(*layer_, 0, 10 * kChunk).value(), Bytes(0, 10));
  ASSERT_TRUE(store_->Unlazy(*layer_, {}, {}).ok());
  EXPECT_EQ(layer_->state(), LayerState::kComplete);
}

TEST_F(FetchTest, ReadsEndWhenTheStoreIsClosed) {
  Start();
  auto read = StartChunk(3);
  ASSERT_TRUE(source_->AwaitHeld(1));
  Close();
  ASSERT_TRUE(read->Await());
  EXPECT_TRUE(absl::IsCancelled(read->status()));
  // A layer may outlive its store.
  EXPECT_FALSE(Read(*layer_, 0, kChunk).ok());
}

TEST_F(FetchTest, ManyThreadsReadingEverythingAgreeWithTheLayer) {
  Start(200);
  source_->Release();
  source_->set_piece_size(1000);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      uint64_t at = static_cast<uint64_t>(t) * 97;
      for (int i = 0; i < 100; ++i) {
        at = (at * 6364136223846793005U + 1442695040888963407U);
        const uint64_t offset = (at >> 20) % (data_.size() - 1);
        const uint64_t length = 1 + (at >> 8) % std::min<uint64_t>(data_.size() - offset, 9 * kChunk);
        auto token = std::make_shared<base::CancelToken>();
        auto read = StartRead(*layer_, offset, length, CancelledBy(token));
        if (i % 5 == 0) token->Cancel();
        if (!read->Await()) ++wrong;
        if (read->status().ok() ? read->bytes() != data_.substr(offset, length)
                                : !absl::IsCancelled(read->status())) {
          ++wrong;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace lazyblob::contentstore
