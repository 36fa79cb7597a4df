// Bytes that rot, and disks that give none: what is wrong is found, is never given out again, and is fetched
// once more; a cache file is mounted by itself only when all of it was compared.

#include "contentstore/internal/scrub.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <utility>

#include <gmock/gmock.h>

#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kChunks = 32;
constexpr absl::Duration kWeek = absl::Hours(168);

class ScrubTest : public StoreTest {
 protected:
  // A complete layer in a store that is open.
  void MakeComplete() {
    Open();
    layer_ = AddComplete(made_);
  }
  // Opens the store again, as after a kill where it is not `well`.
  void Reopen(bool well) {
    layer_.reset();
    Close();
    if (!well) {
      ASSERT_EQ(unlink((options_.root + "/clean").c_str()), 0);
    }
    Open();
    layer_ = store_->Find(made_.descriptor.digest);
    ASSERT_NE(layer_, nullptr);
    ForgetRequests();
  }
  absl::Status Pin(bool mounted = false) { return store_->PinForMount(*layer_, mounted).status(); }
  // A byte becomes another.
  void Spoil(const LazyLayer& layer, uint64_t offset) {
    const absl::StatusOr<base::UniqueFd> file = base::OpenFile(LayerFile(layer, "data"), O_RDWR);
    ASSERT_TRUE(file.ok()) << file.status();
    uint8_t byte = 0;
    ASSERT_TRUE(base::PreadFull(file->get(), offset, absl::MakeSpan(&byte, 1)).ok());
    byte = static_cast<uint8_t>(byte ^ 0x10);
    ASSERT_TRUE(base::PwriteFull(file->get(), offset, absl::MakeConstSpan(&byte, 1)).ok());
  }
  std::string DataFile(const LazyLayer& layer) {
    return base::ReadFile(LayerFile(layer, "data"), 1 << 30).value_or("none");
  }
  // One over the layers of the store, without a thread. `wait` as of its options.
  Scrubber MakeScrubber(std::function<bool(absl::Duration)> wait = [](absl::Duration) { return true; }) {
    ScrubOptions options;
    options.state_path = directory_.File("scrub");
    options.interval = kWeek;
    options.bytes_per_second = rate_;
    options.clock = &clock_;
    options.log = options_.log;
    options.wait = std::move(wait);
    options.layers = [this] {
      std::vector<std::shared_ptr<Layer>> layers;
      for (const auto& layer : store_->Layers()) layers.push_back(std::static_pointer_cast<Layer>(layer));
      return layers;
    };
    return Scrubber(std::move(options));
  }
  // Makes a scrub due.
  void StartWeek(Scrubber& scrubber) {
    EXPECT_EQ(scrubber.Tend(), kWeek);
    clock_.Advance(kWeek);
  }

  const support::Layer made_ = MakeTarLayer(kChunks);
  std::shared_ptr<LazyLayer> layer_;
  uint64_t rate_ = 0;
};

TEST_F(ScrubTest, AfterAKillACompleteLayerIsComparedBeforeItIsMountedByItself) {
  MakeComplete();
  EXPECT_TRUE(Pin().ok()) << "just made and synced";
  support::Gate gate;
  base::ScopedFault held("contentstore.chunk.read", [&gate]() -> absl::Status {
    gate.Pass();
    return absl::OkStatus();
  });
  Reopen(/*well=*/true);
  EXPECT_TRUE(Pin().ok()) << "the run before ended well";
  Reopen(/*well=*/false);
  EXPECT_EQ(layer_->state(), LayerState::kComplete);
  EXPECT_TRUE(absl::IsFailedPrecondition(Pin())) << Pin();
  EXPECT_TRUE(Pin(/*mounted=*/true).ok()) << "it was mounted all the time";
  gate.Open();
  EXPECT_TRUE(Eventually([&] { return Pin().ok(); })) << Pin();
  EXPECT_THAT(Log(), IsEmpty());
  EXPECT_EQ(RequestCount(), 0u);
}

TEST_F(ScrubTest, AMarkOfARunBeforeAnotherOneThatDoesNotKnowItIsNotBelieved) {
  MakeComplete();
  const std::string presence = LayerFile(*layer_, "presence");
  layer_.reset();
  Close();
  // The other one wrote something, and left the mark where it was.
  const struct timespec later = absl::ToTimespec(absl::Now() + absl::Minutes(1));
  const struct timespec times[2] = {later, later};
  ASSERT_EQ(utimensat(AT_FDCWD, presence.c_str(), times, 0), 0);
  support::Gate gate;
  base::ScopedFault held("contentstore.chunk.read", [&gate]() -> absl::Status {
    gate.Pass();
    return absl::OkStatus();
  });
  Open();
  layer_ = store_->Find(made_.descriptor.digest);
  ASSERT_NE(layer_, nullptr);
  EXPECT_TRUE(absl::IsFailedPrecondition(Pin())) << Pin();
  gate.Open();
  EXPECT_TRUE(Eventually([&] { return Pin().ok(); })) << Pin();
}

