// The life of a layer in the store: known, indexed, read, complete, restored, removed.

#include <fcntl.h>
#include <sys/stat.h>

#include <thread>

#include "absl/strings/match.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

using support::GatedBlobSource;

class ContentStoreTest : public StoreTest {
 protected:
  static support::Layer MakeGzipLayer() {
    return support::MakeLayer(
        support::MakeTar({support::Directory("etc"), support::File("etc/a", support::TextBytes(300'000, 3)),
                          support::File("etc/b", support::RandomBytes(100'000, 4))}),
        oci::Compression::kGzip);
  }
  std::string Whole(LazyLayer& layer) { return Read(layer, 0, layer.data_size()).value_or("unreadable"); }
  std::string FileBytes(const std::string& path) {
    return base::ReadFile(path, 64 << 20).value_or("no file");
  }
  bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }
};

TEST_F(ContentStoreTest, ANewLayerNeedsAnIndex) {
  Open();
  const support::Layer made = MakeGzipLayer();
  std::shared_ptr<LazyLayer> layer = Add(made);
  EXPECT_EQ(layer->state(), LayerState::kNeedsIndex);
  EXPECT_EQ(layer->data_size(), 0);
  EXPECT_EQ(layer->index(), nullptr);
  EXPECT_EQ(layer->id(), 1);
  EXPECT_EQ(layer->diff_id(), made.diff_id);
  EXPECT_TRUE(absl::IsFailedPrecondition(Read(*layer, 0, 1).status()));
  EXPECT_FALSE(layer->TryAcquire(0, 1).has_value());
  EXPECT_EQ(RequestCount(), 0);
  EXPECT_EQ(store_->Find(made.descriptor.digest), layer);
  EXPECT_EQ(store_->FindById(1), layer);
  EXPECT_EQ(store_->Find(made.diff_id), nullptr);
  EXPECT_EQ(store_->FindById(2), nullptr);
}

TEST_F(ContentStoreTest, FilesAreForTheirOwnerOnly) {
  const mode_t before = umask(0);
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(MakeGzipLayer());
  umask(before);
  for (const std::string& path : {options_.root, layer->directory()}) {
    struct stat st{};
    ASSERT_EQ(stat(path.c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 0777, 0700) << path;
  }
  for (const char* name : {"layer.json", "data", "presence"}) {
    struct stat st{};
    ASSERT_EQ(stat(LayerFile(*layer, name).c_str(), &st), 0) << name;
    EXPECT_EQ(st.st_mode & 077, 0) << name;
  }
}

TEST_F(ContentStoreTest, APlainLayerStreamedWithItsDataIsComplete) {
  Open();
  const support::Layer made = MakeGzipLayer();
  std::shared_ptr<LazyLayer> layer = Add(made);
  uint64_t told = 0;
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, [&](uint64_t received) { told = received; }).ok());
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_EQ(layer->not_lazy_reason(), "no-index");
  EXPECT_LE(told, made.blob.size());
  ASSERT_EQ(RequestCount(), 1);
  EXPECT_EQ(Requests()[0].range.length, made.blob.size());
  EXPECT_EQ(Fetched(*layer, FetchCause::kStream), made.blob.size());
  EXPECT_TRUE(Same(Whole(*layer), DataArea(made)));
  EXPECT_TRUE(Same(FileBytes(LayerFile(*layer, "data")), DataArea(made)));
  EXPECT_EQ(RequestCount(), 1);
  EXPECT_FALSE(Exists(LayerFile(*layer, "build")));
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(RequestCount(), 1);
}

TEST_F(ContentStoreTest, AnIndexAloneMakesAPlainLayerLazy) {
  Open();
  const support::Layer made = MakeGzipLayer();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  EXPECT_EQ(layer->not_lazy_reason(), "");
  EXPECT_EQ(layer->stats().cached_bytes, 0);
  struct stat st{};
  ASSERT_EQ(stat(LayerFile(*layer, "data").c_str(), &st), 0);
  EXPECT_EQ(static_cast<uint64_t>(st.st_size), layer->data_size());  // from the start
  EXPECT_EQ(st.st_blocks, 0);
  ASSERT_TRUE(Read(*layer, 0, 1).ok());
  EXPECT_LT(layer->stats().cached_bytes, layer->data_size());
  EXPECT_TRUE(Same(Whole(*layer), DataArea(made)));
}

TEST_F(ContentStoreTest, AnEmptyLayerIsComplete) {
  Open();
  const support::Layer made = support::MakeLayer(support::MakeTar({}), oci::Compression::kGzip);
  std::shared_ptr<LazyLayer> layer = Add(made);
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_EQ(layer->data_size(), 4096);
  EXPECT_TRUE(Same(Whole(*layer), std::string(4096, '\0')));
}

TEST_F(ContentStoreTest, ManyCallersIndexALayerOnce) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(MakeGzipLayer());
  source_->Hold();
  std::vector<std::thread> threads;
  std::atomic<int> failed{0};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] { failed += !store_->EnsureIndexed(*layer, true, {}, {}).ok(); });
  }
  ASSERT_TRUE(source_->AwaitHeld(1));
  source_->Release();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(RequestCount(), 1);
}

