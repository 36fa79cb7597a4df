// The keeper's own end, its successors, and daemons that never start; on the real kernel, as root.

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "fuse/internal/mount_syscalls.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fuse/fake_service_manager.h"
#include "tests/fuse/keeper_harness.h"

namespace lazyblob::fuse {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;
using ::testing::UnorderedElementsAre;

// As a kernel does for a request that is too old. False: the keeper holds no mount.
bool AbortConnectionOf(pid_t keeper) {
  const std::string directory = absl::StrCat("/proc/", keeper, "/fd");
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    std::error_code error;
    struct statx st{};
    if (std::filesystem::read_symlink(entry.path(), error) != "/" ||
        statx(AT_FDCWD, entry.path().c_str(), AT_STATX_DONT_SYNC, STATX_TYPE, &st) != 0) {
      continue;
    }
    return internal::AbortConnection(st.stx_dev_minor).ok();
  }
  return false;
}

class KeeperRestartTest : public KeeperTest {
 protected:
  std::string Mount(FakeDaemon& daemon, const std::string& name) {
    std::string target = harness_->MakeTarget(name);
    EXPECT_EQ(daemon.Do(harness_->MountCommand("erofs", target)), "OK");
    return target;
  }
  // A reader whose read the daemon has and does not answer.
  void HoldRead(FakeDaemon& daemon, const std::string& target) {
    EXPECT_EQ(daemon.Do("hold read"), "OK");
    reader_ = std::thread([this, target] { seen_ = Contents(target + "/whole"); });
    EXPECT_EQ(daemon.Do("await-held"), "OK");
  }
  void KillKeeper() {
    ASSERT_EQ(kill(harness_->keeper(), SIGKILL), 0);
    ASSERT_EQ(harness_->Wait(), -SIGKILL);
  }
  // Kills the daemon with a read in hand; no other one can start. What the reader has seen is in seen_.
  void LoseEveryDaemonInARead(FakeDaemon& daemon, const std::string& target, const std::string& program) {
    HoldRead(daemon, target);
    ASSERT_TRUE(base::WriteFileAtomically(program, "#!/bin/sh\nkill -KILL $$\n", 0755).ok());
    daemon.Kill();
    reader_.join();
  }
  // A directory with the keeper and the daemon, or with `keeper_contents` instead of the keeper.
  std::string Programs(const std::string& name, const std::string& keeper_contents = "") {
    const std::string directory = harness_->MakeTarget(name);
    std::filesystem::copy_file(LAZYBLOB_FAKE_DAEMON, directory + "/daemon");
    if (keeper_contents.empty()) {
      std::filesystem::copy_file(LAZYBLOB_KEEPER, directory + "/lazyblob-keeper");
    } else {
      EXPECT_TRUE(base::WriteFileAtomically(directory + "/lazyblob-keeper", keeper_contents, 0755).ok());
    }
    return directory;
  }
  std::string RunningKeeper() const {
    std::error_code error;
    return std::filesystem::read_symlink(absl::StrCat("/proc/", harness_->keeper(), "/exe"), error);
  }
  void TearDown() override {
    if (!reader_.joinable()) return;
    manager_.DropStored("");
    harness_.reset();  // ends the connection
    reader_.join();
  }

  FakeServiceManager manager_;
  std::thread reader_;
  std::string seen_;
};

TEST_F(KeeperRestartTest, AReaderSurvivesTheDeathOfTheKeeper) {
  harness_->SetManager(&manager_);
  auto daemon = StartServing();
  ASSERT_NE(daemon, nullptr);
  const std::string target = Mount(*daemon, "layer");
  EXPECT_EQ(daemon->Do("ready"), "OK");
  EXPECT_TRUE(manager_.AwaitLine("READY=1"));
  const std::string taken = daemon->Do("take");
  HoldRead(*daemon, target);
  for (int generation = 2; generation < 4; ++generation) {
    KillKeeper();
    harness_->Start();
    daemon = Next();
    ASSERT_NE(daemon, nullptr);
    EXPECT_EQ(daemon->Do("take"), absl::StrCat("generation=", generation, taken.substr(taken.find(' '))));
    EXPECT_EQ(daemon->Do("serve-held " + harness_->blob_path()), "OK");
    EXPECT_EQ(daemon->Do("await-held"), "OK");
  }
  EXPECT_EQ(daemon->Do("release"), "OK");
  reader_.join();
  EXPECT_EQ(seen_, harness_->image().whole);
  EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", target, "]"));
  EXPECT_EQ(Contents(target + "/cut"), harness_->image().cut);
  EXPECT_EQ(daemon->Do("umount " + target), "OK");
  EXPECT_THAT(MountLines(target), IsEmpty());
  EXPECT_EQ(manager_.refused(), 0);
}