TEST_F(ScrubTest, AStateThatCannotBeWrittenDoesNotMakeItCompareWithoutEnd) {
  Open();
  layer_ = AddIndexed(made_);
  ASSERT_TRUE(Read(*layer_, 0, kChunks * kChunk).ok());
  ASSERT_EQ(mkdir(directory_.File("scrub").c_str(), 0700), 0);  // no file can take its place
  Scrubber scrubber = MakeScrubber();
  StartWeek(scrubber);
  EXPECT_EQ(scrubber.Tend(), kWeek) << "now it has compared";
  EXPECT_EQ(scrubber.status().chunks, kChunks);
  EXPECT_EQ(scrubber.status().ended, clock_.WallTime());
  EXPECT_EQ(scrubber.Tend(), kWeek);
}

TEST_F(ScrubTest, ALayerThatCanOnlyBeReadWholeIsReadWholeAgainWhereItRots) {
  options_.limits.checkpoint_spacing = 1 << 20;
  Open();
  const support::Layer whole = support::MakeLayer(
      support::MakeTar({support::File("big", support::RandomBytes(40 << 20, 9))}), oci::Compression::kZstd);
  layer_ = Add(whole);
  ASSERT_TRUE(store_->Unlazy(*layer_, {}, {}).ok());
  ASSERT_FALSE(layer_->index()->info().random_access);
  Scrubber scrubber = MakeScrubber();
  StartWeek(scrubber);
  Spoil(*layer_, 5000);
  scrubber.Tend();
  ASSERT_EQ(scrubber.status().rotten, 1u);
  ForgetRequests();
  source_->SetDefault(support::GatedBlobSource::Fail(absl::UnavailableError("not now")));
  const absl::Status refused = Read(*layer_, 0, 10000).status();
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  const size_t asked = RequestCount();
  EXPECT_GE(asked, 1u);
  EXPECT_FALSE(Read(*layer_, 0, 10000).ok());
  EXPECT_EQ(RequestCount(), asked) << "not again at once";
  source_->SetDefault(support::GatedBlobSource::Succeed());
  clock_.Advance(absl::Seconds(4));
  ForgetRequests();
  source_->Hold();
  const auto first = StartRead(*layer_, 0, 10000);
  ASSERT_TRUE(source_->AwaitHeld(1)) << (first->ended() ? first->status().ToString() : "waits");
  const auto second = StartRead(*layer_, 100, 10000);
  source_->Release();
  for (const auto& read : {first, second}) ASSERT_TRUE(read->Await());
  EXPECT_TRUE(Same(first->bytes(), DataArea(whole).substr(0, 10000))) << first->status();
  EXPECT_TRUE(Same(second->bytes(), DataArea(whole).substr(100, 10000))) << second->status();
  EXPECT_EQ(RequestCount(), 1u);
  EXPECT_EQ(layer_->state(), LayerState::kComplete);
}

TEST_F(ScrubTest, AComparisonThatIsInterruptedIsNotDone) {
  MakeComplete();
  Reopen(/*well=*/true);  // claims, and nobody who compares them
  int left = 3;
  Scrubber interrupted = MakeScrubber([&](absl::Duration) { return left-- > 0; });
  EXPECT_FALSE(interrupted.VerifyComplete());
  Scrubber scrubber = MakeScrubber();
  EXPECT_TRUE(scrubber.VerifyComplete());
}

TEST_F(ScrubTest, ARottenChunkOfACompleteLayerIsFoundAfterAKillAndFetchedAnew) {
  MakeComplete();
  Spoil(*layer_, 5 * kChunk + 17);
  Reopen(/*well=*/false);
  ASSERT_TRUE(Eventually([&] { return layer_->stats().rotten_chunks == 1; }));
  EXPECT_EQ(layer_->state(), LayerState::kLazy);
  EXPECT_TRUE(absl::IsFailedPrecondition(Pin())) << Pin();
  EXPECT_TRUE(Same(Read(*layer_, 0, layer_->data_size()).value_or("unreadable"), DataArea(made_)));
  EXPECT_EQ(TimesRequested(5 * kChunk), 1u);
  EXPECT_EQ(RequestCount(), 1u);
  ASSERT_TRUE(Eventually([&] { return !Log().empty(); }));
  EXPECT_THAT(Log(), ElementsAre(HasSubstr("1 cached chunks do not have their SHA-256")));
  ASSERT_TRUE(store_->Unlazy(*layer_, {}, {}).ok());
  EXPECT_TRUE(Pin().ok()) << Pin();
}