TEST_F(ContentStoreTest, ACallerThatGivesUpDoesNotStopTheIndexingForOthers) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(MakeGzipLayer());
  source_->Hold();
  FetchContext context;
  context.cancel = std::make_shared<base::CancelToken>();
  absl::Status first;
  absl::Status second;
  std::thread one([&] { first = store_->EnsureIndexed(*layer, true, context, {}); });
  ASSERT_TRUE(source_->AwaitHeld(1));
  absl::Notification started;
  std::thread two([&] {
    started.Notify();
    second = store_->EnsureIndexed(*layer, true, {}, {});
  });
  started.WaitForNotification();
  // Whether the second caller has joined already or comes too late and starts afresh: it gets its index.
  context.cancel->Cancel();
  one.join();
  EXPECT_TRUE(absl::IsCancelled(first)) << first;
  source_->Release();
  two.join();
  EXPECT_TRUE(second.ok()) << second;
  EXPECT_EQ(layer->state(), LayerState::kComplete);
}

TEST_F(ContentStoreTest, TheLastCallerToGiveUpStopsTheIndexing) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(MakeGzipLayer());
  source_->Hold();
  FetchContext context;
  context.deadline = clock_.Monotonic() + absl::Seconds(5);
  absl::Status status;
  std::thread one([&] { status = store_->EnsureIndexed(*layer, true, context, {}); });
  ASSERT_TRUE(source_->AwaitHeld(1));
  clock_.Advance(absl::Seconds(6));
  one.join();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  ASSERT_TRUE(Eventually([&] { return Requests()[0].finished; }));
  EXPECT_TRUE(absl::IsCancelled(Requests()[0].result));
  source_->Release();
  EXPECT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
}

TEST_F(ContentStoreTest, AStreamThatBreaksGoesOnFromTheNextSource) {
  Open();
  const support::Layer made = MakeGzipLayer();
  std::shared_ptr<LazyLayer> layer = Add(made);
  auto second = std::make_shared<GatedBlobSource>("test:second", &clock_);
  second->PutBlob(made.blob);
  DescriptorHandler handler;
  handler.descriptor = made.descriptor;
  handler.sources = {second};
  ASSERT_TRUE(store_->AddHandler(handler).ok());
  source_->SetDefault(GatedBlobSource::BreakAfter(1000));
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  ASSERT_EQ(second->request_count(), 1);
  EXPECT_EQ(second->requests()[0].range.offset, 1000);
  EXPECT_TRUE(Same(Whole(*layer), DataArea(made)));
}

