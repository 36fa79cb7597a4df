#include "containerd/grpc_server.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "proto/containerd_content.grpc.pb.h"
#include "tests/support/gate.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::containerd {
namespace {

using ::testing::HasSubstr;

bool Answers(const std::string& address) {
  return grpc::CreateChannel("unix:" + address, grpc::InsecureChannelCredentials())
      ->WaitForConnected(std::chrono::system_clock::now() + absl::ToChronoSeconds(support::kPatience));
}

mode_t ModeOf(const std::string& path) {
  struct stat status{};
  EXPECT_EQ(lstat(path.c_str(), &status), 0) << path;
  return status.st_mode & 07777;
}

class GrpcServerTest : public ::testing::Test {
 protected:
  absl::Status Start(const std::string& address) {
    auto server = GrpcServer::Start(address, {&service_});
    if (server.ok()) server_ = *std::move(server);
    return server.status();
  }
  support::TempDir temp_;
  ::containerd::services::content::v1::Content::CallbackService service_;
  std::unique_ptr<GrpcServer> server_;
};

TEST_F(GrpcServerTest, MakesTheDirectory0700AndTheSocket0600WhateverTheUmask) {
  for (mode_t mask : {0, 0777}) {
    mode_t old = umask(mask);
    std::string dir = temp_.File(absl::StrCat("run", mask));
    absl::Status status = Start(dir + "/s.sock");
    umask(old);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(ModeOf(dir), 0700u);
    EXPECT_EQ(ModeOf(dir + "/s.sock"), 0600u);
  }
}

TEST_F(GrpcServerTest, RefusesADirectoryThatOthersCanEnterOrOwn) {
  std::string dir = temp_.File("run");
  ASSERT_EQ(mkdir(dir.c_str(), 0700), 0);
  for (mode_t mode : {0750u, 0701u, 0777u, 01700u, 0500u}) {
    ASSERT_EQ(chmod(dir.c_str(), mode), 0);
    absl::Status status = Start(dir + "/s.sock");
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << mode;
    EXPECT_THAT(std::string(status.message()), HasSubstr("chmod 0700"));
  }
  ASSERT_EQ(chmod(dir.c_str(), 0700), 0);
  if (geteuid() == 0) {
    ASSERT_EQ(chown(dir.c_str(), 65534, 65534), 0);
    absl::Status status = Start(dir + "/s.sock");
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("owned by user 65534"));
    ASSERT_EQ(chown(dir.c_str(), 0, 0), 0);
  }
  EXPECT_TRUE(Start(dir + "/s.sock").ok());
}

