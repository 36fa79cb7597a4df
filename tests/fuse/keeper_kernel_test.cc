// The keeper on the real kernel, as root: real mounts, a fake daemon that is killed.

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <set>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/digest.h"
#include "base/status.h"
#include "fuse/internal/mount_syscalls.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fuse/keeper_harness.h"

namespace lazyblob::fuse {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;

// "major:minor" of the file system on whose root the process has a descriptor that is in no mount table; ""
// if none.
std::string DetachedDeviceOf(pid_t pid) {
  std::string directory = absl::StrCat("/proc/", pid, "/fd");
  std::vector<std::string> names = *base::ListDirectory(directory);
  for (const std::string& name : names) {
    std::string path = absl::StrCat(directory, "/", name);
    char link[256];
    ssize_t n = readlink(path.c_str(), link, sizeof link);
    struct statx st;
    if (n != 1 || link[0] != '/' || statx(AT_FDCWD, path.c_str(), AT_STATX_DONT_SYNC, STATX_TYPE, &st) != 0)
      continue;
    return absl::StrCat(st.stx_dev_major, ":", st.stx_dev_minor);
  }
  return "";
}

class KeeperKernelTest : public KeeperTest {
 protected:
  // Kills and takes over.
  std::unique_ptr<FakeDaemon> Replace(FakeDaemon& daemon) {
    daemon.Kill();
    auto next = Next();
    if (next != nullptr) {
      EXPECT_EQ(next->Do("serve-resend " + harness_->blob_path()), "OK");
    }
    return next;
  }
  std::string MountLayer(FakeDaemon& daemon, const std::string& mode, const std::string& name) {
    std::string target = harness_->MakeTarget(name);
    EXPECT_EQ(daemon.Do(harness_->MountCommand(mode, target)), "OK");
    return target;
  }
};

TEST_F(KeeperKernelTest, TheFirstDaemonGetsAFreshConnection) {
  harness_->Start();
  auto daemon = Next();
  ASSERT_NE(daemon, nullptr);
  EXPECT_EQ(daemon->Do("take"), "generation=1 taken_over=0 init=/");
  EXPECT_EQ(daemon->Do("mounted"), "[]");
}

TEST_F(KeeperKernelTest, ErofsOverItsBlob) {
  auto before = internal::ListErofsReadAhead();
  auto daemon = StartServing();
  std::string target = MountLayer(*daemon, "erofs", "layer");
  EXPECT_EQ(Contents(target + "/whole"), harness_->image().whole);
  EXPECT_EQ(Contents(target + "/cut"), harness_->image().cut);
  EXPECT_EQ(ReadAsNobody(target, "whole"), harness_->image().whole);
  auto lines = MountLines(target);
  ASSERT_THAT(lines, SizeIs(1));
  EXPECT_THAT(lines[0], AllOf(HasSubstr(" ro,nosuid,nodev,"), HasSubstr(" - erofs ")));
  EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", target, "]"));

  int tuned = 0;
  for (const std::string& name : internal::ListErofsReadAhead()) {
    if (std::find(before.begin(), before.end(), name) != before.end()) continue;
    EXPECT_EQ(Contents(absl::StrCat("/sys/class/bdi/", name, "/read_ahead_kb")).substr(0, 4), "1024");
    ++tuned;
  }
  EXPECT_GE(tuned, 1);

  EXPECT_EQ(daemon->Do("umount " + target), "OK");
  EXPECT_THAT(MountLines(target), IsEmpty());
  EXPECT_EQ(daemon->Do("mounted"), "[]");
}

TEST_F(KeeperKernelTest, TheFuseFileSystemIsNowhereToBeSeen) {
  auto daemon = StartServing();
  MountLayer(*daemon, "erofs", "layer");
  std::string device = DetachedDeviceOf(harness_->keeper());
  ASSERT_NE(device, "");
  // Neither here nor in the keeper's and the daemon's own view.
  for (pid_t pid : {getpid(), harness_->keeper(), daemon->pid()}) {
    std::string mounts = Contents(absl::StrCat("/proc/", pid, "/mountinfo"));
    EXPECT_THAT(mounts, HasSubstr(" / "));
    EXPECT_THAT(mounts, Not(HasSubstr(absl::StrCat(" ", device, " ")))) << pid;
  }
}