TEST_F(ContentStoreTest, AStreamThatFailsLeavesALayerThatCanBeIndexedLater) {
  Open();
  std::shared_ptr<LazyLayer> layer = Add(MakeGzipLayer());
  source_->Enqueue(GatedBlobSource::BreakAfter(1000));
  const absl::Status status = store_->EnsureIndexed(*layer, true, {}, {});
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_EQ(layer->state(), LayerState::kNeedsIndex);
  EXPECT_FALSE(Exists(LayerFile(*layer, "build")));
  EXPECT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
}

TEST_F(ContentStoreTest, OneWrongByteOnTheWayIsReadAgain) {
  Open();
  const support::Layer made = MakeGzipLayer();
  std::shared_ptr<LazyLayer> layer = Add(made);
  source_->Enqueue(GatedBlobSource::Corrupt(made.blob.size() / 2));
  ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  EXPECT_EQ(RequestCount(), 2);
  EXPECT_TRUE(Same(Whole(*layer), DataArea(made)));
}

TEST_F(ContentStoreTest, ALayerWhoseBytesAreWrongIsQuarantinedForGood) {
  Open();
  support::Layer made = MakeGzipLayer();
  made.diff_id = base::Digest::Of("something else");
  std::shared_ptr<LazyLayer> layer = Add(made);
  const absl::Status status = store_->EnsureIndexed(*layer, true, {}, {});
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), made.descriptor.digest.ToString())) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "diffID")) << status;
  EXPECT_EQ(layer->state(), LayerState::kQuarantined);
  EXPECT_EQ(layer->not_lazy_reason(), "quarantined");
  EXPECT_EQ(RequestCount(), 2);  // once more, to be sure
  EXPECT_TRUE(absl::IsDataLoss(Read(*layer, 0, 1).status()));
  EXPECT_FALSE(layer->TryAcquire(0, 0).has_value());
  EXPECT_FALSE(Exists(LayerFile(*layer, "data")));
  layer.reset();
  Close();
  Open();
  layer = store_->Find(made.descriptor.digest);
  ASSERT_NE(layer, nullptr);
  EXPECT_EQ(layer->state(), LayerState::kQuarantined);
  EXPECT_TRUE(absl::IsDataLoss(store_->EnsureIndexed(*layer, true, {}, {})));
  EXPECT_TRUE(absl::IsDataLoss(store_->Unlazy(*layer, {}, {})));
}

TEST_F(ContentStoreTest, AFullDiskStillYieldsAnIndex) {
  Open();
  const support::Layer made = MakeGzipLayer();
  std::shared_ptr<LazyLayer> layer = Add(made);
  {
    base::ScopedFault full("contentstore.stream.write", [] { return base::ErrnoStatus(ENOSPC, "write"); });
    ASSERT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
  }
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  ASSERT_EQ(Log().size(), 1);
  EXPECT_TRUE(absl::StrContains(Log()[0], "No space left"));
  EXPECT_TRUE(Same(Whole(*layer), DataArea(made)));
}

TEST_F(ContentStoreTest, UnlazyMakesAllBytesLocal) {
  options_.max_range_bytes = 16 * kChunk;
  Open();
  const support::Layer made = MakeTarLayer(300);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  ASSERT_TRUE(Read(*layer, 50 * kChunk, kChunk).ok());
  uint64_t told = 0;
  ASSERT_TRUE(store_->Unlazy(*layer, {}, [&](uint64_t received) { told = received; }).ok());
  EXPECT_LE(told, made.blob.size());
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_EQ(layer->stats().cached_bytes, made.blob.size());
  EXPECT_EQ(layer->stats().served_bytes, kChunk);  // unlazying serves nobody
  EXPECT_TRUE(Same(FileBytes(LayerFile(*layer, "data")), DataArea(made)));
  // Reading past one small chunk that is there is cheaper than asking twice.
  for (uint64_t at = 0; at < made.blob.size(); at += kChunk)
    EXPECT_LE(TimesRequested(at), at / kChunk == 50 ? 2 : 1);
  EXPECT_LE(RequestCount(), 25);
  ASSERT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
}

