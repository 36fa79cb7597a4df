// What registries that hang cost the layers of others: nothing, while there is room for both.

#include <algorithm>
#include <thread>

#include "tests/contentstore/made_estargz.h"
#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

using support::GatedBlobSource;

// A job for one chunk of these layers takes this much memory, compressed and decoded bytes included.
constexpr uint64_t kJobMemory = (512 << 10) + 2 * kChunk;

class HostsTest : public StoreTest {
 protected:
  struct Made {
    support::Layer layer;
    std::string data;
    std::shared_ptr<LazyLayer> lazy;
    std::string Bytes(uint64_t chunk) const { return data.substr(chunk * kChunk, kChunk); }
  };

  ~HostsTest() override {
    for (const auto& source : sources_) source->Release();
    store_.reset();
  }

  std::shared_ptr<GatedBlobSource> MakeSource(const std::string& name) {
    sources_.push_back(std::make_shared<GatedBlobSource>("test:" + name, &clock_));
    return sources_.back();
  }
  // A layer of `source` that is known; `chunks` tell layers apart, too.
  Made Add(GatedBlobSource& source, const std::shared_ptr<GatedBlobSource>& shared, uint64_t chunks) {
    Made made;
    made.layer = MakeTarLayer(chunks, ++seed_);
    made.data = DataArea(made.layer);
    source.PutBlob(made.layer.blob);
    DescriptorHandler handler;
    handler.descriptor = made.layer.descriptor;
    handler.diff_id = made.layer.diff_id;
    handler.sources = {shared};
    absl::StatusOr<std::shared_ptr<LazyLayer>> added = store_->AddHandler(handler);
    EXPECT_TRUE(added.ok()) << added.status();
    if (added.ok()) made.lazy = *added;
    return made;
  }
  Made AddIndexed(const std::shared_ptr<GatedBlobSource>& source, uint64_t chunks = 64) {
    Made made = Add(*source, source, chunks);
    const absl::Status status = store_->EnsureIndexed(*made.lazy, false, {}, {});
    EXPECT_TRUE(status.ok()) << status;
    return made;
  }
  // Of chunks of 4 MiB that do not compress.
  Made AddLargeChunks(const std::shared_ptr<GatedBlobSource>& source, uint64_t seed) {
    const Estargz estargz = MakeEstargz({support::RandomBytes(4 << 20, seed)}, 4 << 20);
    Made made;
    made.layer = estargz.layer;
    made.data = estargz.data;
    source->PutBlob(made.layer.blob);
    DescriptorHandler handler;
    handler.descriptor = made.layer.descriptor;
    handler.diff_id = made.layer.diff_id;
    handler.sources = {source};
    made.lazy = store_->AddHandler(handler).value();
    const absl::Status status = store_->EnsureIndexed(*made.lazy, false, {}, {});
    EXPECT_TRUE(status.ok()) << status;
    return made;
  }
  // Of chunks that are no neighbours: one request each.
  static std::vector<std::shared_ptr<PendingRead>> StartReads(const Made& made, uint64_t count,
                                                              const FetchContext& context = {}) {
    std::vector<std::shared_ptr<PendingRead>> reads;
    for (uint64_t i = 0; i < count; ++i) {
      reads.push_back(StartRead(*made.lazy, i * kStride * kChunk, kChunk, context));
    }
    return reads;
  }
  static void ExpectRight(const Made& made, const std::vector<std::shared_ptr<PendingRead>>& reads) {
    for (uint64_t i = 0; i < reads.size(); ++i) {
      ASSERT_TRUE(reads[i]->Await()) << i;
      ASSERT_TRUE(reads[i]->status().ok()) << reads[i]->status();
      EXPECT_TRUE(Same(reads[i]->bytes(), made.Bytes(i * kStride))) << i;
    }
  }

  // Farther apart than gaps are read through.
  static constexpr uint64_t kStride = 6;

 private:
  uint64_t seed_ = 0;
  std::vector<std::shared_ptr<GatedBlobSource>> sources_;
};

TEST_F(HostsTest, AHostThatHangsTakesNoThreadOfOthers) {
  options_.fetch_threads = 16;
  Open();
  const auto dead = MakeSource("dead");
  const auto good = MakeSource("good");
  const Made of_dead = AddIndexed(dead, 256);
  const Made of_good = AddIndexed(good);
  dead->Hold();
  const auto hanging = StartReads(of_dead, 40);
  ASSERT_TRUE(dead->AwaitHeld(16));
  EXPECT_EQ(Read(*of_good.lazy, 5 * kChunk, kChunk).value(), of_good.Bytes(5));
  EXPECT_EQ(dead->held(), 16);
  dead->Release();
  ExpectRight(of_dead, hanging);
}

TEST_F(HostsTest, ManyHostsThatHangLeaveThreadsForTheNext) {
  options_.fetch_threads = 2;  // 16 in all
  Open();
  std::vector<std::shared_ptr<GatedBlobSource>> dead;
  std::vector<Made> layers;
  for (int i = 0; i < 10; ++i) {
    dead.push_back(MakeSource(absl::StrCat("dead", i)));
    layers.push_back(AddIndexed(dead.back()));
  }
  const auto good = MakeSource("good");
  const Made of_good = AddIndexed(good);
  std::vector<std::vector<std::shared_ptr<PendingRead>>> hanging;
  for (int i = 0; i < 10; ++i) {
    dead[i]->Hold();
    hanging.push_back(StartReads(layers[i], 8));
  }
  for (const auto& one : dead) ASSERT_TRUE(one->AwaitHeld(1)) << one->name();
  EXPECT_EQ(Read(*of_good.lazy, 5 * kChunk, kChunk).value(), of_good.Bytes(5));
  for (const auto& one : dead) one->Release();
  for (int i = 0; i < 10; ++i) ExpectRight(layers[i], hanging[i]);
}

