// Many callers on the same few keys: each call takes effect at one moment between its beginning and its end.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "absl/synchronization/barrier.h"
#include "tests/snapshotter/snapshotter_harness.h"

namespace lazyblob::snapshotter {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr int kThreads = 64;

class SnapshotterRaceTest : public SnapshotterTest {
 protected:
  // Runs `call(thread)` on all threads at once; how many were OK. All others must have failed with `code`.
  int Winners(absl::StatusCode code, const std::function<absl::Status(int)>& call) {
    std::atomic<int> winners{0};
    auto* barrier = new absl::Barrier(kThreads);
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        if (barrier->Block()) delete barrier;
        const absl::Status status = call(i);
        if (status.ok()) {
          ++winners;
        } else {
          EXPECT_EQ(status.code(), code) << status;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return winners;
  }
};

TEST_F(SnapshotterRaceTest, OneOfManyPreparesWins) {
  MakeCommitted("base");
  EXPECT_EQ(Winners(absl::StatusCode::kAlreadyExists,
                    [&](int i) {
                      return i % 2 == 0 ? Prepare("key", "base").status()
                                        : snapshotter_->View("key", "base", {}).status();
                    }),
            1);
  EXPECT_THAT(Names(), ElementsAre("base", "key"));
  EXPECT_THAT(Directories(), SizeIs(2));
}

TEST_F(SnapshotterRaceTest, OneOfManyCommitsWins) {
  ASSERT_TRUE(Prepare("key").ok());
  // The others find no key any more.
  EXPECT_EQ(
      Winners(absl::StatusCode::kNotFound, [&](int i) { return Commit(absl::StrCat("name", i), "key"); }), 1);
  EXPECT_THAT(Names(), SizeIs(1));
  for (int i = 0; i < kThreads; ++i) ASSERT_TRUE(Prepare(absl::StrCat("key", i)).ok());
  EXPECT_EQ(Winners(absl::StatusCode::kAlreadyExists,
                    [&](int i) { return Commit("name", absl::StrCat("key", i)); }),
            1);
}

TEST_F(SnapshotterRaceTest, OneOfManyRemovesWins) {
  MakeCommitted("a");
  EXPECT_EQ(Winners(absl::StatusCode::kNotFound, [&](int) { return snapshotter_->Remove("a"); }), 1);
  EXPECT_THAT(Directories(), IsEmpty());
}

TEST_F(SnapshotterRaceTest, AParentIsRemovedOrHasAChildNeverBoth) {
  for (int round = 0; round < 20; ++round) {
    MakeCommitted("base");
    std::atomic<int> children{0}, removed{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i) {
      threads.emplace_back([&, i] {
        if (i % 2 == 0) {
          children += Prepare(absl::StrCat("child", i), "base").ok() ? 1 : 0;
        } else {
          removed += snapshotter_->Remove("base").ok() ? 1 : 0;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE((removed == 1 && children == 0) || (removed == 0 && children == 4))
        << removed << " removed, " << children << " children";
    for (const std::string& name : Names({"kind==active"})) EXPECT_TRUE(snapshotter_->Remove(name).ok());
    for (const std::string& name : Names()) EXPECT_TRUE(snapshotter_->Remove(name).ok());
  }
  EXPECT_THAT(Directories(), IsEmpty());
}

TEST_F(SnapshotterRaceTest, ConcurrentUpdatesOfDifferentLabelsAllCount) {
  ASSERT_TRUE(Prepare("a").ok());
  EXPECT_EQ(Winners(absl::StatusCode::kOk,
                    [&](int i) {
                      Info change;
                      change.name = "a";
                      const std::string key = absl::StrCat("label", i);
                      change.labels = {{key, "1"}};
                      return snapshotter_->Update(change, {"labels." + key}).status();
                    }),
            kThreads);
  EXPECT_THAT(snapshotter_->Stat("a")->labels, SizeIs(kThreads));
}

// A counter per key, incremented by what makes the key and decremented by what unmakes it: at any moment 0 or
// 1, whatever the interleaving.
TEST_F(SnapshotterRaceTest, EveryHistoryIsOneOfSingleSteps) {
  constexpr int kKeys = 4;
  constexpr int kSteps = 60;
  MakeCommitted("base");
  std::atomic<int> made[kKeys] = {}, unmade[kKeys] = {};
  std::atomic<bool> done{false};
  std::thread cleaner([&] {
    while (!done) EXPECT_EQ(snapshotter_->Cleanup(), absl::OkStatus());
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::minstd_rand random(static_cast<unsigned>(t + 1));
      for (int step = 0; step < kSteps; ++step) {
        const int k = static_cast<int>(random() % kKeys);
        const std::string key = absl::StrCat("key", k), name = absl::StrCat("name", k);
        switch (random() % 5) {
          case 0:
          case 1: {
            auto mounts = Prepare(key, "base");
            if (mounts.ok()) ++made[k];
            EXPECT_TRUE(mounts.ok() || absl::IsAlreadyExists(mounts.status())) << mounts.status();
            break;
          }
          case 2: {
            const absl::Status status = snapshotter_->Remove(key);
            if (status.ok()) ++unmade[k];
            EXPECT_TRUE(status.ok() || absl::IsNotFound(status)) << status;
            break;
          }
          case 3: {
            // A commit of a key that is removed, or made anew, while it is measured.
            const absl::Status status = Commit(name, key);
            if (status.ok()) ++unmade[k];
            EXPECT_TRUE(status.ok() || absl::IsNotFound(status) || absl::IsAlreadyExists(status) ||
                        absl::IsAborted(status))
                << status;
            break;
          }
          default: {
            const absl::Status status = snapshotter_->Remove(name);
            EXPECT_TRUE(status.ok() || absl::IsNotFound(status)) << status;
            auto mounts = snapshotter_->Mounts(key);
            EXPECT_TRUE(mounts.ok() || absl::IsNotFound(mounts.status())) << mounts.status();
          }
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  done = true;
  cleaner.join();
  size_t alive = 1;  // base
  for (int k = 0; k < kKeys; ++k) {
    const bool exists = snapshotter_->Stat(absl::StrCat("key", k)).ok();
    EXPECT_EQ(made[k] - unmade[k], exists ? 1 : 0);
    alive += exists ? 1 : 0;
    alive += snapshotter_->Stat(absl::StrCat("name", k)).ok() ? 1 : 0;
  }
  EXPECT_THAT(Names(), SizeIs(alive));
  EXPECT_THAT(Directories(), SizeIs(alive));
}

TEST_F(SnapshotterRaceTest, LazyPullsAndRemovesKeepTheirCounts) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      for (int step = 0; step < 40; ++step) {
        const std::string ref = absl::StrCat("layer", (t + step) % 3);
        if (t % 2 == 0) {
          const absl::Status status =
              Prepare(absl::StrCat("key", t), "", LazyLabels(ref, LayerDigest(ref))).status();
          EXPECT_TRUE(absl::IsAlreadyExists(status)) << status;
        } else {
          const absl::Status status = snapshotter_->Remove(ref);
          EXPECT_TRUE(status.ok() || absl::IsNotFound(status)) << status;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::vector<std::string> left = Names();
  EXPECT_EQ(layers_->mounted(), left.size());
  EXPECT_THAT(snapshotter_->LazyMounts(), SizeIs(left.size()));
  for (const std::string& name : left) EXPECT_TRUE(snapshotter_->Remove(name).ok());
  EXPECT_EQ(layers_->mounted(), 0u);
  EXPECT_EQ(layers_->unbalanced(), 0);
}

}  // namespace
}  // namespace lazyblob::snapshotter
