// KeeperClient against a keeper played by the test, one packet at a time.

#include "fuse/keeper_client.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "absl/synchronization/notification.h"
#include "fuse/internal/keeper_protocol.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lazyblob::fuse {
namespace {

using internal::Message;
using internal::MessageType;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class KeeperClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    keeper_ = base::UniqueFd(ends[0]);
    auto client = KeeperClient::Connect(base::UniqueFd(ends[1]));
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  Message Receive() {
    auto packet = internal::ReceivePacket(keeper_.get(), false, 0);
    EXPECT_TRUE(packet.ok());
    auto message = internal::Unframe(packet->bytes);
    EXPECT_TRUE(message.ok()) << message.status();
    return message.ok() ? *message : Message();
  }
  void Send(MessageType type, bool answer, uint64_t id, std::string body, int descriptor = -1) {
    EXPECT_TRUE(internal::SendPacket(keeper_.get(), *internal::Frame({type, answer, id, std::move(body)}),
                                     descriptor, 0)
                    .ok());
  }
  void Answer(const Message& request, const absl::Status& status, const std::string& result = "",
              int descriptor = -1) {
    Send(request.type, true, request.id, internal::EncodeStatus(status) + result, descriptor);
  }

  base::UniqueFd keeper_;
  std::unique_ptr<KeeperClient> client_;
};

TEST_F(KeeperClientTest, AnswersFindTheirCallsInAnyOrder) {
  absl::Status first;
  absl::Status second;
  std::thread a([&] { first = client_->Unmount("/a", false); });
  Message from_a = Receive();
  std::thread b([&] { second = client_->Unmount("/b", true); });
  Message from_b = Receive();
  EXPECT_EQ(internal::DecodeUnmount(from_a.body)->target, "/a");
  EXPECT_TRUE(internal::DecodeUnmount(from_b.body)->lazy);
  Send(MessageType::kUnmount, true, 9999, internal::EncodeStatus(absl::OkStatus()));     // nobody's
  Send(MessageType::kProbe, true, from_a.id, internal::EncodeStatus(absl::OkStatus()));  // of another kind
  Answer(from_b, absl::OkStatus());
  b.join();
  EXPECT_TRUE(second.ok());
  Answer(from_a, absl::FailedPreconditionError("/a is busy"));
  a.join();
  EXPECT_EQ(first, absl::FailedPreconditionError("/a is busy"));
}

TEST_F(KeeperClientTest, TakesTheConnection) {
  base::UniqueFd null(open("/dev/null", O_RDONLY | O_CLOEXEC));
  absl::StatusOr<KeeperClient::Connection> connection = absl::UnknownError("");
  std::thread call([&] { connection = client_->TakeConnection(); });
  Answer(Receive(), absl::OkStatus(), internal::EncodeConnectionResult({4, true, {"asked", "told"}}),
         null.get());
  call.join();
  ASSERT_TRUE(connection.ok()) << connection.status();
  EXPECT_TRUE(connection->device.valid());
  EXPECT_TRUE(connection->taken_over);
  EXPECT_EQ(connection->generation, 4u);
  EXPECT_EQ(connection->init.request, "asked");

  std::thread without([&] { connection = client_->TakeConnection(); });
  Answer(Receive(), absl::OkStatus(), internal::EncodeConnectionResult({4, true, {"asked", "told"}}));
  without.join();
  EXPECT_THAT(std::string(connection.status().message()), HasSubstr("without the FUSE descriptor"));
}

TEST_F(KeeperClientTest, ListsOverSeveralPages) {
  absl::StatusOr<std::vector<std::string>> mounted;
  std::thread call([&] { mounted = client_->Mounted(); });
  Message first = Receive();
  EXPECT_EQ(*internal::DecodeMounted(first.body), 0u);
  Answer(first, absl::OkStatus(), internal::EncodeMountedResult({{"/a", "/b"}, 7}));
  Message second = Receive();
  EXPECT_EQ(*internal::DecodeMounted(second.body), 7u);
  Answer(second, absl::OkStatus(), internal::EncodeMountedResult({{"/c"}, 0}));
  call.join();
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  EXPECT_THAT(*mounted, ElementsAre("/a", "/b", "/c"));

  std::thread endless([&] { mounted = client_->Mounted(); });
  Answer(Receive(), absl::OkStatus(), internal::EncodeMountedResult({{"/a"}, 7}));
  Answer(Receive(), absl::OkStatus(), internal::EncodeMountedResult({{"/a"}, 7}));
  endless.join();
  EXPECT_FALSE(mounted.ok());
}