TEST_F(GrpcServerTest, RefusesALinkAndWhatIsNoSocketOrNoPath) {
  std::string dir = temp_.File("run");
  ASSERT_EQ(mkdir(dir.c_str(), 0700), 0);
  ASSERT_EQ(symlink(dir.c_str(), temp_.File("link").c_str()), 0);
  EXPECT_EQ(Start(temp_.File("link") + "/s.sock").code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(base::WriteFileAtomically(dir + "/file", "precious").ok());
  absl::Status status = Start(dir + "/file");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("not a socket"));
  EXPECT_EQ(base::ReadFile(dir + "/file", 100).value(), "precious");
  for (const char* bad : {"", "relative/s.sock", "/ends/with/"}) {
    EXPECT_EQ(Start(bad).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST_F(GrpcServerTest, ReplacesTheSocketOfADeadPredecessorAndLeavesALivingOneAlone) {
  std::string dir = temp_.File("run");
  ASSERT_EQ(mkdir(dir.c_str(), 0700), 0);
  std::string address = dir + "/s.sock";
  {
    base::UniqueFd dead(socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    address.copy(name.sun_path, sizeof name.sun_path - 1);
    ASSERT_EQ(bind(dead.get(), reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
    ASSERT_EQ(listen(dead.get(), 1), 0);
    EXPECT_EQ(Start(address).code(), absl::StatusCode::kAlreadyExists);
  }
  ASSERT_TRUE(Start(address).ok());
  auto second = GrpcServer::Start(address, {&service_});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another daemon"));
  EXPECT_TRUE(Answers(address)) << "the first still serves";
}

// Whether a call is answered, if only to say that there is no such method.
bool Serves(const std::string& address) {
  auto channel = grpc::CreateChannel("unix:" + address, grpc::InsecureChannelCredentials());
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoSeconds(support::kPatience));
  ::containerd::services::content::v1::InfoResponse response;
  auto stub = ::containerd::services::content::v1::Content::NewStub(channel);
  return stub->Info(&context, {}, &response).error_code() == grpc::StatusCode::UNIMPLEMENTED;
}

base::UniqueFd Connect(const std::string& address) {
  base::UniqueFd client(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  address.copy(name.sun_path, sizeof name.sun_path - 1);
  if (connect(client.get(), reinterpret_cast<sockaddr*>(&name), sizeof name) != 0) client.Reset();
  return client;
}

// As the keeper is one.
struct Holding {
  SocketHolder Holder() {
    SocketHolder holder;
    holder.take = [this](const std::string& at) -> absl::StatusOr<base::UniqueFd> {
      if (!socket.valid() || at != place) return absl::NotFoundError("none");
      return base::UniqueFd(fcntl(socket.get(), F_DUPFD_CLOEXEC, 3));
    };
    holder.keep = [this](int fd, const std::string& at) {
      socket = base::UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 3));
      place = at;
      ++kept;
      return absl::OkStatus();
    };
    return holder;
  }
  base::UniqueFd socket;
  std::string place;
  int kept = 0;
};

TEST_F(GrpcServerTest, ConnectionsMadeWhileNobodyServesWaitForTheSuccessor) {
  const std::string address = temp_.File("run") + "/s.sock";
  Holding holding;
  auto first = GrpcServer::Start(address, {&service_}, nullptr, holding.Holder());
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(Serves(address));
  (*first)->LeaveSocket();
  first->reset();
  base::UniqueFd early = Connect(address);
  ASSERT_TRUE(early.valid()) << "was refused";
  ::containerd::services::content::v1::Content::CallbackService service;  // one per server
  auto second = GrpcServer::Start(address, {&service}, nullptr, holding.Holder());
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(holding.kept, 1);
  char settings[9];  // the server speaks first: the early one is served
  EXPECT_EQ(recv(early.get(), settings, sizeof settings, MSG_WAITALL), 9);
  EXPECT_TRUE(Serves(address));

  // For good: who connects is turned away, although the holder still has the socket.
  second->reset();
  EXPECT_FALSE(Connect(address).valid());
  EXPECT_TRUE(absl::IsNotFound(base::ReadFile(address, 1).status()));
}

TEST_F(GrpcServerTest, ASocketThatAnotherHasPutThereIsNotTakenForTheKeptOne) {
  const std::string address = temp_.File("run") + "/s.sock";
  Holding holding;
  auto first = GrpcServer::Start(address, {&service_}, nullptr, holding.Holder());
  ASSERT_TRUE(first.ok()) << first.status();
  (*first)->LeaveSocket();
  first->reset();
  ASSERT_EQ(unlink(address.c_str()), 0);
  SocketHolder replacing = holding.Holder();
  ::containerd::services::content::v1::Content::CallbackService others[3];
  auto second = GrpcServer::Start(address, {&others[0]}, nullptr, replacing);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(holding.kept, 2);
  EXPECT_TRUE(Serves(address));
  // One that still answers is replaced only by who knows that it is a predecessor's.
  EXPECT_TRUE(absl::IsAlreadyExists(GrpcServer::Start(address, {&others[1]}).status()));
  replacing.take = nullptr;
  replacing.replace = true;
  EXPECT_TRUE(GrpcServer::Start(address, {&others[2]}, nullptr, replacing).ok());
}

TEST_F(GrpcServerTest, ThePathMayBeLongerThanASocketsName) {
  std::string dir = temp_.path();
  while (dir.size() < 300) dir += "/a-rather-long-name-of-a-directory";
  ASSERT_TRUE(Start(dir + "/s.sock").ok());
  base::UniqueFd fd(open(dir.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  EXPECT_TRUE(Answers(absl::StrCat("/proc/self/fd/", fd.get(), "/s.sock")));
}

}  // namespace
}  // namespace lazyblob::containerd