TEST_F(ContentStoreTest, UnlazyReadsSeveralRangesAtATime) {
  options_.max_range_bytes = 16 * kChunk;
  Open();
  const support::Layer made = MakeTarLayer(300);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  source_->Hold();
  absl::Status status;
  std::thread thread([&] { status = store_->Unlazy(*layer, {}, {}); });
  EXPECT_TRUE(source_->AwaitHeld(3));
  source_->Release();
  thread.join();
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(ContentStoreTest, UnlazyOfANewLayerStreamsItOnce) {
  Open();
  const support::Layer made = MakeGzipLayer();
  std::shared_ptr<LazyLayer> layer = Add(made);
  ASSERT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_EQ(RequestCount(), 1);
}

TEST_F(ContentStoreTest, ACancelledUnlazyKeepsWhatItHas) {
  options_.max_range_bytes = 4 * kChunk;
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(MakeTarLayer(100));
  source_->Hold();
  FetchContext context;
  context.cancel = std::make_shared<base::CancelToken>();
  absl::Status status;
  std::thread thread([&] { status = store_->Unlazy(*layer, context, {}); });
  ASSERT_TRUE(source_->ReleaseOne());
  ASSERT_TRUE(Eventually([&] { return layer->stats().cached_bytes > 0; }));
  context.cancel->Cancel();
  thread.join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  EXPECT_GT(layer->stats().cached_bytes, 0);
  source_->Release();
  EXPECT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
}

TEST_F(ContentStoreTest, UnlazyFailsWithTheReasonAndCanBeTriedAgain) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(MakeTarLayer(100));
  source_->SetDefault(GatedBlobSource::Fail(absl::UnavailableError("gone")));
  const absl::Status status = store_->Unlazy(*layer, {}, {});
  EXPECT_TRUE(absl::StrContains(status.message(), "gone")) << status;
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  source_->SetDefault(GatedBlobSource::Succeed());
  EXPECT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
}

TEST_F(ContentStoreTest, ALayerWithoutRandomAccessIsStreamedWhole) {
  options_.limits.checkpoint_spacing = 1 << 20;
  Open();
  const support::Layer made = support::MakeLayer(
      support::MakeTar({support::File("big", support::RandomBytes(40 << 20, 9))}), oci::Compression::kZstd);
  std::shared_ptr<LazyLayer> layer = Add(made);
  ASSERT_TRUE(store_->EnsureIndexed(*layer, false, {}, {}).ok());
  ASSERT_FALSE(layer->index()->info().random_access);
  EXPECT_EQ(layer->not_lazy_reason(), "no-random-access");
  EXPECT_TRUE(absl::IsFailedPrecondition(Read(*layer, 0, 1).status()));
  ASSERT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_EQ(RequestCount(), 2);
  EXPECT_TRUE(Same(Whole(*layer), DataArea(made)));
}

