#include "tests/fuse/keeper_harness.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"
#include "tests/fuse/fake_service_manager.h"
#include "tests/support/eventually.h"

namespace lazyblob::fuse {

std::string FakeDaemon::Do(const std::string& command) {
  Begin(command);
  std::string prefix = absl::StrCat(next_ - 1, " ");
  for (;;) {
    char buffer[65536];
    ssize_t n = recv(control_.get(), buffer, sizeof buffer, 0);
    if (n <= 0) return "";
    std::string answer(buffer, static_cast<size_t>(n));
    if (absl::StartsWith(answer, prefix)) return answer.substr(prefix.size());
  }
}

void FakeDaemon::Begin(const std::string& command) {
  std::string packet = absl::StrCat(next_++, " ", command);
  if (send(control_.get(), packet.data(), packet.size(), MSG_NOSIGNAL) < 0)
    perror("command to the fake daemon");
}

pid_t FakeDaemon::pid() {
  if (pid_ < 0 && !absl::SimpleAtoi(Do("pid"), &pid_)) pid_ = -1;
  return pid_;
}

void FakeDaemon::Kill() {
  ASSERT_GT(pid(), 1);
  ASSERT_EQ(kill(pid(), SIGKILL), 0);
}

KeeperHarness::KeeperHarness() {
  // The build directory: /tmp may be a tmpfs, from which EROFS images cannot be mounted.
  char here[PATH_MAX];
  EXPECT_NE(getcwd(here, sizeof here), nullptr);
  root_ = absl::StrCat(here, "/keeper-XXXXXX");
  EXPECT_NE(mkdtemp(root_.data()), nullptr);
  auto image = internal::WriteBuiltinImage(root_);
  EXPECT_TRUE(image.ok()) << image.status();
  if (image.ok()) image_ = *image;
  blob_path_ = root_ + "/blob";
  std::string blob = image_.whole + image_.cut;
  blob.resize(8192);
  EXPECT_TRUE(base::WriteFileAtomically(blob_path_, blob).ok());

  static int count = 0;
  control_name_ = absl::StrCat("lazyblob-keeper-test-", getpid(), "-", ++count);
  listener_ = base::UniqueFd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, control_name_.data(), control_name_.size());
  auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + control_name_.size());
  EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(listen(listener_.get(), 8), 0);
}

KeeperHarness::~KeeperHarness() {
  if (keeper_ > 0) {
    kill(keeper_, SIGKILL);
    Wait();
  }
  for (const std::string& line : MountLines(root_)) {
    std::vector<std::string> fields = absl::StrSplit(line, ' ');
    umount2(fields[4].c_str(), MNT_DETACH);
  }
  base::RemoveTree(root_).IgnoreError();
}

void KeeperHarness::Start(const std::vector<std::string>& keeper_words,
                          const std::vector<std::string>& daemon_words) {
  std::vector<std::string> words = {keeper_program_};
  words.insert(words.end(), keeper_words.begin(), keeper_words.end());
  words.insert(words.end(), {"--", daemon_program_, absl::StrCat("--control=", control_name_)});
  words.insert(words.end(), daemon_words.begin(), daemon_words.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  std::string log = root_ + "/stderr";
  std::unique_ptr<FakeServiceManager::Launch> launch = manager_ == nullptr ? nullptr : manager_->Prepare();
  keeper_ = fork();
  if (keeper_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int fd = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(fd, STDERR_FILENO);
    close(fd);
    if (launch != nullptr) launch->Execute(argv.data());
    execv(argv[0], argv.data());
    _exit(126);
  }
  if (manager_ != nullptr) manager_->Launched(keeper_);
  keeper_exit_ = base::UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, keeper_, 0)));
}

std::unique_ptr<FakeDaemon> KeeperHarness::AcceptDaemon() {
  pollfd wait[2] = {{listener_.get(), POLLIN, 0}, {keeper_exit_.get(), POLLIN, 0}};
  while (poll(wait, 2, -1) < 0) {
  }
  if ((wait[0].revents & POLLIN) == 0) return nullptr;
  base::UniqueFd control(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  return std::make_unique<FakeDaemon>(std::move(control));
}

int KeeperHarness::Wait() {
  int status = 0;
  while (waitpid(keeper_, &status, 0) < 0 && errno == EINTR) {
  }
  keeper_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

std::string KeeperHarness::stderr_text() const {
  auto text = base::ReadFile(root_ + "/stderr", 1 << 20);
  return text.ok() ? *text : "";
}

bool KeeperHarness::AwaitStderr(const std::string& text) const {
  return support::Eventually([&] {
    if (absl::StrContains(stderr_text(), text)) return true;
    poll(nullptr, 0, 20);
    return false;
  });
}

std::string KeeperHarness::MakeTarget(const std::string& name) {
  std::string target = absl::StrCat(root_, "/", name);
  EXPECT_TRUE(base::MakeDirectories(target).ok());
  return target;
}

void KeeperTest::SetUp() {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  harness_ = std::make_unique<KeeperHarness>();
}

std::unique_ptr<FakeDaemon> KeeperTest::Next() {
  auto daemon = harness_->AcceptDaemon();
  EXPECT_NE(daemon, nullptr) << harness_->stderr_text();
  return daemon;
}

std::unique_ptr<FakeDaemon> KeeperTest::StartServing(const std::vector<std::string>& keeper_words) {
  harness_->Start(keeper_words);
  auto daemon = Next();
  if (daemon != nullptr) {
    EXPECT_EQ(daemon->Do(harness_->ServeCommand()), "OK");
  }
  return daemon;
}

std::string Contents(const std::string& path) {
  auto bytes = base::ReadFile(path, 1 << 20);
  return bytes.ok() ? *bytes : std::string(bytes.status().message());
}

std::pair<int, base::UniqueFd> ConnectTo(const std::string& path) {
  base::UniqueFd client(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  const int result = connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  const int error = result == 0 ? 0 : errno;
  return {error, std::move(client)};
}

std::vector<std::string> MountLines(const std::string& text) {
  auto info = base::ReadFile("/proc/self/mountinfo", 16 << 20);
  std::vector<std::string> lines;
  if (!info.ok()) return lines;
  for (absl::string_view line : absl::StrSplit(*info, '\n')) {
    if (absl::StrContains(line, text)) lines.emplace_back(line);
  }
  return lines;
}

std::string ReadAsNobody(const std::string& directory, const std::string& name) {
  base::UniqueFd parent(open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  base::UniqueFd reader(ends[0]);
  base::UniqueFd writer(ends[1]);
  pid_t pid = fork();
  if (pid == 0) {
    char bytes[4096];
    ssize_t n = -1;
    if (setgroups(0, nullptr) == 0 && setresgid(65534, 65534, 65534) == 0 &&
        setresuid(65534, 65534, 65534) == 0) {
      int fd = openat(parent.get(), name.c_str(), O_RDONLY | O_CLOEXEC);
      n = fd < 0 ? -1 : read(fd, bytes, sizeof bytes);
    }
    if (n < 0) n = snprintf(bytes, sizeof bytes, "errno %d", errno);
    _exit(write(writer.get(), bytes, static_cast<size_t>(n)) == n ? 0 : 1);
  }
  writer.Reset();
  std::string text(8192, '\0');
  ssize_t n = read(reader.get(), text.data(), text.size());
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  waitpid(pid, nullptr, 0);
  return text;
}

}  // namespace lazyblob::fuse
