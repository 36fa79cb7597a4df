// The parts of the keeper that need no privileges.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "absl/strings/str_cat.h"
#include "fuse/internal/child_process.h"
#include "fuse/internal/keeper_protocol.h"
#include "fuse/internal/keeper_state.h"
#include "fuse/internal/probe.h"
#include "fuse/internal/service_manager.h"
#include "fuse/keeper.h"
#include "fuse/mounter.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lazyblob::fuse {
namespace {

using internal::KernelAtLeast;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(KernelAtLeast, ComparesReleases) {
  EXPECT_TRUE(KernelAtLeast("6.12.2", 6, 12, 2));
  EXPECT_TRUE(KernelAtLeast("6.18.44-fc-v657", 6, 12, 2));
  EXPECT_TRUE(KernelAtLeast("7.0-rc1", 6, 12, 2));
  EXPECT_TRUE(KernelAtLeast("6.13", 6, 12, 2));
  EXPECT_FALSE(KernelAtLeast("6.12.1-amd64", 6, 12, 2));
  EXPECT_FALSE(KernelAtLeast("6.12", 6, 12, 2));
  EXPECT_FALSE(KernelAtLeast("6.12-rc3", 6, 12, 2));
  EXPECT_FALSE(KernelAtLeast("5.99.99", 6, 12, 2));
  EXPECT_FALSE(KernelAtLeast("", 0, 0, 0));
  EXPECT_FALSE(KernelAtLeast("linux", 0, 0, 0));
  EXPECT_TRUE(KernelAtLeast("6.99999999999999", 6, 12, 2));
}

TEST(Modes, NamesGoBothWays) {
  for (Mode mode : {Mode::kErofs, Mode::kLoop, Mode::kFuse})
    EXPECT_EQ(ParseMode(ModeName(mode))->value(), mode);
  EXPECT_FALSE(ParseMode("auto")->has_value());
  absl::Status wrong = ParseMode("er\nofs").status();
  EXPECT_TRUE(absl::IsInvalidArgument(wrong));
  EXPECT_THAT(std::string(wrong.message()), HasSubstr("er\\x0aofs"));
}

TEST(KeeperArguments, AreParsed) {
  auto options = ParseKeeperArguments(
      {"--error-after=3", "--held=a:7", "--check-state", "--ready-fd=7", "--", "/bin/d", "--root", "--"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->error_after, absl::Seconds(3));
  EXPECT_EQ(options->held, "a:7");
  EXPECT_TRUE(options->check_state);
  EXPECT_EQ(options->ready_fd, 7);
  EXPECT_THAT(options->daemon, ElementsAre("/bin/d", "--root", "--"));
  EXPECT_EQ(ParseKeeperArguments({"--", "/bin/d"})->ready_fd, -1);
  for (const std::vector<std::string>& wrong :
       std::vector<std::vector<std::string>>{{},
                                             {"--"},
                                             {"/bin/d"},
                                             {"--", "d"},
                                             {"--ready-fd=x", "--", "/d"},
                                             {"--ready-fd=-1", "--", "/d"}}) {
    EXPECT_FALSE(ParseKeeperArguments(wrong).ok());
  }
}

TEST(ChildProcess, HandsBackItsResult) {
  auto child = internal::RunInChild(-1, [] { return std::string("result"); });
  ASSERT_TRUE(child.ok()) << child.status();
  EXPECT_EQ(internal::ReceivePacket(child->result.get(), false, 0)->bytes, "result");
  int status = 0;
  ASSERT_EQ(waitpid(child->pid, &status, 0), child->pid);
  EXPECT_EQ(status, 0);
}

TEST(ChildProcess, KeepsNoDescriptorButTheNamedOne) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  base::UniqueFd reader(ends[0]);
  base::UniqueFd writer(ends[1]);
  auto child = internal::RunInChild(reader.get(), [&] {
    bool kept = fcntl(reader.get(), F_GETFD) >= 0;
    bool leaked = fcntl(writer.get(), F_GETFD) >= 0;
    return std::string(kept && !leaked ? "right" : "wrong");
  });
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(internal::ReceivePacket(child->result.get(), false, 0)->bytes, "right");
  waitpid(child->pid, nullptr, 0);
}

TEST(ChildProcess, ADeadChildHasNoResult) {
  auto child = internal::RunInChild(-1, [] {
    raise(SIGKILL);
    return std::string("never");
  });
  ASSERT_TRUE(child.ok());
  EXPECT_EQ(internal::ReceivePacket(child->result.get(), false, 0)->bytes, "");
  waitpid(child->pid, nullptr, 0);
}

TEST(ChildProcess, CloseInChildDropsEveryReference) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  base::UniqueFd reader(ends[0]);
  std::vector<base::UniqueFd> closing;
  closing.emplace_back(ends[1]);
  internal::CloseInChild(std::move(closing));
  char byte;
  EXPECT_EQ(read(reader.get(), &byte, 1), 0);  // the end: no writer is left anywhere
  EXPECT_GT(waitpid(-1, nullptr, 0), 0);
}