TEST_F(KeeperRestartTest, ACleanStopLeavesNothingWithTheServiceManager) {
  harness_->SetManager(&manager_);
  auto daemon = StartServing();
  ASSERT_NE(daemon, nullptr);
  Mount(*daemon, "layer");
  EXPECT_EQ(daemon->Do("keep control place " + harness_->root() + "/s"), "OK");
  EXPECT_EQ(daemon->Do("ready"), "OK");
  EXPECT_TRUE(manager_.AwaitLine("READY=1"));
  EXPECT_THAT(manager_.Stored(), UnorderedElementsAre("state", "fuse", "mount", "socket", "program"));
  ASSERT_EQ(kill(harness_->keeper(), SIGTERM), 0);
  EXPECT_EQ(harness_->Wait(), 0);
  EXPECT_TRUE(manager_.AwaitLine("STATUS=stopped"));
  EXPECT_THAT(manager_.Stored(), IsEmpty());
  EXPECT_THAT(MountLines(harness_->root()), IsEmpty());
}

TEST_F(KeeperRestartTest, SocketsAndTheGoodProgramOutliveTheKeeper) {
  harness_->SetManager(&manager_);
  const std::string programs = Programs("programs");
  harness_->SetPrograms(LAZYBLOB_KEEPER, programs + "/daemon");
  auto daemon = StartServing();
  ASSERT_NE(daemon, nullptr);
  Mount(*daemon, "layer");
  const std::string path = harness_->root() + "/s";
  EXPECT_EQ(daemon->Do("keep control place " + path), "OK");
  EXPECT_EQ(daemon->Do("ready"), "OK");
  EXPECT_EQ(daemon->Do("keep control another " + path + "2"), "OK") << "the first one is not kept any longer";
  ASSERT_TRUE(base::WriteFileAtomically(programs + "/daemon", "#!/bin/sh\nexit 1\n", 0755).ok());
  KillKeeper();
  const auto client = ConnectTo(path + "2");
  EXPECT_EQ(client.first, 0);
  harness_->Start();
  daemon = Next();  // what lies at the path now cannot start
  ASSERT_NE(daemon, nullptr);
  EXPECT_EQ(daemon->Do("accept control another"), "1") << harness_->stderr_text();
  EXPECT_THAT(harness_->stderr_text(), HasSubstr("the program of its predecessor is started again"));
  EXPECT_THAT(manager_.Stored(), UnorderedElementsAre("state", "fuse", "mount", "socket", "program"));
}

TEST_F(KeeperRestartTest, AMountThatWasUnderWayIsUndone) {
  harness_->SetManager(&manager_);
  auto daemon = StartServing();
  ASSERT_NE(daemon, nullptr);
  const std::string a = Mount(*daemon, "a");
  const std::string b = harness_->MakeTarget("b");
  EXPECT_EQ(daemon->Do("hold open"), "OK");
  daemon->Begin(harness_->MountCommand("erofs", b));
  EXPECT_EQ(daemon->Do("await-held"), "OK");
  KillKeeper();
  // As if the dead keeper's child had still succeeded.
  ASSERT_EQ(mount("none", b.c_str(), "tmpfs", 0, nullptr), 0);
  harness_->Start();
  daemon = Next();
  ASSERT_NE(daemon, nullptr);
  EXPECT_EQ(daemon->Do("serve-resend " + harness_->blob_path()), "OK");
  EXPECT_EQ(daemon->Do(harness_->MountCommand("erofs", b)), "OK");
  EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", a, " ", b, "]"));
  EXPECT_THAT(MountLines(b), SizeIs(1));
}

