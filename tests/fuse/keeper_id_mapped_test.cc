// Id-mapped mounts made by the keeper on the real kernel, as root.

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <functional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/digest.h"
#include "base/status.h"
#include "fuse/internal/user_namespace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "layer/entry.h"
#include "layer/erofs.h"
#include "layer/tree.h"
#include "tests/fuse/keeper_harness.h"

namespace lazyblob::fuse {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;

constexpr char kRanges[] = " 0:100000:1000 1000:200000:1000";

std::string Owner(const std::string& path) {
  struct stat st;
  if (lstat(path.c_str(), &st) != 0) return strerror(errno);
  return absl::StrCat(st.st_uid, ":", st.st_gid);
}

// The exit code of `body` in a child.
int InChild(const std::function<int()>& body) {
  pid_t pid = fork();
  if (pid == 0) _exit(body());
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int Append(const std::string& path) {
  base::UniqueFd file(open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
  if (!file.valid()) return errno;
  return write(file.get(), "more", 4) == 4 ? 0 : 1;
}

class KeeperIdMappedTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "needs root";
    meta_ = harness_.root() + "/owners.erofs";
    layer::TreeBuilder builder;
    layer::Entry root;
    root.path = "./";
    root.type = layer::EntryType::kDirectory;
    root.mode = 0755;
    ASSERT_TRUE(builder.Add(std::move(root)).ok());
    for (uint32_t id : {0u, 1999u, 5000u}) {
      layer::Entry file;
      file.path = absl::StrCat("of", id);
      file.mode = 0640;
      file.uid = file.gid = id;
      file.size = 100;
      file.extents = {{0, 512, 100}};
      ASSERT_TRUE(builder.Add(std::move(file)).ok());
    }
    layer::ErofsOptions options;
    options.layer = base::Digest::Of(absl::string_view("owners"));
    options.data_size = 8192;
    ASSERT_TRUE(layer::WriteErofs(*builder.Finish(), options, meta_).ok());
    harness_.Start();
    daemon_ = harness_.AcceptDaemon();
    ASSERT_NE(daemon_, nullptr) << harness_.stderr_text();
    ASSERT_EQ(daemon_->Do(harness_.ServeCommand()), "OK");
  }

  // A layer mounted in `mode`, with files of 0, 1999 and 5000.
  std::string MountLayer(const std::string& mode, const std::string& name) {
    std::string target = harness_.MakeTarget(name);
    EXPECT_EQ(daemon_->Do(absl::StrCat("mount ", mode, " ", meta_, " - ", target)), "OK");
    return target;
  }
  std::string Map(const std::string& source, const std::string& target, const std::string& ranges = kRanges) {
    return daemon_->Do(absl::StrCat("map ", source, " ", target, ranges));
  }
  std::string MountMapped(const std::string& source, const std::string& name) {
    std::string target = harness_.MakeTarget(name);
    EXPECT_EQ(Map(source, target), "OK");
    return target;
  }
  std::string Expected() const { return harness_.image().whole.substr(512, 100); }

  KeeperHarness harness_;
  std::string meta_;
  std::unique_ptr<FakeDaemon> daemon_;
};

TEST_F(KeeperIdMappedTest, OwnersAreMappedAndTheSourceIsNot) {
  for (const char* mode : {"erofs", "loop"}) {
    std::string source = MountLayer(mode, absl::StrCat(mode, "-source"));
    std::string view = MountMapped(source, absl::StrCat(mode, "-view"));
    EXPECT_EQ(Owner(view), "100000:100000");
    EXPECT_EQ(Owner(view + "/of0"), "100000:100000");
    EXPECT_EQ(Owner(view + "/of1999"), "200999:200999");
    EXPECT_EQ(Owner(view + "/of5000"), "65534:65534");
    EXPECT_EQ(Contents(view + "/of1999"), Expected());
    EXPECT_EQ(Owner(source + "/of0"), "0:0");
    auto lines = MountLines(view);
    ASSERT_THAT(lines, SizeIs(1));
    EXPECT_THAT(lines[0],
                AllOf(HasSubstr(" ro,nosuid,nodev,"), HasSubstr("idmapped"), HasSubstr(" - erofs ")));
    EXPECT_EQ(daemon_->Do("mounted"), absl::StrCat("[", source, " ", view, "]"));
    EXPECT_EQ(daemon_->Do("umount " + view), "OK");
    EXPECT_THAT(MountLines(view), IsEmpty());
    EXPECT_EQ(daemon_->Do("umount " + source), "OK");
  }
}

TEST_F(KeeperIdMappedTest, UidsAndGidsHaveMapsOfTheirOwn) {
  IdMapping mapping{{{0, 100000, 2000}}, {{0, 300000, 2000}}};
  absl::StatusOr<base::UniqueFd> made = internal::MakeUserNamespace(mapping);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(InChild([&] {
              if (setns(made->get(), CLONE_NEWUSER) != 0) return 1;
              if (Contents("/proc/self/uid_map") != "         0     100000       2000\n") return 2;
              return Contents("/proc/self/gid_map") == "         0     300000       2000\n" ? 0 : 3;
            }),
            0);
}

TEST_F(KeeperIdMappedTest, AContainerOwnsItsFilesOnAnOverlayAndCopiesThemUp) {
  std::string view = MountMapped(MountLayer("erofs", "source"), "view");
  std::string merged = harness_.MakeTarget("merged");
  std::string upper = harness_.MakeTarget("upper");
  std::string work = harness_.MakeTarget("work");
  ASSERT_EQ(chown(upper.c_str(), 100000, 100000), 0);
  ASSERT_EQ(chmod(upper.c_str(), 0755), 0);
  std::string options = absl::StrCat("lowerdir=", view, ",upperdir=", upper, ",workdir=", work);
  ASSERT_EQ(mount("overlay", merged.c_str(), "overlay", 0, options.c_str()), 0) << strerror(errno);
  absl::StatusOr<base::UniqueFd> container = internal::MakeUserNamespace(
      {{{0, 100000, 1000}, {1000, 200000, 1000}}, {{0, 100000, 1000}, {1000, 200000, 1000}}});
  ASSERT_TRUE(container.ok()) << container.status();
  // By names relative to it: only root passes the directories above.
  base::UniqueFd inside(open(merged.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  // The container's root owns the root's files, and may change those of every mapped user.
  EXPECT_EQ(InChild([&] {
              if (fchdir(inside.get()) != 0) return 100;
              if (setns(container->get(), CLONE_NEWUSER) != 0 || setgid(0) != 0 || setuid(0) != 0) return 101;
              if (Owner("of0") != "0:0" || Owner("of1999") != "1999:1999") return 102;
              if (Contents("of1999") != Expected()) return 103;
              return Append("of0");
            }),
            0);
  EXPECT_EQ(InChild([&] {
              if (fchdir(inside.get()) != 0) return 100;
              if (setresgid(200999, 200999, 200999) != 0 || setresuid(200999, 200999, 200999) != 0)
                return 101;
              if (Append("of0") != EACCES) return 102;
              return Append("of1999");
            }),
            0);
  EXPECT_EQ(Owner(upper + "/of0"), "100000:100000");
  EXPECT_EQ(Owner(upper + "/of1999"), "200999:200999");
  EXPECT_EQ(Contents(upper + "/of1999"), Expected() + "more");
  EXPECT_EQ(Contents(view + "/of1999"), Expected());
  // A file of nobody's in the mapping is not given to somebody.
  EXPECT_EQ(Append(merged + "/of5000"), EACCES);
  inside.Reset();
  ASSERT_EQ(umount2(merged.c_str(), 0), 0);
}

TEST_F(KeeperIdMappedTest, PlainDirectories) {
  std::string source = harness_.MakeTarget("extracted");
  ASSERT_TRUE(base::WriteFileAtomically(source + "/file", "x").ok());
  ASSERT_EQ(chown((source + "/file").c_str(), 1000, 5), 0);
  std::string view = MountMapped(source, "view");
  EXPECT_EQ(Owner(view + "/file"), "200000:100005");
  EXPECT_EQ(Append(view + "/file"), EROFS);
  ASSERT_TRUE(base::WriteFileAtomically(source + "/later", "y").ok());
  EXPECT_EQ(Contents(view + "/later"), "y");
}

TEST_F(KeeperIdMappedTest, AViewOutlivesItsSourceAndItsDaemon) {
  std::string source = MountLayer("erofs", "source");
  std::string view = MountMapped(source, "view");
  EXPECT_EQ(daemon_->Do("umount " + source), "OK");
  daemon_->Kill();
  daemon_ = harness_.AcceptDaemon();
  ASSERT_NE(daemon_, nullptr);
  EXPECT_EQ(daemon_->Do("serve-resend " + harness_.blob_path()), "OK");
  EXPECT_EQ(daemon_->Do("mounted"), absl::StrCat("[", view, "]"));
  EXPECT_EQ(Contents(view + "/of0"), Expected());
  EXPECT_EQ(Owner(view + "/of0"), "100000:100000");
  EXPECT_EQ(daemon_->Do("umount " + view), "OK");
  EXPECT_EQ(daemon_->Do("mounted"), "[]");
}

TEST_F(KeeperIdMappedTest, ARequestOfADeadDaemonIsForgottenAndTheSuccessorsServed) {
  std::string source = MountLayer("erofs", "source");
  std::string tree = MountLayer("fuse", "tree");
  EXPECT_EQ(daemon_->Do("hold open"), "OK");
  daemon_->Begin(harness_.MountCommand("erofs", harness_.MakeTarget("hanging")));
  EXPECT_EQ(daemon_->Do("await-held"), "OK");
  // Waits for the hanging mount, whose target it wants.
  daemon_->Begin(absl::StrCat("map ", source, " ", harness_.root(), "/hanging", kRanges));
  EXPECT_EQ(daemon_->Do("mounted"), absl::StrCat("[", source, " ", tree, "]"));
  daemon_->Kill();
  daemon_ = harness_.AcceptDaemon();
  ASSERT_NE(daemon_, nullptr);
  EXPECT_EQ(daemon_->Do("serve-resend " + harness_.blob_path()), "OK");
  std::string view = harness_.root() + "/hanging";
  EXPECT_EQ(Map(source, view), "OK");
  EXPECT_THAT(MountLines(view), SizeIs(1));
  EXPECT_EQ(Owner(view + "/of0"), "100000:100000");
}

TEST_F(KeeperIdMappedTest, WhatCannotBeMappedSaysWhy) {
  std::string target = harness_.MakeTarget("view");
  std::string tree = MountLayer("fuse", "tree");
  EXPECT_THAT(Map(tree, target), AllOf(StartsWith("UNIMPLEMENTED"), HasSubstr(tree),
                                       HasSubstr("FUSE knows no id-mapped mounts")));
  std::string source = MountLayer("erofs", "source");
  std::string other = MountLayer("erofs", "other");
  std::string merged = harness_.MakeTarget("merged");
  EXPECT_EQ(daemon_->Do(absl::StrCat("overlay ", merged, " ", source, " ", other)), "OK");
  EXPECT_THAT(Map(merged, target), AllOf(StartsWith("UNIMPLEMENTED"), HasSubstr("overlay")));
  std::string mapped = MountMapped(source, "mapped");
  EXPECT_THAT(Map(mapped, target), AllOf(StartsWith("FAILED_PRECONDITION"), HasSubstr("id-mapped already")));
  EXPECT_THAT(Map(harness_.root() + "/none", target), StartsWith("NOT_FOUND"));
  EXPECT_THAT(Map(source, mapped), AllOf(StartsWith("FAILED_PRECONDITION"), HasSubstr("already mounted")));
  EXPECT_THAT(Map(source, harness_.root() + "/none"), StartsWith("NOT_FOUND"));
  EXPECT_THAT(Map(source, target, " 0:1:2 1:5:1"),
              AllOf(StartsWith("INVALID_ARGUMENT"), HasSubstr("overlaps")));
  EXPECT_THAT(Map(source, target, ""), AllOf(StartsWith("INVALID_ARGUMENT"), HasSubstr("0 uid ranges")));
  EXPECT_THAT(MountLines(target), IsEmpty());
}

TEST_F(KeeperIdMappedTest, AFullMapAndShutdown) {
  std::string ranges;
  for (uint32_t i = 0; i < kMaxIdRanges; ++i)
    absl::StrAppend(&ranges, " ", 4'200'000'000 + 2 * i, ":", 4'100'000'000 + 3 * i, ":1");
  std::string target = harness_.MakeTarget("view");
  std::string source = MountLayer("erofs", "source");
  EXPECT_EQ(Map(source, target, ranges), "OK");
  EXPECT_EQ(Owner(target + "/of0"), "65534:65534");
  EXPECT_EQ(daemon_->Do("shutdown"), "OK");
  EXPECT_THAT(MountLines(harness_.root()), IsEmpty());
  daemon_->Begin("exit 0");
  EXPECT_EQ(harness_.Wait(), 0);
  EXPECT_EQ(harness_.stderr_text(), "");
}

}  // namespace
}  // namespace lazyblob::fuse