TEST(ChildProcess, DyingIsSeen) {
  EXPECT_FALSE(internal::IsDying(getpid()));
  pid_t pid = fork();
  if (pid == 0) _exit(0);
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT), 0);
  EXPECT_TRUE(internal::IsDying(pid));  // a zombie
  waitpid(pid, nullptr, 0);
  EXPECT_TRUE(internal::IsDying(pid));  // gone
}

internal::KeeperState SomeState() {
  internal::KeeperState state;
  state.device = "fuse-1";
  state.mount = "mount-2";
  state.good_program = "program-3";
  state.sockets = {{"control", "1:2", "socket-4"}};
  state.next_name = 5;
  state.connection = 77;
  state.connection_used = true;
  state.init = {"request", std::string("ans\0wer", 7)};
  state.session = 9;
  state.daemon = {1234, 5678};
  state.predecessors = {{12, 34}};
  state.program = "/usr/sbin/lazyblobd";
  state.arguments = {"--root", "/data"};
  state.oom_score_adj = "-999";
  state.ready = true;
  state.mounts = {{1, "/m/a", 100, false}, {3, "/m/b", 101, true}};
  state.next_sequence = 4;
  state.pending = {"/m/c"};
  return state;
}

TEST(KeeperState, GoesBothWays) {
  const std::string bytes = internal::EncodeState(SomeState());
  auto state = internal::DecodeState(bytes);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(internal::EncodeState(*state), bytes);
  EXPECT_EQ(state->mounts[1].target, "/m/b");
  EXPECT_EQ(state->sockets[0].place, "1:2");
  EXPECT_EQ(state->daemon.start, 5678u);
  EXPECT_THAT(state->arguments, ElementsAre("--root", "/data"));
}

TEST(KeeperState, NewerRecordsAreIgnoredOrRefusedAsTheySay) {
  const std::string bytes = internal::EncodeState(SomeState());
  const std::string optional = internal::BodyWriter().U32(0x80000063).String("news").Take();
  EXPECT_TRUE(internal::DecodeState(bytes + optional).ok());
  const std::string needed = internal::BodyWriter().U32(0x63).String("news").Take();
  EXPECT_TRUE(absl::IsFailedPrecondition(internal::DecodeState(bytes + needed).status()));
  for (size_t size = 0; size < bytes.size(); ++size) {  // a record's end is no damage
    auto state = internal::DecodeState(bytes.substr(0, size));
    EXPECT_TRUE(state.ok() || absl::IsInvalidArgument(state.status())) << state.status();
  }
  EXPECT_FALSE(internal::DecodeState("").ok());
  EXPECT_FALSE(internal::DecodeState(bytes.substr(0, bytes.size() - 1)).ok());
}

