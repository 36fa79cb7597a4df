// FuseServer under the real kernel. The server lives in child processes that are killed; readers are children
// too, so that this process, which holds the descriptors as the keeper does, never waits for its own file
// system. Needs root and /dev/fuse; elsewhere it fails rather than pretend.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/mount.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "fuse/server.h"
#include "layer/erofs.h"
#include "tests/fuse/fake_store.h"
#include "tests/layer/tree_text.h"
#include "tests/support/eventually.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::fuse {
namespace {

constexpr uint64_t kSize = 16 << 20;
constexpr uint32_t kHeldLayer = 1;     // its bytes come when the test says so
constexpr uint32_t kPresentLayer = 2;  // its bytes are there; it has a tree, too

std::string NameOf(uint32_t layer) {
  return LayerName(base::Digest::Of(absl::string_view(layer == kHeldLayer ? "held" : "present")));
}

// A detached FUSE mount.
struct Connection {
  base::UniqueFd device;
  base::UniqueFd mount;
};

Connection Mount() {
  Connection connection;
  connection.device = base::UniqueFd(open("/dev/fuse", O_RDWR | O_CLOEXEC));
  EXPECT_TRUE(connection.device.valid()) << "this test needs root and /dev/fuse";
  base::UniqueFd context(static_cast<int>(syscall(SYS_fsopen, "fuse", FSOPEN_CLOEXEC)));
  const auto set = [&](const char* key, const std::string& value) {
    EXPECT_EQ(syscall(SYS_fsconfig, context.get(), FSCONFIG_SET_STRING, key, value.c_str(), 0), 0) << key;
  };
  set("source", "lazyblob");
  set("fd", absl::StrCat(connection.device.get()));
  set("rootmode", "40000");
  set("user_id", "0");
  set("group_id", "0");
  set("max_read", absl::StrCat(1 << 20));
  EXPECT_EQ(syscall(SYS_fsconfig, context.get(), FSCONFIG_SET_FLAG, "default_permissions", nullptr, 0), 0);
  EXPECT_EQ(syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0), 0);
  connection.mount =
      base::UniqueFd(static_cast<int>(syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC,
                                              MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID)));
  EXPECT_TRUE(connection.mount.valid()) << strerror(errno);
  return connection;
}

// Runs `body` in a child that dies with this process; its result is the exit code. Of the open descriptors it
// keeps only `keep` and the standard ones: a reader that held the device would keep its own request alive for
// ever when everybody else is gone.
pid_t Fork(std::vector<int> keep, const std::function<int()>& body) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::sort(keep.begin(), keep.end());
  unsigned first = 3;
  for (int fd : keep) {
    if (static_cast<unsigned>(fd) > first) syscall(SYS_close_range, first, fd - 1, 0);
    first = static_cast<unsigned>(fd) + 1;
  }
  syscall(SYS_close_range, first, ~0u, 0);
  _exit(body());
}

