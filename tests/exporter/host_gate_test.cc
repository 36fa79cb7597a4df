#include "exporter/host_gate.h"

#include <gtest/gtest.h>

#include <future>
#include <thread>
#include <vector>

namespace lazyblob::exporter {
namespace {

constexpr uint64_t kChunk = 8 << 20;
constexpr uint64_t kSmall = 1000;

bool IsReady(std::future<absl::Status>& future) {
  return future.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

std::future<absl::Status> AcquireLater(HostGate::Transfer* transfer, uint64_t bytes,
                                       base::CancelToken* cancel = nullptr) {
  return std::async(std::launch::async, [=] { return transfer->Acquire(bytes, cancel); });
}

TEST(HostGate, AHostHasSoManySlotsAndOthersHaveTheirOwn) {
  HostGate gate({.slots = 2});
  auto a = gate.Begin("h", Priority::kImage);
  auto b = gate.Begin("h", Priority::kImage);
  auto c = gate.Begin("h", Priority::kImage);
  auto d = gate.Begin("other", Priority::kImage);
  EXPECT_TRUE(a->Acquire(kChunk, nullptr).ok());
  EXPECT_TRUE(b->Acquire(kChunk, nullptr).ok());
  EXPECT_TRUE(d->Acquire(kChunk, nullptr).ok());
  auto waiting = AcquireLater(c.get(), kChunk);
  EXPECT_FALSE(IsReady(waiting));
  a->Release(false);
  EXPECT_TRUE(waiting.get().ok());
}

TEST(HostGate, SmallBodiesHaveALaneOfTheirOwn) {
  HostGate gate({.slots = 1});
  auto layer = gate.Begin("h", Priority::kImage);
  auto manifest = gate.Begin("h", Priority::kImage);
  EXPECT_TRUE(layer->Acquire(kChunk, nullptr).ok());
  EXPECT_TRUE(manifest->Acquire(kSmall, nullptr).ok());
}

TEST(HostGate, ACacheChunkWaitsWhileImageBytesAreAtHand) {
  HostGate gate({.slots = 4});
  auto image = gate.Begin("h", Priority::kImage);
  auto cache = gate.Begin("h", Priority::kCache);
  EXPECT_TRUE(image->Acquire(kChunk, nullptr).ok());
  auto waiting = AcquireLater(cache.get(), kChunk);
  EXPECT_FALSE(IsReady(waiting));
  image->Release(true);  // between two chunks
  EXPECT_FALSE(IsReady(waiting));
  EXPECT_TRUE(image->Acquire(kChunk, nullptr).ok());
  EXPECT_FALSE(IsReady(waiting));
  image->Starve();  // its source has nothing: work goes on
  EXPECT_TRUE(waiting.get().ok());
}

TEST(HostGate, AnotherHostsImageDoesNotHoldACacheUp) {
  HostGate gate;
  auto image = gate.Begin("h", Priority::kImage);
  auto cache = gate.Begin("other", Priority::kCache);
  EXPECT_TRUE(image->Acquire(kChunk, nullptr).ok());
  EXPECT_TRUE(cache->Acquire(kChunk, nullptr).ok());
}

TEST(HostGate, AWaitingCacheChunkThatAnImageJoinsGoes) {
  HostGate gate;
  auto image = gate.Begin("h", Priority::kImage);
  auto cache = gate.Begin("h", Priority::kCache);
  EXPECT_TRUE(image->Acquire(kChunk, nullptr).ok());
  auto waiting = AcquireLater(cache.get(), kChunk);
  EXPECT_FALSE(IsReady(waiting));
  cache->SetPriority(Priority::kImage);
  EXPECT_TRUE(waiting.get().ok());
}

TEST(HostGate, ACacheChunkThatWaitedForLongGoesOneAtATime) {
  HostGate gate({.patience = absl::Milliseconds(1)});
  auto image = gate.Begin("h", Priority::kImage);
  auto cache = gate.Begin("h", Priority::kCache);
  auto second = gate.Begin("h", Priority::kCache);
  EXPECT_TRUE(image->Acquire(kChunk, nullptr).ok());
  EXPECT_TRUE(cache->Acquire(kChunk, nullptr).ok());
  auto waiting = AcquireLater(second.get(), kChunk);
  EXPECT_FALSE(IsReady(waiting));
  cache->Release(false);
  EXPECT_TRUE(waiting.get().ok());
}

TEST(HostGate, CancellingEndsAWait) {
  HostGate gate({.slots = 1});
  auto a = gate.Begin("h", Priority::kImage);
  auto b = gate.Begin("h", Priority::kImage);
  EXPECT_TRUE(a->Acquire(kChunk, nullptr).ok());
  base::CancelToken cancel;
  auto waiting = AcquireLater(b.get(), kChunk, &cancel);
  cancel.Cancel();
  EXPECT_TRUE(absl::IsCancelled(waiting.get()));
}

TEST(HostGate, AnOpenBodyResumesAtOnceAndASlotEndsWithItsTransfer) {
  HostGate gate({.slots = 1});
  auto open = gate.Begin("h", Priority::kImage);
  auto other = gate.Begin("h", Priority::kImage);
  EXPECT_TRUE(open->Acquire(kChunk, nullptr).ok());
  open->Starve();
  EXPECT_TRUE(other->Acquire(kChunk, nullptr).ok());
  open->Resume();
  open.reset();
  other.reset();
  auto next = gate.Begin("h", Priority::kImage);
  EXPECT_TRUE(next->Acquire(kChunk, nullptr).ok());
}

TEST(MemoryBudget, CacheUploadsGetAtMostHalf) {
  MemoryBudget budget(100);
  auto cache = budget.Acquire(50, Priority::kCache, nullptr);
  ASSERT_TRUE(cache.ok());
  base::CancelToken cancel;
  auto waiting =
      std::async(std::launch::async, [&] { return budget.Acquire(10, Priority::kCache, &cancel).status(); });
  auto image = budget.Acquire(50, Priority::kImage, nullptr);
  EXPECT_TRUE(image.ok());
  EXPECT_FALSE(IsReady(waiting));
  cancel.Cancel();
  EXPECT_TRUE(absl::IsCancelled(waiting.get()));
  EXPECT_EQ(budget.peak(), 100U);
}

TEST(MemoryBudget, WhatIsLargerThanAllGoesAlone) {
  MemoryBudget budget(100);
  auto large = budget.Acquire(1000, Priority::kImage, nullptr);
  ASSERT_TRUE(large.ok());
  auto waiting =
      std::async(std::launch::async, [&] { return budget.Acquire(10, Priority::kImage, nullptr).status(); });
  EXPECT_FALSE(IsReady(waiting));
  large->Reset();
  EXPECT_TRUE(waiting.get().ok());
}

}  // namespace
}  // namespace lazyblob::exporter
