// The connection outlives servers: what a successor must do, and what a predecessor's callbacks must not.

#include <cerrno>

#include "base/fault.h"
#include "fuse/internal/protocol.h"
#include "gmock/gmock.h"
#include "tests/fuse/server_fixture.h"

namespace lazyblob::fuse {
namespace {

using internal::kNotifyResend;
using internal::kUniqueResend;
using ::testing::HasSubstr;

class TakeoverTest : public ServerFixture {};

TEST_F(TakeoverTest, UnansweredReadsAreServedByTheSuccessor) {
  StartServer();
  const uint64_t handle = kernel_.OpenHandle(node_a_);
  std::vector<uint64_t> reads;
  for (uint32_t i = 0; i < 20; ++i) reads.push_back(kernel_.SendRead(node_a_, handle, i * 4096, 4096));
  ASSERT_TRUE(layer_a_->AwaitWaiting(20));
  const size_t before = kernel_.messages();

  ASSERT_TRUE(TakeOver().ok());
  ASSERT_TRUE(kernel_.AwaitNotification(kNotifyResend));
  EXPECT_EQ(kernel_.notifications(kNotifyResend), 1u);
  EXPECT_EQ(kernel_.messages(),
            before + 1);  // nothing else: INIT is not answered again, the reads are not lost
  auto again = kernel_.ResendUnanswered();
  ASSERT_EQ(again.size(), 20u);
  ASSERT_TRUE(layer_a_->AwaitWaiting(20));
  layer_a_->Release();
  const std::string data = Pattern(kSizeA, 1);
  for (size_t i = 0; i < reads.size(); ++i) {
    EXPECT_EQ(again[reads[i]], reads[i] | kUniqueResend);
    const auto answer = kernel_.Await(again[reads[i]]);
    ASSERT_EQ(answer.error, 0);
    EXPECT_TRUE(answer.body == data.substr(i * 4096, 4096));
  }
  // A read of a handle that the predecessor opened shows that it is open.
  EXPECT_EQ(server_->open_handles(layer_a_->descriptor().digest), 1u);
  EXPECT_EQ(kernel_.Release(node_a_, handle).error, 0);
  EXPECT_EQ(server_->open_handles(layer_a_->descriptor().digest), 0u);
}

TEST_F(TakeoverTest, AnotherNegotiationIsRefused) {
  StartServer();
  const InitExchange kept = init_;
  init_.answer[sizeof(fuse_out_header) + offsetof(fuse_init_out, max_pages)] ^= 1;
  const absl::Status status = TakeOver();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_EQ(kernel_.notifications(kNotifyResend), 0u);

  init_.answer = kept.answer.substr(0, kept.answer.size() - 1);
  EXPECT_TRUE(absl::IsFailedPrecondition(TakeOver()));
  init_ = kept;
  init_.request = "no INIT";
  EXPECT_TRUE(absl::IsFailedPrecondition(TakeOver()));
  init_ = kept;
  EXPECT_TRUE(TakeOver().ok());
  EXPECT_EQ(kernel_.GetAttr(node_a_).error, 0);
}

TEST_F(TakeoverTest, TheExchangeSurvivesAnyNumberOfTakeovers) {
  StartServer();
  layer_a_->MakePresent();
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(TakeOver().ok());
    EXPECT_EQ(kernel_.Read(node_a_, 1, 0, 4096).error, 0);
  }
  EXPECT_EQ(kernel_.notifications(kNotifyResend), 5u);
}

// Linux before 6.9.
TEST_F(TakeoverTest, WhereNothingCanBeSentAgainLostReadsFailAndLaterOnesWork) {
  StartServer();
  layer_b_->MakePresent();
  std::vector<uint64_t> lost;
  for (uint32_t i = 0; i < 5; ++i) lost.push_back(kernel_.SendRead(node_a_, 1, i * 4096, 4096));
  ASSERT_TRUE(layer_a_->AwaitWaiting(5));
  base::ScopedFault old_kernel("fuse.no_resend", [] { return absl::InternalError("old"); });
  ASSERT_TRUE(TakeOver().ok());
  EXPECT_EQ(kernel_.notifications(kNotifyResend), 0u);
  EXPECT_EQ(kernel_.GetAttr(node_a_).error, 0);  // the keeper provokes one
  for (uint64_t unique : lost) EXPECT_EQ(kernel_.Await(unique).error, EIO);
  EXPECT_EQ(kernel_.Read(node_b_, 1, 0, 4096).error, 0);
}

// The second RESEND, when the predecessor is reaped, brings again what this server itself holds.
TEST_F(TakeoverTest, ReadThatComesAgainReplacesItself) {
  StartServer();
  const uint64_t read = kernel_.SendRead(node_a_, 1, 0, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  ASSERT_TRUE(server_->Resend().ok());
  ASSERT_TRUE(kernel_.AwaitNotification(kNotifyResend));
  kernel_.ResendUnanswered();
  ASSERT_TRUE(layer_a_->AwaitCancelled(1));  // the first one
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  const size_t before = kernel_.messages();
  layer_a_->Release();
  EXPECT_EQ(kernel_.Await(read | kUniqueResend).error, 0);
  EXPECT_FALSE(kernel_.Answered(read));
  EXPECT_EQ(server_->counters().outstanding, 0u);
  EXPECT_EQ(kernel_.messages(), before + 1);
}

TEST_F(TakeoverTest, AReadOfThePredecessorEndsBeforeTheKernelEndsTheConnection) {
  constexpr uint64_t kLimit = 20;
  ServerOptions options = Options();
  options.request_limit = kLimit;
  StartServer(std::move(options));
  kernel_.SendRead(node_a_, 1, 0, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  clock_.Advance(absl::Seconds(9));
  ASSERT_TRUE(TakeOver(kLimit).ok());
  const auto again = kernel_.ResendUnanswered();
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  clock_.Advance(absl::Seconds(8));  // 17 since it was asked
  EXPECT_EQ(kernel_.Await(again.begin()->second).error, EIO);
}

TEST_F(TakeoverTest, InterruptsFindResentReads) {
  StartServer();
  kernel_.SendRead(node_a_, 1, 0, 4096, 100);
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  ASSERT_TRUE(TakeOver().ok());
  const auto again = kernel_.ResendUnanswered();
  ASSERT_TRUE(layer_a_->AwaitWaiting(1));
  Kill(100);
  kernel_.Interrupt(again.begin()->second);
  EXPECT_EQ(kernel_.Await(again.begin()->second).error, EINTR);
}

TEST_F(TakeoverTest, OpenAndReleaseMayComeTwice) {
  StartServer();
  fuse_open_in open{};
  const uint64_t unique = kernel_.NewUnique();
  kernel_.SendAs(unique, FUSE_OPEN, node_a_, support::BytesOf(open));
  const auto first = support::As<fuse_open_out>(kernel_.Await(unique).body);
  kernel_.SendAs(unique | kUniqueResend, FUSE_OPEN, node_a_, support::BytesOf(open));
  const auto second = support::As<fuse_open_out>(kernel_.Await(unique | kUniqueResend).body);
  EXPECT_EQ(first.fh, second.fh);
  EXPECT_EQ(server_->open_handles(layer_a_->descriptor().digest), 1u);
  kernel_.Release(node_a_, first.fh);
  kernel_.Release(node_a_, first.fh);
  EXPECT_EQ(server_->open_handles(layer_a_->descriptor().digest), 0u);
}

TEST_F(TakeoverTest, CallbacksAfterTheEndTouchNothing) {
  StartServer();
  for (int i = 0; i < 10; ++i) kernel_.SendRead(node_a_, 1, 4096 * i, 4096);
  ASSERT_TRUE(layer_a_->AwaitWaiting(10));
  const size_t before = kernel_.messages();
  server_->Stop();
  // Stopping cancels the waiters; answers of the store that were on their way come later still.
  layer_a_->Release();
  server_.reset();
  layer_a_->Release();
  EXPECT_EQ(kernel_.messages(), before);
}

TEST_F(TakeoverTest, StopIsQuickWhileNobodyAsks) {
  StartServer();
  server_->Stop();
  server_->Stop();
}

TEST_F(TakeoverTest, AServerThatIsToldNothingFailsClearly) {
  server_ = std::make_unique<FuseServer>(&store_, ServerOptions{});
  EXPECT_TRUE(absl::IsInvalidArgument(server_->Start()));
}

TEST_F(TakeoverTest, TheConnectionsEndEndsTheServer) {
  {
    support::FakeKernel kernel;
    ServerOptions options = Options();
    options.device = kernel.ServerEnd();
    server_ = std::make_unique<FuseServer>(&store_, std::move(options));
    ASSERT_TRUE(server_->Start().ok());
    ASSERT_EQ(kernel.Init().error, 0);
  }
  server_->Stop();
}

}  // namespace
}  // namespace lazyblob::fuse