int ExitCode(pid_t pid) {
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

// A server in a child process. It says 'h' for every read it holds, and obeys 'r' (let them go), 'w' (those
// held now), 's' (stop and leave), 'R' (ask for unanswered requests again).
class ServerProcess {
 public:
  // `init`: the exchange of the connection; empty: it is new, and filled in.
  ServerProcess(const Connection& connection, InitExchange& init, const std::string& tree_directory) {
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    socket_ = base::UniqueFd(ends[0]);
    pid_ = Fork({connection.device.get(), ends[1]},
                [&, end = ends[1]] { return Serve(connection, init, tree_directory, end); });
    close(ends[1]);
    EXPECT_TRUE(Await('u')) << "the server did not start";
    if (init.request.empty()) {
      EXPECT_TRUE(Await('Q') && Await('A'));
      init = {bodies_['Q'], bodies_['A']};
    }
  }
  ~ServerProcess() {
    if (pid_ > 0) Kill();
  }

  bool AwaitHeldRead() { return Await('h'); }
  void Tell(char command) { EXPECT_EQ(send(socket_.get(), &command, 1, MSG_NOSIGNAL), 1); }
  // SIGKILL; the process may stay unreaped for a while, as a keeper sees it.
  void KillOnly() { kill(pid_, SIGKILL); }
  void Reap() {
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  void Kill() {
    KillOnly();
    Reap();
  }
  int Stop() {
    Tell('s');
    const pid_t pid = std::exchange(pid_, -1);
    return ExitCode(pid);
  }

 private:
  // Waits for a message of this kind (its first byte), keeping others. False when none comes within a minute.
  bool Await(char kind) {
    std::string message(8192, '\0');
    while (came_[kind] == 0) {
      pollfd readable{socket_.get(), POLLIN, 0};
      if (poll(&readable, 1, 60'000) != 1) return false;
      const ssize_t size = recv(socket_.get(), message.data(), message.size(), 0);
      if (size <= 0) return false;
      ++came_[message[0]];
      bodies_[message[0]] = message.substr(1, static_cast<size_t>(size) - 1);
    }
    --came_[kind];
    return true;
  }
  static bool Say(int end, const std::string& message) {
    return send(end, message.data(), message.size(), MSG_NOSIGNAL) > 0;
  }

  static int Serve(const Connection& connection, const InitExchange& init, const std::string& tree_directory,
                   int end) {
    auto held = std::make_shared<FakeLayer>(kHeldLayer, "held", Pattern(kSize, 1));
    auto present = std::make_shared<FakeLayer>(kPresentLayer, "present", Pattern(kSize, 2), tree_directory);
    held->on_wait = [end] { Say(end, "h"); };
    present->MakePresent();
    FakeStore store;
    store.Add(held);
    store.Add(present);
    ServerOptions options;
    options.device = base::UniqueFd(fcntl(connection.device.get(), F_DUPFD_CLOEXEC, 0));
    options.replay_request = init.request;
    options.replay_answer = init.answer;
    options.on_init = [end](const InitExchange& exchange) {
      const bool sent = Say(end, "Q" + exchange.request) && Say(end, "A" + exchange.answer);
      return sent ? absl::OkStatus() : absl::InternalError("write");
    };
    FuseServer server(&store, std::move(options));
    if (absl::Status status = server.Start(); !status.ok()) {
      fprintf(stderr, "server: %s\n", status.ToString().c_str());
      return 1;
    }
    Say(end, "u");
    char command = 0;
    while (read(end, &command, 1) == 1) {
      if (command == 'r') held->Release();
      if (command == 'w') held->ReleaseWaiting();
      if (command == 'R' && !server.Resend().ok()) return 2;
      if (command == 's') {
        server.Stop();
        return 0;
      }
    }
    return 0;
  }

  base::UniqueFd socket_;
  std::map<char, int> came_;
  std::map<char, std::string> bodies_;
  pid_t pid_ = -1;
};

// Reads the whole blob of a layer in pieces of `piece` bytes and compares; an exit code.
int ReadBlob(int mount, uint32_t layer, uint64_t piece) {
  base::UniqueFd blob(openat(mount, absl::StrCat("blobs/", NameOf(layer)).c_str(), O_RDONLY | O_CLOEXEC));
  if (!blob.valid()) return 10;
  struct stat stat{};
  if (fstat(blob.get(), &stat) != 0 || stat.st_size != kSize) return 11;
  const std::string expected = Pattern(kSize, layer);
  std::string got(piece, '\0');
  for (uint64_t at = 0; at < kSize; at += piece) {
    const uint64_t length = std::min(piece, kSize - at);
    const ssize_t size = pread(blob.get(), got.data(), length, static_cast<off_t>(at));
    if (size != static_cast<ssize_t>(length)) {
      fprintf(stderr, "read at %llu: %zd %s\n", static_cast<unsigned long long>(at), size, strerror(errno));
      return 12;
    }
    if (memcmp(got.data(), expected.data() + at, length) != 0) return 13;
  }
  return 0;
}

// Waits until an alarm has reached a process that cannot take it, because its read is held.
bool AwaitPendingAlarm(pid_t pid) {
  return support::Eventually([&] {
    poll(nullptr, 0, 1);
    auto status = base::ReadFile(absl::StrCat("/proc/", pid, "/status"), 64 << 10);
    if (!status.ok()) return false;
    const size_t at = status->find("ShdPnd:");
    uint64_t pending = 0;
    return at != std::string::npos && absl::SimpleHexAtoi(status->substr(at + 8, 16), &pending) &&
           (pending >> (SIGALRM - 1) & 1) != 0;
  });
}

// An EROFS mount, attached nowhere, of `image` with a layer's blob as its data.
base::UniqueFd MountErofs(int fuse, const std::string& image, uint32_t layer) {
  base::UniqueFd meta(open(image.c_str(), O_RDONLY | O_CLOEXEC));
  base::UniqueFd data(openat(fuse, absl::StrCat("blobs/", NameOf(layer)).c_str(), O_PATH | O_CLOEXEC));
  base::UniqueFd context(static_cast<int>(syscall(SYS_fsopen, "erofs", FSOPEN_CLOEXEC)));
  const auto set = [&](const char* key, const base::UniqueFd& file) {
    const std::string path = absl::StrCat("/proc/self/fd/", file.get());
    return syscall(SYS_fsconfig, context.get(), FSCONFIG_SET_STRING, key, path.c_str(), 0) == 0;
  };
  if (!meta.valid() || !data.valid() || !context.valid() || !set("source", meta) || !set("device", data) ||
      syscall(SYS_fsconfig, context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return base::UniqueFd();
  }
  return base::UniqueFd(static_cast<int>(syscall(SYS_fsmount, context.get(), FSMOUNT_CLOEXEC,
                                                 MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID)));
}

// Faults in `pages` single pages all over the file, then the whole of it; an exit code.
int ReadMapped(int mount, const char* name, uint32_t layer, uint64_t pages) {
  base::UniqueFd file(openat(mount, name, O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return 10;
  void* mapped = mmap(nullptr, kSize, PROT_READ, MAP_SHARED, file.get(), 0);
  if (mapped == MAP_FAILED) return 11;
  const char* bytes = static_cast<const char*>(mapped);
  const std::string expected = Pattern(kSize, layer);
  if (madvise(mapped, kSize, MADV_RANDOM) != 0) return 12;
  for (uint64_t i = 0; i < pages; ++i) {
    const uint64_t at = (i * 2654435761 % (kSize / 4096)) * 4096;
    if (memcmp(bytes + at, expected.data() + at, 4096) != 0) return 13;
  }
  if (madvise(mapped, kSize, MADV_NORMAL) != 0) return 14;
  return memcmp(bytes, expected.data(), kSize) == 0 ? 0 : 15;
}

class FuseKernelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    layer::TreeBuilder builder;
    const auto add = [&](layer::Entry entry) { ASSERT_TRUE(builder.Add(std::move(entry)).ok()); };
    for (int i = 0; i < 500; ++i) {
      layer::Entry file;
      file.path = absl::StrCat("dir", i % 7, "/file", i);
      file.mode = 0644;
      file.size = static_cast<uint64_t>(i) * 40;
      file.mtime_seconds = 1'600'000'000 + i;
      file.mtime_nanoseconds = 7;
      if (file.size > 0) file.extents = {{0, static_cast<uint64_t>(i) * 20480, file.size}};
      if (i % 50 == 0) file.xattrs = {{"user.number", absl::StrCat(i)}};
      add(std::move(file));
    }
    layer::Entry link;
    link.path = "link";
    link.type = layer::EntryType::kSymlink;
    link.link_target = "dir0/file0";
    add(std::move(link));
    tree_ = *builder.Finish();
    layer::ErofsOptions options;
    options.data_size = kSize;
    ASSERT_TRUE(layer::WriteErofs(tree_, options, directory_.File("meta.erofs")).ok());
    connection_ = Mount();
    server_.emplace(connection_, init_, directory_.path());
  }

  // Another server for the connection; the one before must be gone or going.
  void TakeOver() {
    server_.reset();
    server_.emplace(connection_, init_, directory_.path());
  }

  support::TempDir directory_;
  layer::Tree tree_;
  Connection connection_;
  InitExchange init_;
  std::optional<ServerProcess> server_;
};

TEST_F(FuseKernelTest, EveryByteOfABlob) {
  for (uint64_t piece : {uint64_t{1} << 20, uint64_t{4} << 20, uint64_t{65536}, uint64_t{12345}}) {
    EXPECT_EQ(ExitCode(Fork({connection_.mount.get()},
                            [&] { return ReadBlob(connection_.mount.get(), kPresentLayer, piece); })),
              0)
        << piece;
  }
}

TEST_F(FuseKernelTest, TheConnectionHasRoomForManyReads) {
  const int code = ExitCode(Fork({connection_.mount.get()}, [&] {
    struct stat stat{};
    if (fstat(connection_.mount.get(), &stat) != 0) return 1;
    const std::string control = directory_.File("control");
    if (mkdir(control.c_str(), 0700) != 0 || unshare(CLONE_NEWNS) != 0) return 2;
    if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return 3;
    if (mount("none", control.c_str(), "fusectl", 0, nullptr) != 0) return 4;
    auto text = base::ReadFile(absl::StrCat(control, "/", minor(stat.st_dev), "/max_background"), 100);
    int limit = 0;
    if (!text.ok() || !absl::SimpleAtoi(*text, &limit)) return 5;
    return limit == 65535 ? 0 : 6;
  }));
  EXPECT_EQ(code, 0);
}

TEST_F(FuseKernelTest, TheTreeIsTheLayersTree) {
  const int code = ExitCode(Fork({connection_.mount.get()}, [&] {
    base::UniqueFd tree(openat(connection_.mount.get(), absl::StrCat("trees/", NameOf(kPresentLayer)).c_str(),
                               O_PATH | O_DIRECTORY));
    if (!tree.valid()) return 1;
    layer::TreeTextOptions options;
    options.extents = false;
    const std::string difference =
        layer::Difference(layer::DescribeTree(tree_, options),
                          layer::DescribeDirectory(absl::StrCat("/proc/self/fd/", tree.get(), "/.")));
    fprintf(stderr, "%s", difference.c_str());
    if (!difference.empty()) return 2;
    const std::string data = Pattern(kSize, kPresentLayer);
    for (uint64_t i = 0; i < 500; ++i) {
      auto bytes =
          base::ReadFile(absl::StrCat("/proc/self/fd/", tree.get(), "/dir", i % 7, "/file", i), 1 << 20);
      if (!bytes.ok() || *bytes != data.substr(i * 20480, i * 40)) return 3;
    }
    return open(absl::StrCat("/proc/self/fd/", tree.get(), "/new").c_str(), O_CREAT | O_WRONLY, 0600) < 0 ? 0
                                                                                                          : 4;
  }));
  EXPECT_EQ(code, 0);
}

TEST_F(FuseKernelTest, FiveKillsWithinOneHeldRead) {
  const pid_t reader =
      Fork({connection_.mount.get()}, [&] { return ReadBlob(connection_.mount.get(), kHeldLayer, kSize); });
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(server_->AwaitHeldRead()) << i;
    server_->Kill();
    TakeOver();
  }
  ASSERT_TRUE(server_->AwaitHeldRead());
  server_->Tell('r');
  EXPECT_EQ(ExitCode(reader), 0);
}

TEST_F(FuseKernelTest, ASuccessorNeedNotWaitForItsPredecessorToBeReaped) {
  const pid_t reader =
      Fork({connection_.mount.get()}, [&] { return ReadBlob(connection_.mount.get(), kHeldLayer, kSize); });
  ASSERT_TRUE(server_->AwaitHeldRead());
  server_->KillOnly();
  ServerProcess successor(connection_, init_, directory_.path());
  server_->Reap();
  successor.Tell('r');
  successor.Tell('R');
  EXPECT_EQ(ExitCode(reader), 0);
  EXPECT_EQ(successor.Stop(), 0);
}

TEST_F(FuseKernelTest, AStoppedServerLeavesItsReadsToTheNext) {
  const pid_t reader =
      Fork({connection_.mount.get()}, [&] { return ReadBlob(connection_.mount.get(), kHeldLayer, 1 << 20); });
  ASSERT_TRUE(server_->AwaitHeldRead());
  EXPECT_EQ(server_->Stop(), 0);
  TakeOver();
  ASSERT_TRUE(server_->AwaitHeldRead());
  server_->Tell('r');
  EXPECT_EQ(ExitCode(reader), 0);
}

TEST_F(FuseKernelTest, KilledReadersAreGoneWhileTheirReadIsHeld) {
  const pid_t reader =
      Fork({connection_.mount.get()}, [&] { return ReadBlob(connection_.mount.get(), kHeldLayer, 4096); });
  ASSERT_TRUE(server_->AwaitHeldRead());
  kill(reader, SIGKILL);
  EXPECT_EQ(ExitCode(reader), 1000 + SIGKILL);  // and not only after the read's deadline
}

// A kill that comes after other signals: the kernel says nothing of it to the server.
TEST_F(FuseKernelTest, KillAfterAnAlarmIsSeen) {
  const pid_t reader = Fork({connection_.mount.get()}, [&] {
    signal(SIGALRM, [](int) {});
    return ReadBlob(connection_.mount.get(), kHeldLayer, 4096);
  });
  ASSERT_TRUE(server_->AwaitHeldRead());
  kill(reader, SIGALRM);
  kill(reader, SIGKILL);
  EXPECT_EQ(ExitCode(reader), 1000 + SIGKILL);
}

TEST_F(FuseKernelTest, AnAlarmEveryTwentyMillisecondsHarmsNoRead) {
  const pid_t reader = Fork({connection_.mount.get()}, [&] {
    struct sigaction action{};
    action.sa_handler = [](int) {};
    sigaction(SIGALRM, &action, nullptr);  // no SA_RESTART
    itimerval every{{0, 20'000}, {0, 20'000}};
    setitimer(ITIMER_REAL, &every, nullptr);
    return ReadBlob(connection_.mount.get(), kHeldLayer, 1 << 20);
  });
  ASSERT_TRUE(server_->AwaitHeldRead());
  ASSERT_TRUE(AwaitPendingAlarm(reader));
  server_->Tell('r');
  EXPECT_EQ(ExitCode(reader), 0);
}

// A page fault that fails is SIGBUS, and an interrupted one begins again: each must end well though an alarm
// is there before its bytes are.
TEST_F(FuseKernelTest, AlarmsDuringPageFaultsHarmNoMappedFile) {
  constexpr uint64_t kPages = 200;
  layer::TreeBuilder builder;
  layer::Entry file;
  file.path = "file";
  file.mode = 0444;
  file.size = kSize;
  file.extents = {{0, 0, kSize}};
  ASSERT_TRUE(builder.Add(std::move(file)).ok());
  layer::ErofsOptions options;
  options.data_size = kSize;
  ASSERT_TRUE(layer::WriteErofs(*builder.Finish(), options, directory_.File("one.erofs")).ok());
  const pid_t reader = Fork({connection_.mount.get()}, [&] {
    base::UniqueFd mount = MountErofs(connection_.mount.get(), directory_.File("one.erofs"), kHeldLayer);
    if (!mount.valid()) return 20;
    struct sigaction action{};
    action.sa_handler = [](int) {};
    sigaction(SIGALRM, &action, nullptr);
    itimerval every{{0, 1'000}, {0, 1'000}};
    setitimer(ITIMER_REAL, &every, nullptr);
    return ReadMapped(mount.get(), "file", kHeldLayer, kPages);
  });
  for (uint64_t i = 0; i < kPages; ++i) {
    ASSERT_TRUE(server_->AwaitHeldRead()) << i;
    ASSERT_TRUE(AwaitPendingAlarm(reader)) << i;
    server_->Tell('w');
  }
  ASSERT_TRUE(server_->AwaitHeldRead());
  server_->Tell('r');
  EXPECT_EQ(ExitCode(reader), 0);
}

}  // namespace
}  // namespace lazyblob::fuse