TEST_F(ScrubTest, WhatRotsAfterItWasReadIsFoundByTheScrub) {
  Open();
  layer_ = AddIndexed(made_);
  ASSERT_TRUE(Read(*layer_, 0, 10 * kChunk).ok());
  ForgetRequests();
  Scrubber scrubber = MakeScrubber();
  StartWeek(scrubber);
  Spoil(*layer_, 3 * kChunk);
  ASSERT_TRUE(layer_->TryAcquire(3 * kChunk, kChunk).has_value()) << "believed until then";
  EXPECT_EQ(scrubber.Tend(), kWeek);
  EXPECT_EQ(scrubber.status().chunks, 10u);
  EXPECT_EQ(scrubber.status().bytes, 10 * kChunk);
  EXPECT_EQ(scrubber.status().rotten, 1u);
  EXPECT_EQ(scrubber.status().ended, clock_.WallTime());
  EXPECT_FALSE(layer_->TryAcquire(3 * kChunk, kChunk).has_value());
  EXPECT_TRUE(layer_->TryAcquire(0, 3 * kChunk).has_value());
  EXPECT_TRUE(
      Same(Read(*layer_, 0, 10 * kChunk).value_or("unreadable"), DataArea(made_).substr(0, 10 * kChunk)));
  EXPECT_EQ(RequestCount(), 1u);
  EXPECT_THAT(Log(), ElementsAre(HasSubstr("fetched again when they are read")));
  clock_.Advance(kWeek);
  EXPECT_EQ(scrubber.Tend(), kWeek);
  EXPECT_EQ(scrubber.status().rotten, 1u) << "no more than that";
}

TEST_F(ScrubTest, ALayerThatIsMountedByItselfHealsInItsPlace) {
  MakeComplete();
  const auto mounted = store_->PinForMount(*layer_, false);
  ASSERT_TRUE(mounted.ok());
  Scrubber scrubber = MakeScrubber();
  StartWeek(scrubber);
  Spoil(*layer_, 7 * kChunk);
  scrubber.Tend();
  EXPECT_TRUE(Same(DataFile(*layer_), DataArea(made_)));
  EXPECT_EQ(RequestCount(), 1u);
  EXPECT_THAT(Log(), ElementsAre(HasSubstr("they were fetched again, and the layer is not mounted")));
  EXPECT_TRUE(absl::IsFailedPrecondition(Pin())) << "not the next time: " << Pin();
}

TEST_F(ScrubTest, AScrubThatWasInterruptedGoesOnWhereItWas) {
  Open();
  layer_ = AddIndexed(made_);
  const std::shared_ptr<LazyLayer> other = AddIndexed(MakeTarLayer(kChunks, 2));
  for (LazyLayer* layer : {layer_.get(), other.get()}) ASSERT_TRUE(Read(*layer, 0, kChunks * kChunk).ok());
  const uint64_t of_one = kChunks;
  uint64_t left = UINT64_MAX;
  {
    Scrubber scrubber = MakeScrubber([&](absl::Duration) { return left-- > 0; });
    StartWeek(scrubber);
    left = of_one + 4;  // it is asked to end some chunks into the second layer
    scrubber.Tend();
    EXPECT_GT(scrubber.status().chunks, of_one);
    EXPECT_LT(scrubber.status().chunks, 2 * of_one);
    EXPECT_EQ(scrubber.status().ended, clock_.WallTime() - kWeek);
  }
  Scrubber scrubber = MakeScrubber();
  scrubber.Tend();
  EXPECT_EQ(scrubber.status().chunks, of_one) << "the second layer";
  EXPECT_EQ(scrubber.status().ended, clock_.WallTime());
}