TEST_F(KeeperKernelTest, ACompleteLayerNeedsNoFuse) {
  auto daemon = StartServing();
  std::string target = harness_->MakeTarget("complete");
  EXPECT_EQ(daemon->Do(absl::StrCat("mount erofs ", harness_->image().meta_path, " ",
                                    harness_->image().data_path, " ", target)),
            "OK");
  EXPECT_EQ(Contents(target + "/whole"), harness_->image().whole);
  // The last block is missing from this file.
  EXPECT_THAT(Contents(target + "/cut"), HasSubstr("Input/output error"));
}

TEST_F(KeeperKernelTest, ASuccessorGetsTheConnectionAndItsInit) {
  auto first = StartServing();
  std::string target = MountLayer(*first, "erofs", "layer");
  std::string taken = first->Do("take");
  ASSERT_THAT(taken, StartsWith("generation=1 taken_over=1 init="));
  std::string init = taken.substr(taken.find("init="));
  EXPECT_GT(init.size(), 100u);

  auto second = Replace(*first);
  EXPECT_EQ(second->Do("take"), "generation=2 taken_over=1 " + init);
  EXPECT_EQ(second->Do("mounted"), absl::StrCat("[", target, "]"));
  EXPECT_EQ(Contents(target + "/whole"), harness_->image().whole);
  EXPECT_THAT(harness_->stderr_text(), HasSubstr("was killed by signal 9"));
}

TEST_F(KeeperKernelTest, SighupHandsOverToASuccessor) {
  auto first = StartServing();
  std::string target = MountLayer(*first, "erofs", "layer");
  ASSERT_EQ(kill(harness_->keeper(), SIGHUP), 0);
  auto second = Next();
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->Do("serve-resend " + harness_->blob_path()), "OK");
  EXPECT_EQ(second->Do("mounted"), absl::StrCat("[", target, "]"));
  EXPECT_EQ(Contents(target + "/whole"), harness_->image().whole);
}

TEST_F(KeeperKernelTest, AReadUnderWaySurvivesFiveDeaths) {
  auto daemon = StartServing();
  std::string target = MountLayer(*daemon, "erofs", "layer");
  std::string seen;
  EXPECT_EQ(daemon->Do("hold read"), "OK");
  std::thread reader([&] { seen = Contents(target + "/whole"); });
  EXPECT_EQ(daemon->Do("await-held"), "OK");
  for (int i = 0; i < 5; ++i) {
    daemon->Kill();
    daemon = Next();
    ASSERT_NE(daemon, nullptr);
    EXPECT_EQ(daemon->Do("hold read"), "no server");
    EXPECT_EQ(daemon->Do("serve-held " + harness_->blob_path()), "OK");
    EXPECT_EQ(daemon->Do("await-held"), "OK");
  }
  EXPECT_EQ(daemon->Do("release"), "OK");
  reader.join();
  EXPECT_EQ(seen, harness_->image().whole);
}

TEST_F(KeeperKernelTest, ADeathBeforeTheFirstMountGivesANewConnection) {
  // Whether the first daemon has answered the kernel's INIT cannot be known.
  auto first = StartServing();
  first->Kill();
  auto second = Next();
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(second->Do("take"), "generation=2 taken_over=0 init=/");
  EXPECT_EQ(second->Do(harness_->ServeCommand()), "OK");
  std::string target = MountLayer(*second, "erofs", "layer");
  EXPECT_EQ(Contents(target + "/whole"), harness_->image().whole);
}