TEST_F(ContentStoreTest, ARestartNeedsNoSource) {
  Open();
  const support::Layer made = MakeTarLayer(50);
  const support::Layer whole = MakeGzipLayer();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  ASSERT_TRUE(Read(*layer, 10 * kChunk, 4 * kChunk).ok());
  std::shared_ptr<LazyLayer> complete = Add(whole);
  ASSERT_TRUE(store_->Unlazy(*complete, {}, {}).ok());
  const uint32_t id = layer->id();
  layer.reset();
  complete.reset();
  Close();

  options_.source_factory = nullptr;
  ForgetRequests();
  Open();
  EXPECT_EQ(store_->Layers().size(), 2);
  layer = store_->Find(made.descriptor.digest);
  ASSERT_NE(layer, nullptr);
  EXPECT_EQ(layer->id(), id);
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  EXPECT_EQ(layer->diff_id(), made.diff_id);
  EXPECT_EQ(layer->descriptor().media_type, made.descriptor.media_type);
  EXPECT_EQ(layer->stats().cached_bytes, 4 * kChunk);
  EXPECT_EQ(Read(*layer, 10 * kChunk, 4 * kChunk).value(), DataArea(made).substr(10 * kChunk, 4 * kChunk));
  complete = store_->Find(whole.descriptor.digest);
  EXPECT_EQ(complete->state(), LayerState::kComplete);
  EXPECT_TRUE(Same(Whole(*complete), DataArea(whole)));
  EXPECT_EQ(RequestCount(), 0);
  // What was not cached has no provider now, and the error says which digest.
  const absl::Status status = Read(*layer, 0, kChunk).status();
  const std::vector<MissingProvider> missing = GetMissingProviders(status);
  ASSERT_EQ(missing.size(), 1) << status;
  EXPECT_EQ(missing[0].digest, made.descriptor.digest);
  EXPECT_EQ(missing[0].size, made.descriptor.size);
  // Naming the image again brings it back.
  Add(made);
  EXPECT_TRUE(Read(*layer, 0, kChunk).ok());
}

TEST_F(ContentStoreTest, ARestartMakesItsSourcesOnTheFirstMiss) {
  Open();
  const support::Layer made = MakeTarLayer(50);
  AddIndexed(made);
  Close();
  int made_sources = 0;
  auto factory = options_.source_factory;
  options_.source_factory = [&](absl::string_view name) {
    ++made_sources;
    return factory(name);
  };
  Open();
  EXPECT_EQ(made_sources, 0);
  std::shared_ptr<LazyLayer> layer = store_->Find(made.descriptor.digest);
  EXPECT_TRUE(Read(*layer, 0, kChunk).ok());
  EXPECT_TRUE(Read(*layer, 20 * kChunk, kChunk).ok());
  EXPECT_EQ(made_sources, 1);
}

TEST_F(ContentStoreTest, RottenBytesOnTheDiskAreFetchedAgain) {
  Open();
  const support::Layer made = MakeTarLayer(50);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  ASSERT_TRUE(Read(*layer, 0, 10 * kChunk).ok());
  const std::string data = LayerFile(*layer, "data");
  layer.reset();
  Close();
  {
    base::UniqueFd file = base::OpenFile(data, O_RDWR).value();
    const uint8_t wrong = static_cast<uint8_t>(~DataArea(made)[5 * kChunk + 7]);
    ASSERT_TRUE(base::PwriteFull(file.get(), 5 * kChunk + 7, {&wrong, 1}).ok());
  }
  Open();
  ForgetRequests();
  layer = store_->Find(made.descriptor.digest);
  EXPECT_EQ(Read(*layer, 0, 10 * kChunk).value(), DataArea(made).substr(0, 10 * kChunk));
  ASSERT_EQ(RequestCount(), 1);
  EXPECT_EQ(Requests()[0].range.offset, 5 * kChunk);
}

TEST_F(ContentStoreTest, ACompleteLayerThatRottedIsLazyUntilRepaired) {
  Open();
  const support::Layer made = MakeTarLayer(50);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  ASSERT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
  const std::string data = LayerFile(*layer, "data");
  layer.reset();
  Close();
  {
    base::UniqueFd file = base::OpenFile(data, O_RDWR).value();
    ASSERT_TRUE(base::PwriteFull(file.get(), 5 * kChunk, std::vector<uint8_t>(100, 1)).ok());
  }
  Open();
  layer = store_->Find(made.descriptor.digest);
  EXPECT_EQ(layer->state(), LayerState::kComplete);
  EXPECT_TRUE(Same(Whole(*layer), DataArea(made)));
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  ASSERT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kComplete);
}

