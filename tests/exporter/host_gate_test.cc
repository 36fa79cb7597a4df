#include "exporter/host_gate.h"

#include <gtest/gtest.h>

#include <future>
#include <thread>
#include <vector>

#include "exporter/internal/claims.h"

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

TEST(HostGate, SmallerOnesTakeNoMoreSlotsThanTheyNeedToEndWithTheLargest) {
  HostGate gate;
  auto largest = gate.Begin("h", Priority::kImage);
  auto one = gate.Begin("h", Priority::kImage);
  auto two = gate.Begin("h", Priority::kImage);
  ASSERT_TRUE(largest->Acquire(kChunk, nullptr, 10 * kChunk).ok());
  ASSERT_TRUE(one->Acquire(kChunk, nullptr, 4 * kChunk).ok());
  auto waiting = std::async(std::launch::async, [&] { return two->Acquire(kChunk, nullptr, 3 * kChunk); });
  EXPECT_FALSE(IsReady(waiting));
  largest->Release(true);
  EXPECT_TRUE(largest->Acquire(kChunk, nullptr, 9 * kChunk).ok());
  EXPECT_FALSE(IsReady(waiting));
  one->Release(true);
  EXPECT_TRUE(waiting.get().ok());
  // With more to send than the largest has, they take a second one.
  largest->Release(true);
  ASSERT_TRUE(largest->Acquire(kChunk, nullptr, 5 * kChunk).ok());
  EXPECT_TRUE(one->Acquire(kChunk, nullptr, 3 * kChunk).ok());
}

TEST(HostGate, WhileAnImageGoesElsewhereACacheHasOneSlot) {
  HostGate gate;
  auto image = gate.Begin("a", Priority::kImage);
  auto one = gate.Begin("b", Priority::kCache);
  auto two = gate.Begin("b", Priority::kCache);
  ASSERT_TRUE(image->Acquire(kChunk, nullptr).ok());
  ASSERT_TRUE(one->Acquire(kChunk, nullptr).ok());
  auto waiting = AcquireLater(two.get(), kChunk);
  EXPECT_FALSE(IsReady(waiting));
  image->Release(false);
  EXPECT_TRUE(waiting.get().ok());
}

TEST(HostGate, OfWhatNobodyKnowsTheSizeEveryoneGoesInTurn) {
  HostGate gate({.slots = 2});
  auto known = gate.Begin("h", Priority::kImage);
  auto unknown = gate.Begin("h", Priority::kImage);
  auto later = gate.Begin("h", Priority::kImage);
  ASSERT_TRUE(known->Acquire(kChunk, nullptr, 10 * kChunk).ok());
  ASSERT_TRUE(unknown->Acquire(kChunk, nullptr).ok());
  auto waiting = std::async(std::launch::async, [&] { return later->Acquire(kChunk, nullptr, kChunk); });
  known->Release(false);
  EXPECT_TRUE(waiting.get().ok());
}

TEST(Claims, WhoSendsIsWorthWhatThoseWhoWaitAreWorth) {
  HostGate gate;
  internal::Claims claims;
  internal::Claims::Party owner;
  internal::Claims::Party image;
  claims.SetPriority(&image, Priority::kImage);
  const auto transfer = gate.Begin("h", Priority::kCache);
  claims.SetTransfer(&owner, transfer.get());
  const internal::Claims::Key key("h", "blob");
  base::CancelToken never;
  ASSERT_EQ(claims.Acquire(key, &owner, true, &never), internal::Claims::Answer::kMine);
  base::CancelToken leaves;
  auto waiting = std::async(std::launch::async, [&] { return claims.Acquire(key, &image, true, &leaves); });
  while (transfer->priority() == Priority::kCache) std::this_thread::yield();
  leaves.Cancel();
  EXPECT_EQ(waiting.get(), internal::Claims::Answer::kCancelled);
  EXPECT_EQ(transfer->priority(), Priority::kCache);
  waiting = std::async(std::launch::async, [&] { return claims.Acquire(key, &image, true, &never); });
  while (transfer->priority() == Priority::kCache) std::this_thread::yield();
  claims.Release(key, &owner);
  EXPECT_EQ(waiting.get(), internal::Claims::Answer::kReleased);
  EXPECT_EQ(transfer->priority(), Priority::kCache);
  claims.SetTransfer(&owner, nullptr);
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