TEST_F(KeeperKernelTest, AMountThatHangsWithItsDaemonDoesNotStopTheSuccessor) {
  auto first = StartServing();
  std::string a = MountLayer(*first, "erofs", "a");
  std::string b = harness_->MakeTarget("b");
  EXPECT_EQ(first->Do("hold open"), "OK");
  first->Begin(harness_->MountCommand("erofs", b));
  EXPECT_EQ(first->Do("await-held"), "OK");
  first->Kill();

  auto second = Next();
  ASSERT_NE(second, nullptr);
  // It answers though a child of the keeper still hangs.
  EXPECT_EQ(second->Do("mounted"), absl::StrCat("[", a, "]"));
  EXPECT_EQ(second->Do("serve-resend " + harness_->blob_path()), "OK");
  // The dead daemon's mount comes true now and is undone; ours waits for that.
  EXPECT_EQ(second->Do(harness_->MountCommand("erofs", b)), "OK");
  EXPECT_EQ(second->Do("mounted"), absl::StrCat("[", a, " ", b, "]"));
  EXPECT_THAT(MountLines(b), SizeIs(1));
  EXPECT_EQ(Contents(b + "/whole"), harness_->image().whole);
}

TEST_F(KeeperKernelTest, AMountThatHangsOnANeverUsedConnectionEndsWithIt) {
  auto first = StartServing();
  std::string a = harness_->MakeTarget("a");
  EXPECT_EQ(first->Do("hold open"), "OK");
  first->Begin(harness_->MountCommand("erofs", a));
  EXPECT_EQ(first->Do("await-held"), "OK");
  first->Kill();
  auto second = Next();
  ASSERT_NE(second, nullptr);
  EXPECT_THAT(second->Do("take"), StartsWith("generation=2 taken_over=0"));
  EXPECT_EQ(second->Do(harness_->ServeCommand()), "OK");
  EXPECT_EQ(second->Do(harness_->MountCommand("erofs", a)), "OK");
  EXPECT_EQ(Contents(a + "/whole"), harness_->image().whole);
}

TEST_F(KeeperKernelTest, ADaemonThatCannotBeReapedIsReplacedAndAnnouncedLater) {
  auto first = StartServing();
  std::string target = MountLayer(*first, "fuse", "tree");
  EXPECT_EQ(first->Do("hold open"), "OK");
  first->Begin("enter " + target + "/hello");  // a thread of it now hangs in its own mount
  EXPECT_EQ(first->Do("await-held"), "OK");
  first->Kill();
  auto second = Next();
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(kill(first->pid(), 0), 0) << "the old one should still be there";
  EXPECT_THAT(harness_->stderr_text(), HasSubstr("cannot be reaped yet"));
  EXPECT_EQ(second->Do("serve-resend " + harness_->blob_path()), "OK");
  EXPECT_EQ(second->Do("await-reaped"), "OK");
  EXPECT_EQ(Contents(target + "/hello"), "hello from the tree\n");
}

TEST_F(KeeperKernelTest, ShutdownLeavesNothingMounted) {
  auto daemon = StartServing();
  std::string a = MountLayer(*daemon, "erofs", "a");
  std::string b = MountLayer(*daemon, "erofs", "b");
  std::string merged = harness_->MakeTarget("merged");
  EXPECT_EQ(daemon->Do(absl::StrCat("overlay ", merged, " ", a, " ", b)), "OK");
  base::UniqueFd user(open((merged + "/whole").c_str(), O_RDONLY | O_CLOEXEC));  // busy
  ASSERT_TRUE(user.valid());
  EXPECT_EQ(daemon->Do("shutdown"), "OK");
  EXPECT_THAT(MountLines(harness_->root()), IsEmpty());
  EXPECT_EQ(daemon->Do("mounted"), "[]");
  EXPECT_THAT(daemon->Do(harness_->MountCommand("erofs", a)), StartsWith("UNAVAILABLE"));
  daemon->Begin("exit 0");
  EXPECT_EQ(harness_->Wait(), 0);
  EXPECT_EQ(harness_->stderr_text(), "");
}