TEST_F(KeeperClientTest, TheEndOfTheKeeperWakesEverybodyAndIsTold) {
  absl::Notification told;
  client_->OnKeeperGone([&] { told.Notify(); });
  absl::Status waiting;
  std::thread call([&] { waiting = client_->SaveInit({"a", "b"}); });
  Receive();
  keeper_.Reset();
  call.join();
  EXPECT_TRUE(absl::IsUnavailable(waiting)) << waiting;
  told.WaitForNotification();
  EXPECT_TRUE(absl::IsUnavailable(client_->Shutdown()));
  absl::Notification late;
  client_->OnKeeperGone([&] { late.Notify(); });
  late.WaitForNotification();
}

TEST_F(KeeperClientTest, WhatIsNoAnswerEndsTheConversation) {
  absl::StatusOr<ProbeResult> probe;
  std::thread call([&] { probe = client_->Probe("/state"); });
  Receive();
  ASSERT_TRUE(internal::SendPacket(keeper_.get(), "garbage", -1, 0).ok());
  call.join();
  EXPECT_TRUE(absl::IsUnavailable(probe.status())) << probe.status();
}

TEST_F(KeeperClientTest, DamagedAnswersAreErrors) {
  absl::StatusOr<ProbeResult> probe;
  std::thread call([&] { probe = client_->Probe("/state"); });
  Answer(Receive(), absl::OkStatus(), "\x09");
  call.join();
  EXPECT_TRUE(absl::IsInvalidArgument(probe.status())) << probe.status();
}

TEST_F(KeeperClientTest, ReapedPredecessorsAreHeardEvenBeforeSomebodyListens) {
  Send(MessageType::kPredecessorReaped, false, 0, "");
  // The reader has seen the event once it has answered a call.
  std::thread call([&] { client_->Shutdown().IgnoreError(); });
  Answer(Receive(), absl::OkStatus());
  call.join();
  int heard = 0;
  absl::Notification again;
  client_->OnPredecessorReaped([&] {
    if (++heard == 2) again.Notify();
  });
  EXPECT_EQ(heard, 1);
  Send(MessageType::kPredecessorReaped, false, 0, "");
  again.WaitForNotification();
}

TEST_F(KeeperClientTest, TooMuchForOneMessageIsRefusedHere) {
  OverlayRequest request;
  request.target = "/t";
  request.lowers.assign(30, "/" + std::string(4000, 'x'));
  EXPECT_TRUE(absl::IsInvalidArgument(client_->MountOverlay(request)));
}

TEST(KeeperClient, ProgramsTheDaemonStartsDoNotInheritTheSocket) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends), 0);
  base::UniqueFd keeper(ends[0]);
  auto client = KeeperClient::Connect(base::UniqueFd(ends[1]));
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_NE(fcntl(ends[1], F_GETFD) & FD_CLOEXEC, 0);
}

TEST(KeeperClient, AKeeperThatIsDeadIsStillKnownFromItsSocket) {
  int told[2];
  ASSERT_EQ(pipe2(told, O_CLOEXEC), 0);
  const pid_t keeper = fork();
  if (keeper == 0) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) != 0) _exit(1);
    const pid_t dead = getpid();
    if (fork() != 0) _exit(0);
    close(ends[0]);
    char end;
    if (recv(ends[1], &end, 1, 0) != 0) _exit(1);  // the keeper has closed its end by dying
    while (getppid() == dead) sched_yield();
    const pid_t found[] = {KeeperProcess(ends[1]), getppid()};
    _exit(write(told[1], found, sizeof found) == sizeof found ? 0 : 1);
  }
  ASSERT_GT(keeper, 0);
  close(told[1]);
  pid_t found[2] = {};
  EXPECT_EQ(read(told[0], found, sizeof found), static_cast<ssize_t>(sizeof found));
  EXPECT_EQ(found[0], keeper);
  EXPECT_NE(found[1], keeper);
  close(told[0]);
  EXPECT_EQ(waitpid(keeper, nullptr, 0), keeper);
}

TEST(KeeperClient, OnlyPacketSocketsAreKeepers) {
  EXPECT_FALSE(KeeperClient::Connect(base::UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC))).ok());
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  base::UniqueFd other(ends[1]);
  EXPECT_TRUE(absl::IsInvalidArgument(KeeperClient::Connect(base::UniqueFd(ends[0])).status()));
}

}  // namespace
}  // namespace lazyblob::fuse
