// What gives way when the store is at its limit, and what does not: never more on the disk, right bytes
// always.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/status.h"
#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

constexpr uint64_t kChunks = 64;
// A file system's own blocks for the extents of a file with many holes.
constexpr uint64_t kExtentSlack = 2 * 4096;

class EvictionTest : public StoreTest {
 protected:
  void Start(uint64_t limit_chunks) {
    options_.max_cache_bytes = limit_chunks * kChunk;
    Open();
    for (uint64_t seed : {1, 2}) {
      made_.push_back(MakeTarLayer(kChunks, seed));
      data_.push_back(DataArea(made_.back()));
      layers_.push_back(AddIndexed(made_.back()));
    }
  }
  absl::StatusOr<std::string> ReadChunks(size_t layer, uint64_t first, uint64_t chunks = 1) {
    return Read(*layers_[layer], first * kChunk, chunks * kChunk);
  }
  std::string Bytes(size_t layer, uint64_t first, uint64_t chunks = 1) const {
    return data_[layer].substr(first * kChunk, chunks * kChunk);
  }
  std::optional<PinnedRange> Hit(size_t layer, uint64_t first, uint64_t chunks = 1) {
    return layers_[layer]->TryAcquire(first * kChunk, chunks * kChunk);
  }
  static std::string Copy(const PinnedRange& range) {
    std::string bytes(range.length(), '\0');
    EXPECT_TRUE(range.CopyTo({reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}).ok());
    return bytes;
  }
  // Twice: blocks that are just being given their place may be missing in what the file system says.
  uint64_t OnDisk(size_t layer) const { return std::max(BlocksOf(layer), BlocksOf(layer)); }
  uint64_t BlocksOf(size_t layer) const {
    uint64_t bytes = 0;
    for (const char* name : {"data", "blob", "build/data"}) {
      struct stat st{};
      if (stat(LayerFile(*layers_[layer], name).c_str(), &st) == 0) {
        bytes += static_cast<uint64_t>(st.st_blocks) * 512;
      }
    }
    return bytes;
  }
  uint64_t OnDisk() const {
    uint64_t bytes = 0;
    for (size_t i = 0; i < layers_.size(); ++i) bytes += OnDisk(i);
    return bytes;
  }
  void FillWith(size_t layer) {
    for (uint64_t i = 0; i < kChunks; ++i) ASSERT_TRUE(Same(ReadChunks(layer, i).value(), Bytes(layer, i)));
  }

  void ReadFromManyThreads(size_t layers) {
    std::atomic<int> wrong{0};
    std::vector<std::thread> readers;
    for (uint64_t seed = 0; seed < 6; ++seed) {
      readers.emplace_back([&, seed] {
        std::mt19937_64 random(seed);
        for (int i = 0; i < 400; ++i) {
          const size_t layer = random() % layers;
          const uint64_t length = 1 + random() % (3 * kChunk);
          // Half of them where others read too.
          const uint64_t span = random() % 2 == 0 ? 8 * kChunk : data_[layer].size() - length;
          const uint64_t offset = random() % span;
          const absl::StatusOr<std::string> bytes = Read(*layers_[layer], offset, length);
          if (!bytes.ok() || *bytes != data_[layer].substr(offset, length)) ++wrong;
        }
      });
    }
    for (std::thread& reader : readers) reader.join();
    EXPECT_EQ(wrong, 0);
  }

  std::vector<support::Layer> made_;
  std::vector<std::string> data_;
  std::vector<std::shared_ptr<LazyLayer>> layers_;
};

TEST_F(EvictionTest, TheLimitHoldsWhateverIsRead) {
  Start(40);
  uint64_t most = 0;
  for (int round = 0; round < 3; ++round) {
    for (uint64_t i = 0; i < kChunks; ++i) {
      for (size_t layer : {0, 1}) {
        ASSERT_TRUE(Same(ReadChunks(layer, i).value(), Bytes(layer, i)));
        // Two files are looked at one after the other: what is read ahead may move from one to the other.
        uint64_t now = OnDisk();
        for (int again = 0; again < 10 && now > options_.max_cache_bytes; ++again) {
          now = std::min(now, OnDisk());
        }
        most = std::max(most, now);
      }
    }
  }
  EXPECT_LE(most, options_.max_cache_bytes + kExtentSlack);
  EXPECT_GE(most, options_.max_cache_bytes / 2);
  EXPECT_GE(TimesRequested(0), 3);  // of both layers: evicted and fetched again
  EXPECT_LE(layers_[0]->stats().cached_bytes + layers_[1]->stats().cached_bytes, options_.max_cache_bytes);
}