TEST_F(ContentStoreTest, ADamagedIndexIsBuiltAgain) {
  Open();
  const support::Layer made = MakeGzipLayer();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  const std::string index = LayerFile(*layer, "index");
  layer.reset();
  Close();
  ASSERT_TRUE(base::WriteFileAtomically(index, "not an index").ok());
  Open();
  layer = store_->Find(made.descriptor.digest);
  ASSERT_NE(layer, nullptr);
  EXPECT_EQ(layer->state(), LayerState::kNeedsIndex);
  ASSERT_TRUE(store_->EnsureIndexed(*layer, false, {}, {}).ok());
  EXPECT_TRUE(Same(Whole(*layer), DataArea(made)));
}

TEST_F(ContentStoreTest, LeftoversAreRemovedAtStart) {
  Open();
  const support::Layer made = MakeGzipLayer();
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  const std::string directory = layer->directory();
  layer.reset();
  Close();
  const std::string stray = options_.root + "/layers/sha256-stray";
  ASSERT_TRUE(base::MakeDirectories(stray + "/build").ok());
  ASSERT_TRUE(base::MakeDirectories(directory + "/build").ok());
  const std::string damaged = options_.root + "/layers/sha256-damaged";
  ASSERT_TRUE(base::MakeDirectories(damaged).ok());
  ASSERT_TRUE(base::WriteFileAtomically(damaged + "/layer.json", "{").ok());
  Open();
  EXPECT_FALSE(Exists(stray));
  EXPECT_FALSE(Exists(damaged));
  EXPECT_FALSE(Exists(directory + "/build"));
  EXPECT_EQ(store_->Layers().size(), 1);
}

TEST_F(ContentStoreTest, RemoveForgetsALayerThatNobodyHolds) {
  Open();
  const support::Layer made = MakeTarLayer(50);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  const std::string directory = layer->directory();
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->Remove(made.descriptor.digest)));
  ASSERT_TRUE(Read(*layer, 0, kChunk).ok());
  std::optional<PinnedRange> pin = layer->TryAcquire(0, kChunk);
  layer.reset();
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->Remove(made.descriptor.digest)));  // a pin is somebody
  pin.reset();
  ASSERT_TRUE(store_->Remove(made.descriptor.digest).ok());
  EXPECT_FALSE(Exists(directory));
  EXPECT_EQ(store_->Find(made.descriptor.digest), nullptr);
  EXPECT_EQ(store_->FindById(1), nullptr);
  EXPECT_TRUE(absl::IsNotFound(store_->Remove(made.descriptor.digest)));
  // The kernel may remember the old one by its number.
  EXPECT_EQ(AddIndexed(made)->id(), 2);
  Close();
  Open();
  EXPECT_EQ(Add(MakeGzipLayer())->id(), 3);
}

TEST_F(ContentStoreTest, ALayerWhoseFilesWereRemovedIsMadeAnew) {
  Open();
  const support::Layer made = MakeTarLayer(50);
  const std::shared_ptr<LazyLayer> before = AddIndexed(made);
  ASSERT_TRUE(base::RemoveTree(options_.root + "/layers").ok());
  EXPECT_TRUE(Same(Read(*before, 0, kChunk).value_or("unreadable"), DataArea(made).substr(0, kChunk)));
  const std::shared_ptr<LazyLayer> again = AddIndexed(made);
  EXPECT_NE(again->id(), before->id());
  EXPECT_TRUE(Exists(LayerFile(*again, "index")));
  EXPECT_TRUE(Same(Whole(*again), DataArea(made)));
  EXPECT_TRUE(Same(Whole(*before), DataArea(made)));
}