TEST(KeeperState, AWriteThatWasCutShortLeavesTheOneBefore) {
  auto file = internal::StateFile::Create();
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(absl::IsDataLoss(file->Read().status()));
  ASSERT_TRUE(file->Write("first").ok());
  ASSERT_TRUE(file->Write("second").ok());
  internal::StateFile reader{base::UniqueFd(dup(file->fd()))};
  EXPECT_EQ(*reader.Read(), "second");
  // The third goes where the first was; half of it.
  ASSERT_TRUE(reader.Write("third").ok());
  EXPECT_EQ(*file->Read(), "third");
  ASSERT_EQ(pwrite(file->fd(), "x", 1, (1 << 30) + 24 + 32 + 2), 1);
  EXPECT_EQ(*file->Read(), "second");
  ASSERT_TRUE(file->Write("again").ok());
  EXPECT_EQ(*reader.Read(), "again");
}

TEST(HeldWord, NamesDescriptorsThatAreOpen) {
  const int fd = dup(STDERR_FILENO);
  EXPECT_EQ(internal::HeldWord({{"a-1", 7}, {"b", 8}}), "a-1:7,b:8");
  internal::HeldDescriptors held;
  ASSERT_TRUE(internal::ParseHeldWord(absl::StrCat("x:", fd), &held).ok());
  EXPECT_EQ(held["x"].get(), fd);
  for (const char* wrong : {"", "x", "x:", ":5", "x:99999", "x:1", "x:-1", "x:5x"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(internal::ParseHeldWord(wrong, &held))) << wrong;
  }
}

// What KeeperGoesOn says in a process that is given `state` (empty: a file that nobody has written) and
// `others`; the arguments of SomeState are then what KeptDaemonArguments says.
bool GoesOnWith(const std::string& state, const std::vector<std::string>& others) {
  const pid_t child = fork();
  if (child == 0) {
    auto file = internal::StateFile::Create();
    if (!file.ok() || (!state.empty() && !file->Write(state).ok())) _exit(2);
    const int kept = fcntl(file->fd(), F_DUPFD, 100);
    std::string names = "state";
    dup2(kept, 3);
    for (size_t i = 0; i < others.size(); ++i) {
      absl::StrAppend(&names, ":", others[i]);
      dup2(kept, 4 + static_cast<int>(i));
    }
    setenv("LISTEN_PID", absl::StrCat(getpid()).c_str(), 1);
    setenv("LISTEN_FDS", absl::StrCat(1 + others.size()).c_str(), 1);
    setenv("LISTEN_FDNAMES", names.c_str(), 1);
    const bool goes_on = KeeperGoesOn();
    if (KeptDaemonArguments() != (goes_on ? SomeState().arguments : std::vector<std::string>())) _exit(3);
    _exit(KeeperGoesOn() == goes_on && goes_on ? 0 : 1);  // asked again: nothing was taken
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) < 2) << status;
  return status == 0;
}

TEST(KeeperStart, GoesOnOnlyWithWhatCanBeUsed) {
  const internal::KeeperState state = SomeState();
  const std::string bytes = internal::EncodeState(state);
  EXPECT_TRUE(GoesOnWith(bytes, {state.device, state.mount}));
  EXPECT_FALSE(GoesOnWith(bytes, {state.device})) << "the mount was not kept";
  EXPECT_FALSE(GoesOnWith(bytes.substr(0, bytes.size() - 1), {state.device, state.mount}));
  EXPECT_FALSE(GoesOnWith("", {state.device, state.mount}));
  EXPECT_FALSE(KeeperGoesOn()) << "nothing was kept";
}

TEST(StateFileSystem, OnlyWhereErofsImagesCanBeMountedFrom) {
  absl::Status status = internal::CheckStateFileSystem("/proc");
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("must be on ext4, xfs or btrfs"));
  EXPECT_TRUE(absl::IsNotFound(internal::CheckStateFileSystem("/no/such/place")));
}

}  // namespace
}  // namespace lazyblob::fuse