TEST_F(EvictionTest, ChunksNotUsedForLongestGoFirst) {
  Start(24);
  // Not in a row, here and below: nothing is read ahead.
  for (uint64_t i = 10; i-- > 0;) ASSERT_TRUE(ReadChunks(0, i).ok());
  const auto chunk = [](uint64_t i) { return i * 37 % kChunks; };
  for (uint64_t i = 0; i < kChunks; ++i) {
    ASSERT_TRUE(Hit(0, 3).has_value()) << i;
    ASSERT_TRUE(ReadChunks(1, chunk(i)).ok());
  }
  EXPECT_TRUE(Hit(0, 3).has_value());
  EXPECT_FALSE(Hit(0, 2).has_value());
  EXPECT_FALSE(Hit(1, chunk(0)).has_value());
  EXPECT_TRUE(Hit(1, chunk(kChunks - 1)).has_value());
}

TEST_F(EvictionTest, PinnedBytesStay) {
  Start(24);
  ASSERT_TRUE(ReadChunks(0, 5, 4).ok());
  std::optional<PinnedRange> pinned = Hit(0, 5, 4);
  ASSERT_TRUE(pinned.has_value());
  for (int round = 0; round < 2; ++round) FillWith(1);
  EXPECT_FALSE(pinned->in_memory());
  EXPECT_TRUE(Same(Copy(*pinned), Bytes(0, 5, 4)));
  pinned.reset();
  FillWith(1);
  EXPECT_FALSE(Hit(0, 5).has_value());
}

TEST_F(EvictionTest, WhereAllIsPinnedReadsAreServedFromMemory) {
  Start(16);
  std::vector<PinnedRange> pinned;
  // Not in a row: nothing is read ahead that would take a chunk's place before it is pinned.
  for (uint64_t i = 0; i < 14; ++i) {
    const uint64_t chunk = i * 37 % kChunks;
    ASSERT_TRUE(ReadChunks(0, chunk).ok());
    if (auto hit = Hit(0, chunk)) pinned.push_back(*std::move(hit));
  }
  ASSERT_GE(pinned.size(), 12);
  for (uint64_t i = 0; i < 20; ++i) {
    const auto read = StartRead(*layers_[1], i * kChunk, kChunk);
    ASSERT_TRUE(read->Await());
    ASSERT_TRUE(read->status().ok()) << read->status();
    EXPECT_TRUE(Same(read->bytes(), Bytes(1, i)));
  }
  EXPECT_LE(OnDisk(), options_.max_cache_bytes + kExtentSlack);
  const std::vector<std::string> log = Log();
  ASSERT_EQ(log.size(), 1);
  EXPECT_TRUE(absl::StrContains(log[0], "cache.max_bytes")) << log[0];
  for (const PinnedRange& range : pinned) {
    EXPECT_TRUE(Same(Copy(range), data_[0].substr(range.offset(), range.length())));
  }
}

TEST_F(EvictionTest, ReadersBesideEvictionGetRightBytes) {
  options_.fetch_threads = 8;
  Start(32);
  ReadFromManyThreads(2);
}

TEST_F(EvictionTest, TheLimitHoldsAtEveryMoment) {
  options_.fetch_threads = 8;
  Start(32);
  std::atomic<bool> reading{true};
  std::atomic<uint64_t> most{0};
  std::thread observer([&] {
    do {
      most = std::max(most.load(), BlocksOf(0));  // one file: one moment
    } while (reading);
    most = std::max(most.load(), BlocksOf(0));  // however seldom this thread ran
  });
  ReadFromManyThreads(1);
  reading = false;
  observer.join();
  EXPECT_LE(most, options_.max_cache_bytes + kExtentSlack);
  EXPECT_GE(most, options_.max_cache_bytes / 2);
}

TEST_F(EvictionTest, ARestartFindsEvictedChunksMissing) {
  Start(24);
  FillWith(0);
  FillWith(1);
  layers_.clear();
  Close();
  Open();
  for (const support::Layer& made : made_) layers_.push_back(Add(made));
  EXPECT_LE(layers_[0]->stats().cached_bytes + layers_[1]->stats().cached_bytes, options_.max_cache_bytes);
  for (size_t layer : {0, 1}) {
    EXPECT_TRUE(Same(Read(*layers_[layer], 0, data_[layer].size()).value(), data_[layer]));
    EXPECT_LE(OnDisk(), options_.max_cache_bytes + kExtentSlack);
  }
}