TEST_F(HostsTest, AHostThatHangsTakesHalfOfTheMemory) {
  options_.fetch_threads = 64;
  options_.max_memory_bytes = 20 * kJobMemory;
  Open();
  const auto dead = MakeSource("dead");
  const auto good = MakeSource("good");
  const Made of_dead = AddIndexed(dead, 512);
  const Made of_good = AddIndexed(good, 256);
  dead->Hold();
  good->Hold();
  const auto hanging = StartReads(of_dead, 80);
  ASSERT_TRUE(dead->AwaitHeld(10));
  const auto served = StartReads(of_good, 40);
  ASSERT_TRUE(good->AwaitHeld(5));  // three quarters are for hosts that have something already
  good->Release();
  ExpectRight(of_good, served);
  EXPECT_EQ(dead->held(), 10);
  dead->Release();
  ExpectRight(of_dead, hanging);
}

TEST_F(HostsTest, AJobThatNeedsMoreThanAllMemoryKeepsNobodyOut) {
  options_.max_memory_bytes = 6 << 20;  // a job of one of the large chunks takes 8.5 MiB
  Open();
  const auto dead = MakeSource("dead");
  const auto next = MakeSource("next");
  const auto good = MakeSource("good");
  const Made first = AddLargeChunks(dead, 1);
  const Made second = AddLargeChunks(next, 2);
  const Made of_good = AddIndexed(good);
  dead->Hold();
  next->Hold();
  const auto hanging = StartRead(*first.lazy, 0, 100);
  ASSERT_TRUE(dead->AwaitHeld(1));
  const auto waiting = StartRead(*second.lazy, 0, 100);
  EXPECT_TRUE(Same(Read(*of_good.lazy, 5 * kChunk, kChunk).value_or("unreadable"), of_good.Bytes(5)))
      << "neither what runs nor what waits stands in its way";
  EXPECT_EQ(next->held(), 0);
  dead->Release();
  ASSERT_TRUE(next->AwaitHeld(1)) << "now it is its turn";
  next->Release();
  for (const auto& [read, made] : {std::pair(hanging, &first), std::pair(waiting, &second)}) {
    ASSERT_TRUE(read->Await());
    EXPECT_TRUE(Same(read->bytes(), made->data.substr(0, 100))) << read->status();
  }
}

TEST_F(HostsTest, AThousandMissesStayWithinTheMemoryAndTheirDeadlines) {
  options_.fetch_threads = 64;
  options_.max_memory_bytes = 20 * kJobMemory;
  Open();
  const auto source = MakeSource("slow");
  const Made made = AddIndexed(source, 1000 * kStride);
  source->Hold();
  FetchContext context;
  context.deadline = clock_.Monotonic() + absl::Seconds(10);
  const auto reads = StartReads(made, 1000, context);
  ASSERT_TRUE(source->AwaitHeld(10));
  EXPECT_EQ(source->held(), 10);
  const size_t before = source->request_count();
  ASSERT_TRUE(source->ReleaseOne());
  ASSERT_TRUE(source->AwaitRequests(before + 1));  // the next one takes its place, when this one is over
  clock_.Advance(absl::Seconds(11));
  uint64_t right = 0;
  for (uint64_t i = 0; i < reads.size(); ++i) {
    ASSERT_TRUE(reads[i]->Await()) << i;
    if (reads[i]->status().ok()) {
      EXPECT_TRUE(Same(reads[i]->bytes(), made.Bytes(i * kStride)));
      ++right;
    } else {
      EXPECT_TRUE(absl::IsDeadlineExceeded(reads[i]->status())) << reads[i]->status();
    }
  }
  EXPECT_EQ(right, 1);
}

TEST_F(HostsTest, ALayerWithManyMissesDoesNotPutOffAnotherOfItsHost) {
  options_.fetch_threads = 2;
  Open();
  const auto source = MakeSource("registry");
  const Made busy = AddIndexed(source, 256);
  const Made other = AddIndexed(source);
  source->Hold();
  const auto many = StartReads(busy, 40);
  ASSERT_TRUE(source->AwaitHeld(2));
  const size_t before = source->request_count();
  const auto one = StartReads(other, 1);
  ASSERT_TRUE(source->ReleaseOne());
  ASSERT_TRUE(source->AwaitRequests(before + 1));
  EXPECT_EQ(source->requests()[before].digest, other.layer.descriptor.digest);
  source->Release();
  ExpectRight(other, one);
  ExpectRight(busy, many);
}

TEST_F(HostsTest, IndexingLayersOfAHostThatHangsDoesNotPutOffOthers) {
  Open();
  const auto dead = MakeSource("dead");
  const auto good = MakeSource("good");
  dead->Hold();
  std::vector<Made> layers;
  for (int i = 0; i < 12; ++i) layers.push_back(Add(*dead, dead, 8));
  const auto cancel = std::make_shared<base::CancelToken>();
  std::vector<std::thread> callers;
  callers.reserve(layers.size());
  for (const Made& made : layers) {
    callers.emplace_back([this, &made, &cancel] {
      FetchContext context;
      context.cancel = cancel;
      EXPECT_TRUE(absl::IsCancelled(store_->EnsureIndexed(*made.lazy, false, context, {})));
    });
  }
  EXPECT_TRUE(dead->AwaitHeld(8));
  const Made of_good = AddIndexed(good);
  EXPECT_EQ(of_good.lazy->state(), LayerState::kLazy);
  EXPECT_EQ(dead->held(), 8);
  cancel->Cancel();
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace lazyblob::contentstore
