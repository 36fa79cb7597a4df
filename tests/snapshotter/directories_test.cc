#include "snapshotter/directories.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "base/fault.h"
#include "base/file.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::snapshotter {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

class DirectoriesTest : public testing::Test {
 protected:
  void SetUp() override { directories_ = Directories::Open(dir_.path()).value(); }
  std::vector<std::string> Names() { return base::ListDirectory(dir_.File("s")).value(); }
  static mode_t ModeOf(const std::string& path) {
    struct stat st;
    return lstat(path.c_str(), &st) == 0 ? st.st_mode & 07777 : 0;
  }
  support::TempDir dir_;
  std::unique_ptr<Directories> directories_;
};

TEST_F(DirectoriesTest, ModesAreExactWhateverTheUmask) {
  for (mode_t mask : {0000, 0022, 0077, 0777}) {
    const mode_t before = umask(mask);
    const std::string name = directories_->Make(true, {}).value();
    umask(before);
    EXPECT_EQ(ModeOf(dir_.File("s/" + name + "/fs")), 0755u);
    EXPECT_EQ(ModeOf(dir_.File("s/" + name + "/work")), 0711u);
    directories_->Finish(name);
  }
  EXPECT_EQ(ModeOf(dir_.File("s")), 0700u);
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(DirectoriesTest, TheTopIsMadePrivateAgain) {
  ASSERT_EQ(chmod(dir_.File("s").c_str(), 0755), 0);
  ASSERT_TRUE(Directories::Open(dir_.path()).ok());
  EXPECT_EQ(ModeOf(dir_.File("s")), 0700u);
}

TEST_F(DirectoriesTest, ATopOfAnotherUserIsRefused) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  ASSERT_EQ(chown(dir_.File("s").c_str(), 65534, 65534), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(Directories::Open(dir_.path()).status()));
}

TEST_F(DirectoriesTest, ATopThatIsALinkIsRefused) {
  ASSERT_EQ(rmdir(dir_.File("s").c_str()), 0);
  ASSERT_EQ(symlink("/etc", dir_.File("s").c_str()), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(Directories::Open(dir_.path()).status()));
}

TEST_F(DirectoriesTest, OnlyFsBelongsToTheGivenOwner) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  const std::string name = directories_->Make(true, {100000, 200000}).value();
  ASSERT_TRUE(directories_->Adopt(name, 7).ok());
  directories_->Finish(name);
  Owner owner = OwnerOf(directories_->Fs(7)).value();
  EXPECT_EQ(owner.uid, 100000u);
  EXPECT_EQ(owner.gid, 200000u);
  EXPECT_EQ(OwnerOf(directories_->Work(7))->uid, 0u);
  EXPECT_EQ(ModeOf(directories_->Fs(7)), 0755u);
}

TEST_F(DirectoriesTest, AViewHasNoWorkDirectory) {
  const std::string name = directories_->Make(false, {}).value();
  EXPECT_THAT(base::ListDirectory(dir_.File("s/" + name)).value(), ElementsAre("fs"));
  directories_->Finish(name);
}

TEST_F(DirectoriesTest, AnAbandonedDirectoryGoesAway) {
  const std::string name = directories_->Make(true, {}).value();
  ASSERT_TRUE(directories_->Adopt(name, 7).ok());
  EXPECT_TRUE(directories_->Exists(7));
  directories_->Abandon(name, 7);
  EXPECT_FALSE(directories_->Exists(7));
  directories_->Finish(name);
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(DirectoriesTest, WhatLiesUnderANewNumberIsMovedAway) {
  ASSERT_TRUE(base::MakeDirectories(dir_.File("s/7/fs/old")).ok());
  const std::string name = directories_->Make(true, {}).value();
  ASSERT_TRUE(directories_->Adopt(name, 7).ok());
  directories_->Finish(name);
  EXPECT_THAT(base::ListDirectory(directories_->Fs(7)).value(), IsEmpty());
  ASSERT_TRUE(directories_->RemoveGarbage().ok());
  EXPECT_THAT(Names(), ElementsAre("7"));
}

TEST_F(DirectoriesTest, GarbageIsAllThatNobodyOwns) {
  for (const char* name : {"3/fs", "7/fs", "07", "new-left", "notes", "-1"}) {
    ASSERT_TRUE(base::MakeDirectories(dir_.File(std::string("s/") + name)).ok());
  }
  ASSERT_TRUE(base::WriteFileAtomically(dir_.File("s/file"), "x").ok());
  const std::string being_made = directories_->Make(true, {}).value();
  ASSERT_TRUE(directories_->MarkGarbage({7}).ok());
  EXPECT_TRUE(directories_->Exists(7));
  EXPECT_FALSE(directories_->Exists(3));
  ASSERT_TRUE(directories_->RemoveGarbage().ok());
  EXPECT_THAT(Names(), ElementsAre("7", being_made));
  directories_->Finish(being_made);
}

TEST_F(DirectoriesTest, ADirectoryThatCannotBeMadeLeavesNothing) {
  base::ScopedFault fault("snapshotter/directory/made", [] { return absl::ResourceExhaustedError("full"); });
  EXPECT_TRUE(absl::IsResourceExhausted(directories_->Make(true, {}).status()));
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(DirectoriesTest, RemovingWhatIsGoneIsFine) {
  EXPECT_TRUE(directories_->Remove(99).ok());
  EXPECT_TRUE(absl::IsNotFound(OwnerOf(dir_.File("none")).status()));
}

TEST_F(DirectoriesTest, NamesOfConcurrentMakersDiffer) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 10; ++k) {
        const std::string name = directories_->Make(true, {}).value();
        EXPECT_TRUE(directories_->Adopt(name, 1 + i * 10 + k).ok());
        directories_->Finish(name);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(Names(), SizeIs(80));
}

}  // namespace
}  // namespace lazyblob::snapshotter