TEST_F(EvictionTest, ALowerLimitIsReachedWithoutReading) {
  Start(0);  // none
  FillWith(0);
  FillWith(1);
  EXPECT_GE(OnDisk(), 2 * (kChunks - 1) * kChunk);
  layers_.clear();
  Close();
  options_.max_cache_bytes = 16 * kChunk;
  options_.sync_interval = absl::Milliseconds(1);
  Open();
  for (const support::Layer& made : made_) layers_.push_back(Add(made));
  EXPECT_TRUE(Eventually([&] { return OnDisk() <= options_.max_cache_bytes; })) << OnDisk();
}

TEST_F(EvictionTest, AFullDiskIsALimitToo) {
  // The store asks until the fixture closes it.
  const auto free = std::make_shared<std::atomic<uint64_t>>(uint64_t{1} << 40);
  options_.min_free_bytes = 1 << 30;
  options_.free_bytes = [free] { return absl::StatusOr<uint64_t>(free->load()); };
  options_.sync_interval = absl::Milliseconds(1);
  Start(0);
  FillWith(0);
  const uint64_t before = OnDisk();
  ASSERT_GE(before, (kChunks - 1) * kChunk);
  *free = (1 << 30) - 16 * kChunk;  // somebody else has filled it
  EXPECT_TRUE(Eventually([&] { return OnDisk() < before - 8 * kChunk; })) << OnDisk();
  *free = 0;
  EXPECT_TRUE(Eventually([&] {
    FillWith(0);  // in the end from memory
    return OnDisk() == 0;
  })) << OnDisk();
}

TEST_F(EvictionTest, ACompleteLayerThatLosesChunksIsLazyAgain) {
  Start(kChunks + 8);
  ASSERT_TRUE(store_->Unlazy(*layers_[0], {}, {}).ok());
  ASSERT_EQ(layers_[0]->state(), LayerState::kComplete);
  FillWith(1);
  EXPECT_EQ(layers_[0]->state(), LayerState::kLazy);
  EXPECT_TRUE(Same(Read(*layers_[0], 0, data_[0].size()).value(), data_[0]));
  ASSERT_TRUE(store_->Unlazy(*layers_[0], {}, {}).ok());
  EXPECT_EQ(layers_[0]->state(), LayerState::kComplete);
  EXPECT_LE(OnDisk(), options_.max_cache_bytes + kExtentSlack);
}

TEST_F(EvictionTest, ALayerLargerThanTheLimitCannotBeMadeComplete) {
  Start(kChunks / 2);
  const absl::Status status = store_->Unlazy(*layers_[0], {}, {});
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_LE(OnDisk(), options_.max_cache_bytes + kExtentSlack);
  FillWith(1);  // nothing of it is held any longer
  FillWith(0);
}

TEST_F(EvictionTest, DataThatIsStreamedStopsAtTheLimit) {
  Start(16);
  const support::Layer made =
      support::MakeLayer(support::MakeTar({support::File("file", support::RandomBytes(kChunks * kChunk, 7))}),
                         oci::Compression::kGzip);
  const std::shared_ptr<LazyLayer> layer = Add(made);
  ASSERT_TRUE(store_->EnsureIndexed(*layer, /*keep_data=*/true, {}, {}).ok());
  EXPECT_EQ(layer->state(), LayerState::kLazy);
  EXPECT_TRUE(Same(Read(*layer, 0, layer->data_size()).value(), DataArea(made)));
}