TEST_F(KeeperKernelTest, ShutdownWaitsForNoReadForEver) {
  auto daemon = StartServing();
  std::string target = MountLayer(*daemon, "erofs", "layer");
  EXPECT_EQ(daemon->Do("hold read"), "OK");
  std::string seen;
  std::thread reader([&] { seen = Contents(target + "/whole"); });
  EXPECT_EQ(daemon->Do("await-held"), "OK");
  EXPECT_EQ(daemon->Do("shutdown"), "OK");  // busy: lazily
  daemon->Begin("exit 0");
  EXPECT_EQ(harness_->Wait(), 0);
  reader.join();  // the connection has ended with its last holder
  EXPECT_THAT(seen, Not(harness_->image().whole));
}

TEST_F(KeeperKernelTest, ASignalEndsEverythingInOrder) {
  auto daemon = StartServing();
  MountLayer(*daemon, "erofs", "layer");
  ASSERT_EQ(kill(harness_->keeper(), SIGTERM), 0);
  EXPECT_EQ(harness_->Wait(), 0);
  EXPECT_THAT(MountLines(harness_->root()), IsEmpty());
}

TEST_F(KeeperKernelTest, ADaemonThatCannotStartIsNotStartedAgain) {
  harness_->Start({}, {"--exit=3"});
  EXPECT_EQ(harness_->Wait(), 3);
}

TEST_F(KeeperKernelTest, ADaemonThatDoesNotExistIsAnError) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  base::UniqueFd reader(ends[0]);
  base::UniqueFd writer(ends[1]);
  std::string command = absl::StrCat(LAZYBLOB_KEEPER, " --ready-fd=", writer.get(), " -- /no/such/daemon 2>",
                                     harness_->root(), "/stderr");
  EXPECT_NE(system(command.c_str()), 0);
  writer.Reset();
  char byte;
  EXPECT_EQ(read(reader.get(), &byte, 1), 0);
  EXPECT_THAT(harness_->stderr_text(), HasSubstr("/no/such/daemon: No such file or directory"));
}

TEST_F(KeeperKernelTest, TheFirstDaemonSaysWhenItIsReady) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, 0), 0);
  base::UniqueFd reader(ends[0]);
  base::UniqueFd writer(ends[1]);
  harness_->Start({absl::StrCat("--ready-fd=", writer.get())});
  auto daemon = Next();
  ASSERT_NE(daemon, nullptr);
  writer.Reset();
  char line[32];
  ASSERT_EQ(read(reader.get(), line, sizeof line), 6);
  EXPECT_EQ(std::string(line, 6), "ready\n");
  EXPECT_EQ(read(reader.get(), line, sizeof line), 0) << "somebody else holds the descriptor";
  // Its successor has no such descriptor and is not told of one.
  daemon->Kill();
  ASSERT_NE(Next(), nullptr);
}

TEST_F(KeeperKernelTest, TheDaemonInheritsNothingElse) {
  base::UniqueFd lock(open((harness_->root() + "/lock").c_str(), O_RDWR | O_CREAT, 0600));  // no O_CLOEXEC
  ASSERT_TRUE(lock.valid());
  harness_->Start();
  auto daemon = Next();
  std::string open = daemon->Do("descriptors");
  EXPECT_THAT(open, Not(HasSubstr("/lock")));
  EXPECT_THAT(open, Not(HasSubstr("/dev/fuse")));
  EXPECT_THAT(open, HasSubstr("socket:"));
}