TEST_F(ContentStoreTest, ReadBlobAtGivesTheOriginalBytes) {
  Open();
  const support::Layer made = MakeGzipLayer();
  std::shared_ptr<LazyLayer> layer = Add(made);
  const auto read = [&](registry::ByteRange range) -> absl::StatusOr<std::string> {
    std::string bytes;
    RETURN_IF_ERROR(store_->ReadBlobAt(*layer, range,
                                       [&](absl::Span<const uint8_t> part) {
                                         bytes.append(reinterpret_cast<const char*>(part.data()),
                                                      part.size());
                                         return absl::OkStatus();
                                       },
                                       {}));
    return bytes;
  };
  EXPECT_EQ(read({0, made.blob.size()}).value(), made.blob);
  EXPECT_EQ(read({100, 50}).value(), made.blob.substr(100, 50));
  EXPECT_TRUE(absl::IsInvalidArgument(read({made.blob.size(), 1}).status()));
  source_->SetDefault(GatedBlobSource::Corrupt(77));
  EXPECT_TRUE(absl::IsDataLoss(read({0, made.blob.size()}).status()));
  source_->SetDefault(GatedBlobSource::Succeed());
  EXPECT_TRUE(absl::IsAborted(store_->ReadBlobAt(
      *layer, {0, 10}, [](absl::Span<const uint8_t>) { return absl::AbortedError("enough"); }, {})));
}

TEST_F(ContentStoreTest, TheProviderMissingErrorListsEveryDigest) {
  const std::vector<MissingProvider> missing = {{base::Digest::Of("a"), 10, "mount of x"},
                                                {base::Digest::Of("b"), 20, "a name\nwith a newline"}};
  const absl::Status status = base::Annotate(ProviderMissingError(missing), "pull");
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
  const std::vector<MissingProvider> found = GetMissingProviders(status);
  ASSERT_EQ(found.size(), 2);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(found[i].digest, missing[i].digest);
    EXPECT_EQ(found[i].size, missing[i].size);
    EXPECT_TRUE(absl::StrContains(status.message(), missing[i].digest.ToString()));
  }
  EXPECT_EQ(found[0].wanted_by, "mount of x");
  EXPECT_TRUE(GetMissingProviders(absl::NotFoundError("else")).empty());
}

TEST_F(ContentStoreTest, WithoutSourcesIndexingNamesWhatIsMissing) {
  Open();
  DescriptorHandler handler;
  handler.descriptor = MakeGzipLayer().descriptor;
  std::shared_ptr<LazyLayer> layer = store_->AddHandler(handler).value();
  const absl::Status status = store_->EnsureIndexed(*layer, true, {}, {});
  ASSERT_EQ(GetMissingProviders(status).size(), 1) << status;
  EXPECT_EQ(GetMissingProviders(status)[0].digest, handler.descriptor.digest);
}

TEST_F(ContentStoreTest, ALayoutIsASourceThatCostsNothing) {
  Open();
  const support::Layer made = MakeGzipLayer();
  const std::string layout = directory_.File("layout");
  ASSERT_TRUE(support::WriteLayout(layout, "latest", support::MakeImage({made})).ok());
  DescriptorHandler handler;
  handler.descriptor = made.descriptor;
  handler.sources = {MakeLayoutSource(layout)};
  EXPECT_EQ(handler.sources[0]->name(), "layout:" + layout);
  std::shared_ptr<LazyLayer> layer = store_->AddHandler(handler).value();
  ASSERT_TRUE(store_->EnsureIndexed(*layer, false, {}, {}).ok());
  EXPECT_TRUE(Same(Whole(*layer), DataArea(made)));
  for (const uint64_t bytes : layer->stats().fetched_bytes) EXPECT_EQ(bytes, 0);
  // A file that is not what the descriptor says is refused, whatever it is.
  const std::string blob = layout + "/blobs/sha256/" + made.descriptor.digest.hex();
  ASSERT_TRUE(base::WriteFileAtomically(blob, "short").ok());
  EXPECT_TRUE(absl::IsDataLoss(
      store_->ReadBlobAt(*layer, {0, 1}, [](absl::Span<const uint8_t>) { return absl::OkStatus(); }, {})));
}

TEST_F(ContentStoreTest, OptionsThatCannotWorkAreRefused) {
  options_.fetch_threads = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(ContentStore::Open(options_).status()));
}

}  // namespace
}  // namespace lazyblob::contentstore
