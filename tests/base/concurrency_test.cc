// base/cancel.h, base/thread_pool.h, base/fault.h

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <thread>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "base/cancel.h"
#include "base/fault.h"
#include "base/thread_pool.h"

namespace lazyblob::base {
namespace {

TEST(Cancel, RunsEveryCallbackOnce) {
  CancelToken token;
  int first = 0;
  int second = 0;
  auto a = token.OnCancel([&] { ++first; });
  auto b = token.OnCancel([&] { ++second; });
  EXPECT_FALSE(token.cancelled());
  token.Cancel();
  token.Cancel();
  EXPECT_TRUE(token.cancelled());
  EXPECT_EQ(first, 1);
  EXPECT_EQ(second, 1);
}

TEST(Cancel, LateRegistrationsRunAtOnceAndEndedOnesNever) {
  CancelToken token;
  int ended = 0;
  {
    auto registration = token.OnCancel([&] { ++ended; });
  }
  {
    auto moved_from = token.OnCancel([&] { ++ended; });
    CancelToken::Registration moved = std::move(moved_from);
  }
  token.Cancel();
  EXPECT_EQ(ended, 0);
  int late = 0;
  auto registration = token.OnCancel([&] { ++late; });
  EXPECT_EQ(late, 1);
}

TEST(Cancel, EndingARegistrationWaitsForItsCallback) {
  CancelToken token;
  absl::Notification in_callback;
  absl::Notification go_on;
  std::atomic<bool> finished{false};
  auto registration = std::make_unique<CancelToken::Registration>(token.OnCancel([&] {
    in_callback.Notify();
    go_on.WaitForNotification();
    finished = true;
  }));
  std::thread canceller([&] { token.Cancel(); });
  in_callback.WaitForNotification();
  std::thread opener([&] { go_on.Notify(); });
  registration.reset();
  EXPECT_TRUE(finished);
  canceller.join();
  opener.join();
}

TEST(ThreadPoolTest, RunsInOrderAndDrains) {
  std::vector<int> order;
  {
    ThreadPool pool("test-pool-with-a-long-name", 1);
    for (int i = 0; i < 100; ++i) pool.Schedule([&order, i] { order.push_back(i); });
  }
  ASSERT_EQ(order.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

TEST(ThreadPoolTest, TasksOfAKeyThatHangLeaveThreadsToOthers) {
  absl::Notification go_on;
  absl::BlockingCounter hanging(3);
  absl::Notification other;
  std::atomic<int> ended{0};
  {
    ThreadPool pool("keys", 8, 3);
    for (int i = 0; i < 20; ++i) {
      pool.Schedule("dead", [&, i] {
        if (i < 3) hanging.DecrementCount();
        go_on.WaitForNotification();
        ++ended;
      });
    }
    hanging.Wait();
    pool.Schedule("good", [&] { other.Notify(); });
    EXPECT_TRUE(other.WaitForNotificationWithTimeout(absl::Seconds(60)));
    EXPECT_EQ(ended, 0);
    go_on.Notify();
  }
  EXPECT_EQ(ended, 20);
}

TEST(ThreadPoolTest, WorksInParallel) {
  absl::Notification first;
  absl::Notification second;
  absl::Notification done;
  ThreadPool pool("parallel", 2);  // goes first
  // Each waits for the other: with one thread this would never end.
  pool.Schedule([&] {
    first.Notify();
    second.WaitForNotification();
    done.Notify();
  });
  pool.Schedule([&] {
    second.Notify();
    first.WaitForNotification();
  });
  done.WaitForNotification();
}

TEST(Fault, ArmedForTheLifeOfTheObject) {
  EXPECT_TRUE(FaultPoint("test.point").ok());
  {
    int hits = 0;
    ScopedFault fault("test.point", [&] {
      ++hits;
      return absl::InternalError("armed");
    });
    EXPECT_EQ(FaultPoint("test.point").message(), "armed");
    EXPECT_TRUE(FaultPoint("test.other").ok());
    EXPECT_EQ(hits, 1);
  }
  EXPECT_TRUE(FaultPoint("test.point").ok());
}

TEST(Fault, ChildrenAreArmedByTheirEnvironment) {
  pid_t child = fork();
  if (child == 0) {
    setenv("LAZYBLOB_FAULTS", "test.error=error,test.kill=kill", 1);
    ArmFaultsFromEnvironment();
    if (FaultPoint("test.error").ok()) _exit(1);
    if (!FaultPoint("test.absent").ok()) _exit(2);
    (void)FaultPoint("test.kill");
    _exit(3);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
}

}  // namespace
}  // namespace lazyblob::base