TEST_F(KeeperRestartTest, WithoutWhatWasKeptTheNextKeeperStartsAfresh) {
  harness_->SetManager(&manager_);
  auto daemon = StartServing();
  ASSERT_NE(daemon, nullptr);
  Mount(*daemon, "layer");
  const std::string path = harness_->root() + "/s";
  EXPECT_EQ(daemon->Do("keep control place " + path), "OK");
  KillKeeper();
  EXPECT_EQ(ConnectTo(path).first, 0) << "it waits for the next keeper";
  manager_.DropStored("mount");
  harness_->Start();
  daemon = Next();
  ASSERT_NE(daemon, nullptr);
  EXPECT_EQ(ConnectTo(path).first, ECONNREFUSED) << "nobody will ever accept";
  EXPECT_EQ(daemon->Do("take"), "generation=1 taken_over=0 init=/");
  EXPECT_THAT(harness_->stderr_text(), AllOf(HasSubstr("what the service manager has kept cannot be used"),
                                             HasSubstr("was not kept")));
  EXPECT_THAT(manager_.Stored(), ElementsAre("state", "fuse", "mount"));
  EXPECT_EQ(manager_.refused(), 0);
  // The new state is the one that the keeper after it finds.
  EXPECT_EQ(daemon->Do(harness_->ServeCommand()), "OK");
  const std::string target = Mount(*daemon, "another");
  KillKeeper();
  harness_->Start();
  daemon = Next();
  ASSERT_NE(daemon, nullptr);
  EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", target, "]"));
}

TEST_F(KeeperRestartTest, TheServiceManagerNeedNotWaitForTheDaemonOfAKeeperThatGoesOn) {
  const std::string programs = Programs("programs");
  harness_->SetManager(&manager_);
  harness_->SetPrograms(LAZYBLOB_KEEPER, programs + "/daemon");
  auto daemon = StartServing();
  ASSERT_NE(daemon, nullptr);
  Mount(*daemon, "layer");
  EXPECT_EQ(daemon->Do("ready"), "OK");
  EXPECT_TRUE(manager_.AwaitLine("READY=1"));
  manager_.ForgetLines();
  KillKeeper();
  harness_->Start();
  ASSERT_NE(Next(), nullptr);  // says nothing
  EXPECT_TRUE(manager_.AwaitLine("READY=1")) << harness_->stderr_text();
}

TEST_F(KeeperRestartTest, AReadThatCrashesEveryDaemonAfterItsReadyEndsInTime) {
  auto daemon = StartServing({"--error-after=1"});
  ASSERT_NE(daemon, nullptr);
  const std::string target = Mount(*daemon, "layer");
  EXPECT_EQ(daemon->Do("ready"), "OK");
  HoldRead(*daemon, target);
  for (int crash = 1; crash <= 4; ++crash) {
    ASSERT_EQ(kill(daemon->pid(), SIGABRT), 0);
    daemon = crash < 4 ? Next() : nullptr;
    if (crash == 4) break;
    ASSERT_NE(daemon, nullptr);
    EXPECT_EQ(daemon->Do("serve-held " + harness_->blob_path()), "OK");
    EXPECT_EQ(daemon->Do("ready"), "OK");
  }
  EXPECT_TRUE(harness_->AwaitStderr("4 times in a row without serving for long; it is started again in 1s"));
  reader_.join();
  EXPECT_THAT(seen_, HasSubstr("Input/output error"));
  daemon = Next();
  ASSERT_NE(daemon, nullptr);
  EXPECT_EQ(daemon->Do("serve-resend " + harness_->blob_path()), "OK");
  EXPECT_EQ(Contents(target + "/whole"), harness_->image().whole);
}