TEST_F(ScrubTest, ItTakesItsTimeAndReadersComeFirst) {
  const support::Layer large = MakeTarLayer(600, 3);  // of more than 2 MiB
  Open();
  layer_ = AddIndexed(large);
  ASSERT_TRUE(Read(*layer_, 0, 600 * kChunk).ok());
  rate_ = 1 << 20;
  absl::Duration waited;
  bool reading = false;
  Scrubber scrubber = MakeScrubber([&](absl::Duration duration) {
    waited += duration;
    if (reading) layer_->TryAcquire(0, kChunk);
    return true;
  });
  StartWeek(scrubber);
  scrubber.Tend();
  EXPECT_GE(waited, absl::Seconds(2));
  EXPECT_LT(waited, absl::Seconds(3));
  clock_.Advance(kWeek);
  reading = true;
  waited = absl::ZeroDuration();
  scrubber.Tend();
  EXPECT_GE(waited, absl::Seconds(4)) << "it waits for readers, too";
  EXPECT_LT(waited, absl::Seconds(5)) << "not for ever";
}

TEST_F(ScrubTest, AClockThatJumpsBackDoesNotStopIt) {
  Open();
  Scrubber scrubber = MakeScrubber();
  StartWeek(scrubber);
  clock_.SetWallTime(clock_.WallTime() - absl::Hours(24 * 365));
  EXPECT_EQ(scrubber.Tend(), kWeek);
}

TEST_F(ScrubTest, ADiskThatCannotBeReadIsAMiss) {
  Open();
  layer_ = AddIndexed(made_);
  ASSERT_TRUE(Read(*layer_, 0, kChunks * kChunk).ok());
  Reopen(/*well=*/true);
  {
    base::ScopedFault broken("contentstore.chunk.read", [] { return base::ErrnoStatus(EIO, "read"); });
    const auto read = StartRead(*layer_, 0, 4 * kChunk);
    ASSERT_TRUE(read->Await());
    EXPECT_TRUE(Same(read->bytes(), DataArea(made_).substr(0, 4 * kChunk))) << read->status();
    EXPECT_TRUE(read->in_memory()) << "it would not give what was stored either";
  }
  EXPECT_GE(RequestCount(), 1u);
  EXPECT_GE(layer_->stats().rotten_chunks, 4u);
  EXPECT_TRUE(Read(*layer_, 20 * kChunk, kChunk).ok());
  EXPECT_TRUE(layer_->TryAcquire(20 * kChunk, kChunk).has_value()) << "the disk works again";
}

TEST_F(ScrubTest, WhatIsDoubtedIsComparedAndFetchedWhereItCannotBeRead) {
  Open();
  layer_ = AddIndexed(made_);
  ASSERT_TRUE(Read(*layer_, 0, 8 * kChunk).ok());
  ForgetRequests();
  layer_->Doubt(2 * kChunk, kChunk);
  EXPECT_FALSE(layer_->TryAcquire(2 * kChunk, kChunk).has_value());
  EXPECT_TRUE(Read(*layer_, 2 * kChunk, kChunk).ok());
  EXPECT_EQ(RequestCount(), 0u) << "it could be read after all";
  layer_->Doubt(2 * kChunk, kChunk);
  base::ScopedFault broken("contentstore.chunk.read", [] { return base::ErrnoStatus(EIO, "read"); });
  EXPECT_TRUE(Same(Read(*layer_, 2 * kChunk, kChunk).value_or("unreadable"),
                   DataArea(made_).substr(2 * kChunk, kChunk)));
  EXPECT_EQ(RequestCount(), 1u);
}

TEST_F(ScrubTest, ALayerThatMayNotBeParsedIsRefusedAndOthersAreNot) {
  const support::Layer poison = MakeTarLayer(kChunks, 9);
  options_.may_parse = [&](const base::Digest& digest) {
    return digest == poison.descriptor.digest ? absl::FailedPreconditionError("crashed 3 times")
                                              : absl::OkStatus();
  };
  Open();
  const std::shared_ptr<LazyLayer> bad = Add(poison);
  for (const absl::Status& status : {store_->EnsureIndexed(*bad, true, {}, {}),
                                     store_->EnsureIndexedFromToc(*bad, {}), store_->Unlazy(*bad, {}, {})}) {
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("crashed 3 times"));
  }
  EXPECT_EQ(bad->not_lazy_reason(), kReasonCrashed);
  EXPECT_EQ(RequestCount(), 0u);
  std::string blob(poison.blob.size(), '\0');
  EXPECT_TRUE(store_->ReadBlob(*bad, 0, {reinterpret_cast<uint8_t*>(blob.data()), blob.size()}, {}).ok())
      << "its bytes can be had: containerd unpacks it";
  layer_ = AddIndexed(made_);
  EXPECT_TRUE(Read(*layer_, 0, kChunk).ok());
}

}  // namespace
}  // namespace lazyblob::contentstore