TEST_F(KeeperKernelTest, TheDaemonEndsWithItsKeeper) {
  auto daemon = StartServing();
  std::string target = MountLayer(*daemon, "erofs", "layer");
  base::UniqueFd file(open((target + "/whole").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(kill(harness_->keeper(), SIGKILL), 0);
  EXPECT_EQ(harness_->Wait(), -SIGKILL);
  while (daemon->Do("descriptors") != "") {  // until it has ended
  }
  char byte;
  EXPECT_EQ(read(file.get(), &byte, 1), -1);
}

TEST_F(KeeperKernelTest, MountPointsThatCannotBeUsed) {
  auto daemon = StartServing();
  std::string target = MountLayer(*daemon, "erofs", "layer");
  EXPECT_THAT(daemon->Do(harness_->MountCommand("erofs", target)),
              AllOf(StartsWith("FAILED_PRECONDITION"), HasSubstr("already mounted on " + target)));
  EXPECT_THAT(daemon->Do(harness_->MountCommand("erofs", harness_->root() + "/none")),
              StartsWith("NOT_FOUND"));
  EXPECT_THAT(daemon->Do(harness_->MountCommand("erofs", harness_->blob_path())),
              AllOf(StartsWith("FAILED_PRECONDITION"), HasSubstr("not a directory")));
  ASSERT_EQ(symlink(target.c_str(), (harness_->root() + "/link").c_str()), 0);
  EXPECT_THAT(daemon->Do(harness_->MountCommand("erofs", harness_->root() + "/link")),
              StartsWith("FAILED_PRECONDITION"));
  EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", target, "]"));
}

TEST_F(KeeperKernelTest, DamagedImagesAreErrorsWithTheKernelsReason) {
  auto daemon = StartServing();
  std::string target = harness_->MakeTarget("layer");
  std::string bad = harness_->root() + "/bad.erofs";
  ASSERT_TRUE(base::WriteFileAtomically(bad, std::string(8192, 'x')).ok());
  std::string answer = daemon->Do(absl::StrCat("mount erofs ", bad, " - ", target));
  EXPECT_THAT(answer,
              AllOf(HasSubstr("mount layer sha256:"), HasSubstr("(erofs)"), HasSubstr("Invalid argument")));
  EXPECT_THAT(daemon->Do(absl::StrCat("mount erofs ", bad, ".none - ", target)), StartsWith("NOT_FOUND"));
  EXPECT_THAT(MountLines(target), IsEmpty());
}

TEST_F(KeeperKernelTest, UnmountingWhatIsBusyOrNotOurs) {
  auto daemon = StartServing();
  std::string target = MountLayer(*daemon, "erofs", "layer");
  EXPECT_THAT(daemon->Do("umount /proc"), StartsWith("NOT_FOUND"));
  EXPECT_THAT(daemon->Do("umount " + harness_->root()), StartsWith("NOT_FOUND"));
  base::UniqueFd user(open((target + "/whole").c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_THAT(daemon->Do("umount " + target), AllOf(StartsWith("FAILED_PRECONDITION"), HasSubstr("is busy")));
  EXPECT_EQ(daemon->Do("umount " + target + " lazy"), "OK");
  EXPECT_THAT(MountLines(target), IsEmpty());
  std::string whole(harness_->image().whole.size(), '\0');
  EXPECT_EQ(pread(user.get(), whole.data(), whole.size(), 0), static_cast<ssize_t>(whole.size()));
  EXPECT_EQ(whole, harness_->image().whole);
  EXPECT_THAT(daemon->Do("umount " + target), StartsWith("NOT_FOUND"));
}

TEST_F(KeeperKernelTest, AMountOfSomebodyElseOnTopIsLeftAlone) {
  auto daemon = StartServing();
  std::string target = MountLayer(*daemon, "erofs", "layer");
  ASSERT_EQ(mount("none", target.c_str(), "tmpfs", 0, nullptr), 0);
  EXPECT_THAT(daemon->Do("umount " + target), StartsWith("NOT_FOUND"));
  EXPECT_THAT(MountLines(target), SizeIs(2));
  ASSERT_EQ(umount2(target.c_str(), 0), 0);
  EXPECT_EQ(daemon->Do("umount " + target + " lazy"), "NOT_FOUND: nothing of ours is mounted on " + target);
}

TEST_F(KeeperKernelTest, LoopDevices) {
  auto daemon = StartServing();
  std::string target = MountLayer(*daemon, "loop", "layer");
  EXPECT_EQ(Contents(target + "/whole"), harness_->image().whole);
  EXPECT_EQ(ReadAsNobody(target, "cut"), harness_->image().cut);
  auto lines = MountLines(target);
  ASSERT_THAT(lines, SizeIs(1));
  EXPECT_THAT(lines[0], AllOf(HasSubstr(" ro,nosuid,nodev,"), HasSubstr(" - erofs /dev/loop")));
  std::vector<std::string> fields = absl::StrSplit(lines[0], ' ');
  EXPECT_EQ(Contents(absl::StrCat("/sys/class/bdi/", fields[2], "/read_ahead_kb")).substr(0, 4), "1024");
  auto ours = [&] {
    int count = 0;
    std::vector<std::string> names = *base::ListDirectory("/sys/block");
    for (const std::string& name : names) {
      std::string backing = Contents(absl::StrCat("/sys/block/", name, "/loop/backing_file"));
      if (absl::StrContains(backing, harness_->root()) || absl::StrContains(backing, "blobs/sha256-"))
        ++count;
    }
    return count;
  };
  EXPECT_EQ(ours(), 2);
  // A complete layer beside it.
  std::string complete = harness_->MakeTarget("complete");
  EXPECT_EQ(daemon->Do(absl::StrCat("mount loop ", harness_->image().meta_path, " ", harness_->blob_path(),
                                    " ", complete)),
            "OK");
  EXPECT_EQ(Contents(complete + "/cut"), harness_->image().cut);
  EXPECT_EQ(daemon->Do("umount " + complete), "OK");
  auto second = Replace(*daemon);
  EXPECT_EQ(Contents(target + "/cut"), harness_->image().cut);
  EXPECT_EQ(second->Do("umount " + target), "OK");
  EXPECT_EQ(ours(), 0);
}

TEST_F(KeeperKernelTest, TheTreeIsForRootAloneAndItsOverlayForAll) {
  auto daemon = StartServing();
  std::string tree = MountLayer(*daemon, "fuse", "tree");
  EXPECT_EQ(Contents(tree + "/hello"), "hello from the tree\n");
  EXPECT_EQ(ReadAsNobody(tree, "hello"), absl::StrCat("errno ", EACCES));
  ASSERT_THAT(MountLines(tree), SizeIs(1));
  EXPECT_THAT(MountLines(tree)[0], AllOf(HasSubstr(" ro,nosuid,nodev,"), HasSubstr("default_permissions"),
                                         Not(HasSubstr("allow_other"))));
  std::string merged = harness_->MakeTarget("merged");
  EXPECT_EQ(daemon->Do(absl::StrCat("overlay ", merged, " ", tree)), "OK");
  EXPECT_EQ(ReadAsNobody(merged, "hello"), "hello from the tree\n");
  std::string full = harness_->MakeTarget("full");
  ASSERT_TRUE(base::WriteFileAtomically(full + "/mine", "x").ok());
  EXPECT_THAT(daemon->Do(absl::StrCat("overlay ", full, " ", tree)), HasSubstr("is not empty"));
}

TEST_F(KeeperKernelTest, OverlaysOfOneAndMany) {
  auto daemon = StartServing();
  std::vector<std::string> lowers;
  for (int i = 0; i < 40; ++i) lowers.push_back(MountLayer(*daemon, "erofs", absl::StrCat("l", i)));
  std::string many = harness_->MakeTarget("many");
  EXPECT_EQ(daemon->Do(absl::StrCat("overlay ", many, " ", absl::StrJoin(lowers, " "))), "OK");
  EXPECT_EQ(ReadAsNobody(many, "whole"), harness_->image().whole);
  ASSERT_THAT(MountLines(many), SizeIs(1));
  EXPECT_THAT(MountLines(many)[0], AllOf(HasSubstr(" ro,nosuid,nodev,"), HasSubstr(" - overlay ")));

  std::string one = harness_->MakeTarget("one");
  EXPECT_EQ(daemon->Do(absl::StrCat("overlay ", one, " ", lowers[0])), "OK");
  EXPECT_THAT(MountLines(one)[0], AllOf(HasSubstr(" ro,nosuid,nodev,"), HasSubstr(" - erofs ")));
  EXPECT_EQ(Contents(one + "/cut"), harness_->image().cut);

  std::string far = harness_->MakeTarget(std::string(200, 'x') + "/" + std::string(200, 'y'));
  EXPECT_EQ(daemon->Do(harness_->MountCommand("erofs", far)), "OK");
  std::string long_names = harness_->MakeTarget("long");
  EXPECT_EQ(daemon->Do(absl::StrCat("overlay ", long_names, " ", far, " ", lowers[0])), "OK");
  EXPECT_EQ(Contents(long_names + "/whole"), harness_->image().whole);

  // What kernels without "lowerdir+" get.
  pid_t pid = fork();  // it changes the directory
  if (pid == 0) {
    auto mount = internal::MakeOverlayMountInOneOption(lowers);
    if (!mount.ok()) fprintf(stderr, "%s\n", mount.status().ToString().c_str());
    _exit(mount.ok() && faccessat(mount->get(), "whole", R_OK, 0) == 0 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(absl::IsUnimplemented(
      internal::MakeOverlayMountInOneOption(std::vector<std::string>(200, harness_->root())).status()));
}

TEST_F(KeeperKernelTest, MalformedMessagesChangeNothing) {
  auto daemon = StartServing();
  std::string target = MountLayer(*daemon, "erofs", "layer");
  auto raw = [&](const std::string& bytes) {
    EXPECT_EQ(daemon->Do("raw " + absl::BytesToHexString(bytes)), "OK");
  };
  raw("x");
  raw(std::string(30000, 'x'));
  std::string header("LBK1\x05\0\0\0\x63\0\0\0\0\0\0\0", 16);
  raw(header + std::string("\0\0\0\0\0\0\0\0", 8));          // an unmount without a body
  raw(header + std::string("\xff\xff\xff\xff\0\0\0\0", 8));  // wrong length
  std::string unknown = header;
  unknown[4] = 77;
  raw(unknown + std::string("\0\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", target, "]"));
  EXPECT_THAT(harness_->stderr_text(), HasSubstr("not a request; ignored"));
  EXPECT_EQ(daemon->Do("umount " + target), "OK");
}

TEST_F(KeeperKernelTest, TheListOfMountsMayBeLong) {
  auto daemon = StartServing();
  std::vector<std::string> targets;
  for (int i = 0; i < 180; ++i) {
    targets.push_back(
        MountLayer(*daemon, "erofs", absl::StrCat(std::string(200, 'a'), "/", std::string(200, 'b'), i)));
  }
  // More than one message holds.
  ASSERT_GT(absl::StrJoin(targets, " ").size(), 65536u);
  EXPECT_EQ(daemon->Do("mounted-digest"), base::Digest::Of(absl::StrJoin(targets, " ")).hex());
  EXPECT_EQ(daemon->Do("shutdown"), "OK");
  EXPECT_THAT(MountLines(harness_->root()), IsEmpty());
}

TEST_F(KeeperKernelTest, ProbeFindsTheBestMode) {
  auto daemon = StartServing();
  std::string answer = daemon->Do("probe " + harness_->root());
  // This is what every kernel we know from 6.12.2 on does; older ones have the other modes.
  if (absl::StrContains(Contents("/proc/filesystems"), "\terofs\n")) {
    EXPECT_THAT(answer, AnyOf(StartsWith("erofs direct="), StartsWith("loop direct=")));
  }
  EXPECT_THAT(answer, HasSubstr("(Linux "));
  EXPECT_THAT(*base::ListDirectory(harness_->root()), Not(::testing::Contains(StartsWith(".probe-"))));
  EXPECT_THAT(MountLines(".probe-"), IsEmpty());
  EXPECT_THAT(daemon->Do("probe /proc"),
              AllOf(StartsWith("FAILED_PRECONDITION"), HasSubstr("ext4, xfs or btrfs")));
}

}  // namespace
}  // namespace lazyblob::fuse