TEST_F(KeeperRestartTest, AConnectionThatTheKernelHasEndedEndsTheKeeper) {
  auto daemon = StartServing();
  ASSERT_NE(daemon, nullptr);
  const std::string target = Mount(*daemon, "layer");
  EXPECT_EQ(daemon->Do("ready"), "OK");
  EXPECT_TRUE(AbortConnectionOf(harness_->keeper()));
  EXPECT_EQ(harness_->Wait(), 1);
  EXPECT_THAT(harness_->stderr_text(), HasSubstr("the kernel has ended the FUSE connection"));
  EXPECT_THAT(MountLines(target), IsEmpty());
}

TEST_F(KeeperRestartTest, WhileNoDaemonStartsReadsFailInTimeAndLaterOnesWork) {
  const std::string programs = Programs("programs");
  harness_->SetPrograms(LAZYBLOB_KEEPER, programs + "/daemon");
  auto daemon = StartServing({"--error-after=1"});
  ASSERT_NE(daemon, nullptr);
  const std::string target = Mount(*daemon, "layer");
  LoseEveryDaemonInARead(*daemon, target, programs + "/daemon");
  EXPECT_THAT(seen_, HasSubstr("Input/output error"));
  EXPECT_THAT(Contents(target + "/cut"), HasSubstr("Input/output error")) << "one that comes now";
  EXPECT_TRUE(harness_->AwaitStderr("times in a row without serving for long; it is started again in 1s"));
  EXPECT_TRUE(harness_->AwaitStderr("until one serves, reads fail with EIO"));
  // The right program again, and one is told so.
  std::filesystem::remove(programs + "/daemon");
  std::filesystem::copy_file(LAZYBLOB_FAKE_DAEMON, programs + "/daemon");
  ASSERT_EQ(kill(harness_->keeper(), SIGHUP), 0);
  daemon = Next();
  ASSERT_NE(daemon, nullptr);
  EXPECT_EQ(daemon->Do("serve-resend " + harness_->blob_path()), "OK");
  EXPECT_EQ(daemon->Do("ready"), "OK");
  EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", target, "]"));
  EXPECT_EQ(Contents(target + "/whole"), harness_->image().whole);
}

TEST_F(KeeperRestartTest, AKernelThatSendsNothingAgainEndsWhatWasLostWithEio) {
  ASSERT_EQ(setenv("LAZYBLOB_FAULTS", "fuse.no_resend=error", 1), 0);
  const std::string programs = Programs("programs");
  harness_->SetPrograms(LAZYBLOB_KEEPER, programs + "/daemon");
  auto daemon = StartServing({"--error-after=0"});
  unsetenv("LAZYBLOB_FAULTS");
  ASSERT_NE(daemon, nullptr);
  const std::string target = Mount(*daemon, "layer");
  LoseEveryDaemonInARead(*daemon, target, programs + "/daemon");
  EXPECT_THAT(seen_, HasSubstr("Input/output error"));
}

TEST_F(KeeperRestartTest, ADaemonThatDiesBeforeAnythingIsMountedIsNotStartedForEver) {
  const std::string programs = Programs("programs");
  ASSERT_TRUE(base::WriteFileAtomically(programs + "/daemon", "#!/bin/sh\nkill -KILL $$\n", 0755).ok());
  harness_->SetPrograms(LAZYBLOB_KEEPER, programs + "/daemon");
  harness_->Start();
  EXPECT_EQ(harness_->Wait(), 1);
  EXPECT_THAT(harness_->stderr_text(), HasSubstr("it was never ready, and nothing is mounted"));
}

