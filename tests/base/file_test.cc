#include "base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "base/status.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::base {
namespace {

absl::Span<const uint8_t> Bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

class FileTest : public testing::Test {
 protected:
  support::TempDir directory_;
};

TEST_F(FileTest, UniqueFdOwns) {
  int raw = -1;
  {
    auto fd = OpenFile("/dev/null", O_RDONLY);
    ASSERT_TRUE(fd.ok());
    raw = fd->get();
    EXPECT_NE(fcntl(raw, F_GETFD) & FD_CLOEXEC, 0);
    UniqueFd moved = *std::move(fd);
    UniqueFd assigned;
    assigned = std::move(moved);
    EXPECT_FALSE(moved.valid());
    EXPECT_EQ(assigned.get(), raw);
  }
  EXPECT_EQ(fcntl(raw, F_GETFD), -1);
  EXPECT_EQ(errno, EBADF);
}

TEST_F(FileTest, ErrorsNameThePath) {
  absl::Status status = OpenFile(directory_.File("absent"), O_RDONLY).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ErrnoOf(status), ENOENT);
  EXPECT_NE(status.message().find(directory_.File("absent")), absl::string_view::npos);
}

TEST_F(FileTest, ReadAndWriteInFull) {
  auto fd = OpenFile(directory_.File("f"), O_RDWR | O_CREAT);
  ASSERT_TRUE(fd.ok());
  ASSERT_TRUE(PwriteFull(fd->get(), 5, Bytes("world")).ok());
  ASSERT_TRUE(WriteFull(fd->get(), Bytes("hello")).ok());
  std::string text(10, '\0');
  auto out = absl::MakeSpan(reinterpret_cast<uint8_t*>(text.data()), text.size());
  ASSERT_TRUE(PreadFull(fd->get(), 0, out).ok());
  EXPECT_EQ(text, "helloworld");
  EXPECT_EQ(PreadFull(fd->get(), 1, out).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(*ReadFile(directory_.File("f"), 10), "helloworld");
  EXPECT_EQ(ReadFile(directory_.File("f"), 9).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(PwriteFull(-1, 0, Bytes("x")).ok());
}

TEST_F(FileTest, AtomicReplacement) {
  std::string path = directory_.File("f");
  ASSERT_TRUE(WriteFileAtomically(path, "one").ok());
  struct stat st{};
  ASSERT_EQ(stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600u);
  auto old = OpenFile(path, O_RDONLY);
  ASSERT_TRUE(WriteFileAtomically(path, "two").ok());
  std::string text(3, '\0');
  ASSERT_TRUE(PreadFull(old->get(), 0, absl::MakeSpan(reinterpret_cast<uint8_t*>(text.data()), 3)).ok());
  EXPECT_EQ(text, "one") << "who has it open keeps the old contents";
  EXPECT_EQ(*ReadFile(path, 100), "two");
  EXPECT_EQ(ListDirectory(directory_.path())->size(), 1u) << "no temporary file is left";
  EXPECT_FALSE(WriteFileAtomically(directory_.File("no/such/f"), "x").ok());
}

TEST_F(FileTest, DirectoriesAreMadeAndListed) {
  std::string path = directory_.File("a/b/c");
  ASSERT_TRUE(MakeDirectories(path).ok());
  ASSERT_TRUE(MakeDirectories(path).ok());
  struct stat st{};
  ASSERT_EQ(stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0700u);
  ASSERT_TRUE(WriteFileAtomically(directory_.File("a/z"), "").ok());
  EXPECT_EQ(*ListDirectory(directory_.File("a")), (std::vector<std::string>{"b", "z"}));
  EXPECT_FALSE(MakeDirectories(directory_.File("a/z")).ok());
  EXPECT_FALSE(MakeDirectories(directory_.File("a/z/y")).ok());
  EXPECT_FALSE(ListDirectory(directory_.File("absent")).ok());
}

TEST_F(FileTest, RemoveTreeFollowsNoLinks) {
  ASSERT_TRUE(MakeDirectories(directory_.File("tree/deep/er")).ok());
  ASSERT_TRUE(WriteFileAtomically(directory_.File("precious"), "x").ok());
  ASSERT_EQ(symlink(directory_.path().c_str(), directory_.File("tree/deep/link").c_str()), 0);
  ASSERT_TRUE(RemoveTree(directory_.File("tree")).ok());
  EXPECT_EQ(access(directory_.File("tree").c_str(), F_OK), -1);
  EXPECT_EQ(access(directory_.File("precious").c_str(), F_OK), 0);
  EXPECT_TRUE(RemoveTree(directory_.File("tree")).ok()) << "absent is success";
}

TEST_F(FileTest, TwoMayRemoveTheSameTree) {
  for (int round = 0; round < 50; ++round) {
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(MakeDirectories(directory_.File("tree/" + std::to_string(i) + "/a/b")).ok());
    }
    absl::Status other;
    std::thread thread([&] { other = RemoveTree(directory_.File("tree")); });
    const absl::Status mine = RemoveTree(directory_.File("tree"));
    thread.join();
    EXPECT_TRUE(mine.ok()) << mine;
    EXPECT_TRUE(other.ok()) << other;
    EXPECT_NE(access(directory_.File("tree").c_str(), F_OK), 0);
  }
}

TEST_F(FileTest, RemoveTreeStopsAtMounts) {
  ASSERT_TRUE(MakeDirectories(directory_.File("tree/mnt")).ok());
  if (mount("none", directory_.File("tree/mnt").c_str(), "tmpfs", 0, nullptr) != 0) {
    GTEST_SKIP() << "mounting needs root";
  }
  ASSERT_TRUE(WriteFileAtomically(directory_.File("tree/mnt/precious"), "x").ok());
  EXPECT_FALSE(RemoveTree(directory_.File("tree")).ok());
  EXPECT_EQ(access(directory_.File("tree/mnt/precious").c_str(), F_OK), 0);
  ASSERT_EQ(umount(directory_.File("tree/mnt").c_str()), 0);
  EXPECT_TRUE(RemoveTree(directory_.File("tree")).ok());
}

TEST_F(FileTest, Mapping) {
  ASSERT_TRUE(WriteFileAtomically(directory_.File("f"), "mapped").ok());
  auto file = MappedFile::Open(directory_.File("f"));
  ASSERT_TRUE(file.ok()) << file.status();
  MappedFile moved = *std::move(file);
  EXPECT_EQ(moved.bytes(), Bytes("mapped"));
  ASSERT_TRUE(WriteFileAtomically(directory_.File("empty"), "").ok());
  EXPECT_TRUE(MappedFile::Open(directory_.File("empty"))->bytes().empty());
  EXPECT_FALSE(MappedFile::Open(directory_.File("absent")).ok());
}

}  // namespace
}  // namespace lazyblob::base
