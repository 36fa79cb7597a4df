#include "daemon/interrupt.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include "absl/synchronization/notification.h"
#include "tests/support/gate.h"

namespace lazyblob::daemon {
namespace {

class InterruptTest : public ::testing::TestWithParam<int> {};

TEST_P(InterruptTest, FirstSignalCancels) {
  auto token = std::make_shared<base::CancelToken>();
  absl::Notification cancelled;
  auto registration = token->OnCancel([&] { cancelled.Notify(); });
  InterruptCancels interrupt(token);
  ASSERT_EQ(kill(getpid(), GetParam()), 0);
  EXPECT_TRUE(cancelled.WaitForNotificationWithTimeout(support::kPatience));
}

TEST_P(InterruptTest, SecondSignalEndsTheProcess) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        auto token = std::make_shared<base::CancelToken>();
        absl::Notification cancelled;
        auto registration = token->OnCancel([&] { cancelled.Notify(); });
        InterruptCancels interrupt(token);
        kill(getpid(), GetParam());
        cancelled.WaitForNotification();
        kill(getpid(), GetParam());
        absl::Notification().WaitForNotificationWithTimeout(support::kPatience);
      },
      ::testing::ExitedWithCode(128 + GetParam()), "");
}

INSTANTIATE_TEST_SUITE_P(Signals, InterruptTest, ::testing::Values(SIGINT, SIGTERM, SIGHUP));

TEST(InterruptScopeTest, SignalsAreAsBeforeAfterwards) {
  sigset_t before;
  sigset_t after;
  pthread_sigmask(SIG_BLOCK, nullptr, &before);
  {
    InterruptCancels interrupt(std::make_shared<base::CancelToken>());
  }
  pthread_sigmask(SIG_BLOCK, nullptr, &after);
  for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGUSR1}) {
    EXPECT_EQ(sigismember(&before, signal), sigismember(&after, signal)) << signal;
  }
}

}  // namespace
}  // namespace lazyblob::daemon