TEST_F(KeeperRestartTest, TheKeeperReplacesItselfAndKeepsItsDaemon) {
  const std::string one = Programs("one");
  const std::string two = Programs("two");
  harness_->SetManager(&manager_);
  harness_->SetPrograms(one + "/lazyblob-keeper", one + "/daemon");
  auto daemon = StartServing();
  ASSERT_NE(daemon, nullptr);
  const std::string target = Mount(*daemon, "layer");
  const std::string path = harness_->root() + "/s";
  EXPECT_EQ(daemon->Do("keep control place " + path), "OK");
  EXPECT_EQ(daemon->Do("ready"), "OK");
  HoldRead(*daemon, target);
  const pid_t keeper = harness_->keeper();
  for (const std::string& next : {two, one, two}) {
    daemon->Begin("replace " + next + "/daemon");
    auto successor = Next();  // after SIGHUP, which the fake takes as its end
    ASSERT_NE(successor, nullptr);
    daemon = std::move(successor);
    EXPECT_EQ(RunningKeeper(), next + "/lazyblob-keeper");
    EXPECT_EQ(daemon->Do("serve-held " + harness_->blob_path()), "OK");
    EXPECT_EQ(daemon->Do("await-held"), "OK");
    EXPECT_EQ(daemon->Do("ready"), "OK");
    EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", target, "]"));
  }
  EXPECT_EQ(kill(keeper, 0), 0);
  EXPECT_EQ(daemon->Do("release"), "OK");
  reader_.join();
  EXPECT_EQ(seen_, harness_->image().whole);
  EXPECT_EQ(daemon->Do("accept control place"), "0");
  // And it is still one that the service manager can replace.
  KillKeeper();
  harness_->Start();
  daemon = Next();
  ASSERT_NE(daemon, nullptr);
  EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", target, "]"));
  EXPECT_EQ(manager_.refused(), 0);
}

TEST_F(KeeperRestartTest, AKeeperThatCannotGoOnIsRefusedAndNothingIsReplaced) {
  const std::string good = Programs("good");
  harness_->SetPrograms(good + "/lazyblob-keeper", good + "/daemon");
  auto daemon = StartServing();
  ASSERT_NE(daemon, nullptr);
  const std::string target = Mount(*daemon, "layer");
  EXPECT_EQ(daemon->Do("ready"), "OK");
  int number = 0;
  for (const char* bad : {"#!/bin/sh\nexit 0\n", "#!/bin/sh\nexit 1\n", "#!/bin/sh\nkill -9 $$\n",
                          "\x7f"
                          "ELF damaged"}) {
    const std::string programs = Programs(absl::StrCat("bad", ++number), bad);
    EXPECT_THAT(daemon->Do("replace " + programs + "/daemon"),
                AllOf(StartsWith("FAILED_PRECONDITION"), HasSubstr("nothing was replaced")));
    EXPECT_EQ(RunningKeeper(), good + "/lazyblob-keeper");
  }
  EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", target, "]"));
  EXPECT_EQ(Contents(target + "/whole"), harness_->image().whole);
  // By a signal there is nobody to tell: the daemon is replaced, the keeper stays.
  std::filesystem::remove(good + "/lazyblob-keeper");
  ASSERT_TRUE(base::WriteFileAtomically(good + "/lazyblob-keeper", "#!/bin/sh\nexit 0\n", 0755).ok());
  ASSERT_EQ(kill(harness_->keeper(), SIGHUP), 0);
  daemon = Next();
  ASSERT_NE(daemon, nullptr);
  EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", target, "]"));
}

TEST_F(KeeperRestartTest, AnUpgradeWaitsForMountsThatAreUnderWay) {
  const std::string one = Programs("one");
  const std::string two = Programs("two");
  harness_->SetPrograms(one + "/lazyblob-keeper", one + "/daemon");
  auto daemon = StartServing();
  ASSERT_NE(daemon, nullptr);
  const std::string a = Mount(*daemon, "a");
  const std::string b = harness_->MakeTarget("b");
  EXPECT_EQ(daemon->Do("ready"), "OK");
  EXPECT_EQ(daemon->Do("hold open"), "OK");
  daemon->Begin(harness_->MountCommand("erofs", b));
  EXPECT_EQ(daemon->Do("await-held"), "OK");
  daemon->Begin("replace " + two + "/daemon");
  EXPECT_EQ(daemon->Do("release"), "OK");
  auto successor = Next();
  ASSERT_NE(successor, nullptr);
  daemon = std::move(successor);
  EXPECT_EQ(RunningKeeper(), two + "/lazyblob-keeper");
  EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", a, " ", b, "]"));
}

}  // namespace
}  // namespace lazyblob::fuse