// As a file system mounted on it has, in whatever mount namespace.
TEST_F(EvictionTest, ADataFileThatIsOpenElsewhereIsNotTouched) {
  Start(kChunks + 8);
  ASSERT_TRUE(store_->Unlazy(*layers_[0], {}, {}).ok());
  base::UniqueFd open = base::OpenFile(LayerFile(*layers_[0], "data"), O_RDONLY).value();
  const uint64_t before = OnDisk(0);
  FillWith(1);
  EXPECT_EQ(OnDisk(0), before);
  EXPECT_EQ(layers_[0]->state(), LayerState::kComplete);
  std::vector<uint8_t> bytes(data_[0].size());
  ASSERT_TRUE(base::PreadFull(open.get(), 0, absl::MakeSpan(bytes)).ok());
  EXPECT_TRUE(Same({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, data_[0]));
  open.Reset();
  FillWith(1);
  EXPECT_LT(OnDisk(0), before);
}

TEST_F(EvictionTest, ALayerPinnedForItsMountStaysAndIsCounted) {
  options_.max_pinned_bytes = (kChunks + 8) * kChunk;
  Start(2 * kChunks + 20);
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->PinForMount(*layers_[0], false).status()));
  for (const auto& layer : layers_) ASSERT_TRUE(store_->Unlazy(*layer, {}, {}).ok());
  auto pin = store_->PinForMount(*layers_[0], false);
  ASSERT_TRUE(pin.ok()) << pin.status();
  EXPECT_TRUE(store_->PinForMount(*layers_[0], false).ok());  // the same bytes
  EXPECT_TRUE(absl::IsResourceExhausted(store_->PinForMount(*layers_[1], false).status()));
  EXPECT_TRUE(store_->PinForMount(*layers_[1], /*mounted=*/true).ok());
  const uint64_t before = OnDisk(0);
  made_.push_back(MakeTarLayer(kChunks, 3));
  data_.push_back(DataArea(made_.back()));
  layers_.push_back(AddIndexed(made_.back()));
  FillWith(2);
  EXPECT_EQ(OnDisk(0), before);
  EXPECT_EQ(layers_[0]->state(), LayerState::kComplete);
  EXPECT_EQ(layers_[1]->state(), LayerState::kLazy);
  *pin = nullptr;
  FillWith(1);
  EXPECT_EQ(layers_[0]->state(), LayerState::kLazy);
}

TEST_F(EvictionTest, KeptBlobsGoFirst) {
  options_.blob_idle = absl::ZeroDuration();
  Start(2 * kChunks + 20);
  FillWith(0);
  const absl::StatusOr<std::string> blob = store_->KeepBlob(*layers_[0], {}, {});
  ASSERT_TRUE(blob.ok()) << blob.status();
  const auto there = [&] { return access(blob->c_str(), F_OK) == 0; };
  ASSERT_TRUE(there());
  // Its spool goes a moment after the last reader; until then chunks do.
  EXPECT_TRUE(Eventually([&] {
    for (size_t layer : {0, 1}) FillWith(layer);
    return !there();
  }));
  for (size_t layer : {0, 1}) FillWith(layer);
  ForgetRequests();
  for (size_t layer : {0, 1}) FillWith(layer);
  EXPECT_EQ(RequestCount(), 0);
  EXPECT_LE(OnDisk(), options_.max_cache_bytes + kExtentSlack);
}

TEST_F(EvictionTest, ABlobThatHasNoRoomIsReadButNotKept) {
  Start(16);
  FetchContext context;
  context.keep_blob = true;
  std::string read;
  std::vector<uint8_t> block(16 << 10);
  while (true) {
    const absl::StatusOr<size_t> got =
        store_->ReadBlob(*layers_[0], read.size(), absl::MakeSpan(block), context);
    ASSERT_TRUE(got.ok()) << got.status();
    if (*got == 0) break;
    read.append(reinterpret_cast<const char*>(block.data()), *got);
  }
  EXPECT_TRUE(Same(read, made_[0].blob));
  EXPECT_TRUE(Eventually([&] { return !Log().empty(); }));
  EXPECT_NE(access(LayerFile(*layers_[0], "blob").c_str(), F_OK), 0);
}

TEST_F(EvictionTest, WhereNoHolesCanBeMadeReadsGoOn) {
  Start(16);
  base::ScopedFault broken("contentstore.evict.punch", [] { return base::ErrnoStatus(EOPNOTSUPP, "punch"); });
  FillWith(0);
  FillWith(1);
  EXPECT_LE(OnDisk(), options_.max_cache_bytes + kExtentSlack);
}

TEST_F(EvictionTest, AMarkThatCannotBeRemovedKeepsTheLayer) {
  Start(kChunks + 8);
  ASSERT_TRUE(store_->Unlazy(*layers_[0], {}, {}).ok());
  const uint64_t before = OnDisk(0);
  base::ScopedFault broken("contentstore.evict.mark", [] { return base::ErrnoStatus(EIO, "sync"); });
  FillWith(1);
  EXPECT_EQ(OnDisk(0), before);
}

}  // namespace
}  // namespace lazyblob::contentstore
