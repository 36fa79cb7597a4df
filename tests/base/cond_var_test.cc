// base/cond_var.h

#include "base/cond_var.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/file.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::base {
namespace {

constexpr absl::Duration kShort = absl::Milliseconds(20);
constexpr absl::Duration kPatience = absl::Minutes(1);  // only ends what hangs
constexpr char kTraced[] = "LAZYBLOB_TRACED_WAIT";

TEST(CondVar, WaitsForTheWholeTime) {
  absl::Mutex mutex;
  CondVar changed;
  const absl::MutexLock lock(&mutex);
  const absl::Duration start = SystemClock().Monotonic();
  while (!changed.WaitFor(&mutex, kShort)) continue;
  EXPECT_GE(SystemClock().Monotonic() - start, kShort);
  EXPECT_FALSE(changed.AwaitFor(&mutex, [] { return false; }, kShort));
  EXPECT_GE(SystemClock().Monotonic() - start, 2 * kShort);
  mutex.AssertHeld();
}

TEST(CondVar, TimesThatAreOverDoNotWait) {
  absl::Mutex mutex;
  CondVar changed;
  const absl::MutexLock lock(&mutex);
  EXPECT_TRUE(changed.WaitFor(&mutex, absl::ZeroDuration()));
  EXPECT_TRUE(changed.WaitFor(&mutex, -absl::InfiniteDuration()));
  EXPECT_FALSE(changed.AwaitFor(&mutex, [] { return false; }, -absl::InfiniteDuration()));
  EXPECT_TRUE(changed.AwaitFor(&mutex, [] { return true; }, -absl::InfiniteDuration()));
}

// Each of `durations` is longer than any test: what ends the wait is the signal.
TEST(CondVar, ASignalEndsWaitsOfAnyLength) {
  for (const absl::Duration duration :
       {kPatience, absl::Hours(24 * 365 * 50), absl::Hours(24 * 365 * 1000), absl::InfiniteDuration()}) {
    absl::Mutex mutex;
    CondVar changed;
    bool waiting = false;
    bool set = false;
    std::thread other([&] {
      // Taken only once the waiter has let it go.
      const absl::MutexLock lock(&mutex, absl::Condition(&waiting));
      set = true;
      changed.Signal();
    });
    {
      const absl::MutexLock lock(&mutex);
      waiting = true;
      while (!set) ASSERT_FALSE(changed.WaitFor(&mutex, duration)) << duration;
    }
    other.join();
  }
}

TEST(CondVar, AllThatWaitAreWoken) {
  constexpr int kThreads = 8;
  absl::Mutex mutex;
  CondVar changed;
  int waiting = 0;
  int woken = 0;
  bool set = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      const absl::MutexLock lock(&mutex);
      ++waiting;
      if (changed.AwaitFor(&mutex, [&] { return set; }, absl::InfiniteDuration())) ++woken;
    });
  }
  {
    const auto all = [&] { return waiting == kThreads; };
    const absl::MutexLock lock(&mutex, absl::Condition(&all));
    set = true;
    changed.SignalAll();
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(woken, kThreads);
}

TEST(CondVar, NoSignalIsMissed) {
  constexpr int kTurns = 20'000;
  absl::Mutex mutex;
  CondVar changed;
  int turn = 0;
  const auto play = [&](int mine) {
    const absl::MutexLock lock(&mutex);
    while (turn < kTurns) {
      if (turn % 2 == mine) {
        ++turn;
        changed.Signal();
      } else {
        ASSERT_FALSE(changed.WaitFor(&mutex, kPatience)) << "at turn " << turn;
      }
    }
    changed.SignalAll();
  };
  std::thread other([&] { play(1); });
  play(0);
  other.join();
  EXPECT_EQ(turn, kTurns);
}

TEST(CondVar, SleepsEndWhenTheyAreCancelled) {
  EXPECT_FALSE(SleepUnlessCancelled(kShort, nullptr));
  CancelToken token;
  EXPECT_FALSE(SleepUnlessCancelled(kShort, &token));
  std::thread other([&] { token.Cancel(); });
  EXPECT_TRUE(SleepUnlessCancelled(absl::InfiniteDuration(), &token));
  other.join();
  EXPECT_TRUE(SleepUnlessCancelled(absl::InfiniteDuration(), &token));
}

// Timed waits of this program's test KernelCalls.`which` as strace saw them: nothing where it cannot be run.
std::vector<std::string> TracedWaits(const std::string& which) {
  const support::TempDir directory;
  const std::string output = directory.File("calls");
  const std::string filter = "--gtest_filter=KernelCalls." + which;
  std::string program(4096, '\0');
  program.resize(static_cast<size_t>(readlink("/proc/self/exe", program.data(), program.size())));
  const pid_t child = fork();
  if (child == 0) {
    setenv(kTraced, "1", 1);
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);  // does not work in a process that is traced
    execlp("strace", "strace", "-f", "-qq", "-e", "trace=futex", "-o", output.c_str(), program.c_str(),
           filter.c_str(), nullptr);
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0) << "strace (deploy/install-deps.sh installs it) or what it ran has failed";
  const std::string calls = ReadFile(output, 64 << 20).value_or("");
  std::vector<std::string> waits;
  for (const absl::string_view call : absl::StrSplit(calls, '\n')) {
    if (absl::StrContains(call, "FUTEX_WAIT") && absl::StrContains(call, "tv_sec=")) waits.emplace_back(call);
  }
  return waits;
}

size_t OnTheWallClock(const std::vector<std::string>& waits) {
  size_t count = 0;
  for (const std::string& wait : waits) count += absl::StrContains(wait, "FUTEX_CLOCK_REALTIME") ? 1 : 0;
  return count;
}

TEST(KernelCalls, AreForTheMonotonicClock) {
  if (getenv(kTraced) != nullptr) {
    absl::Mutex mutex;
    CondVar changed;
    {
      const absl::MutexLock lock(&mutex);
      changed.WaitFor(&mutex, kShort);
      changed.AwaitFor(&mutex, [] { return false; }, kShort);
    }
    SleepUnlessCancelled(kShort, nullptr);
    return;
  }
  const std::vector<std::string> waits = TracedWaits("AreForTheMonotonicClock");
  EXPECT_GE(waits.size(), 3u) << absl::StrJoin(waits, "\n");
  EXPECT_EQ(OnTheWallClock(waits), 0u) << absl::StrJoin(waits, "\n");
}

// What the test above would see if they were not.
TEST(KernelCalls, ForTheWallClockAreSeen) {
  if (getenv(kTraced) != nullptr) {
    std::mutex mutex;
    std::condition_variable changed;
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait_until(lock, std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kShort));
    return;
  }
  const std::vector<std::string> waits = TracedWaits("ForTheWallClockAreSeen");
  EXPECT_GE(OnTheWallClock(waits), 1u) << absl::StrJoin(waits, "\n");
}

}  // namespace
}  // namespace lazyblob::base
