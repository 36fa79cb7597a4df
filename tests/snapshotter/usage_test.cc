#include "snapshotter/usage.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::snapshotter {
namespace {

class UsageTest : public testing::Test {
 protected:
  void Write(const std::string& name, size_t bytes) {
    ASSERT_TRUE(base::WriteFileAtomically(dir_.File("t/" + name), std::string(bytes, 'x')).ok());
    sync();  // blocks are counted when they are allocated
  }
  void SetUp() override { ASSERT_EQ(mkdir(dir_.File("t").c_str(), 0755), 0); }
  // What du(1) says: bytes in blocks, or inodes.
  uint64_t Du(const std::string& flags) {
    const std::string command = absl::StrCat("du -s -x ", flags, " ", dir_.File("t"));
    FILE* pipe = popen(command.c_str(), "r");
    unsigned long long number = 0;
    EXPECT_EQ(std::fscanf(pipe, "%llu", &number), 1);
    pclose(pipe);
    return number;
  }
  void ExpectAsDu() {
    absl::StatusOr<Usage> usage = ScanUsage(dir_.File("t"));
    ASSERT_TRUE(usage.ok()) << usage.status();
    EXPECT_EQ(usage->bytes, Du("--block-size=1"));
    EXPECT_EQ(usage->inodes, Du("--inodes"));
  }
  support::TempDir dir_;
};

TEST_F(UsageTest, AnEmptyDirectoryIsOneInode) {
  EXPECT_EQ(ScanUsage(dir_.File("t"))->inodes, 1u);
  ExpectAsDu();
}

TEST_F(UsageTest, AgreesWithDuOnFilesLinksAndHoles) {
  Write("a", 10000);
  Write("b", 1);
  ASSERT_EQ(link(dir_.File("t/a").c_str(), dir_.File("t/a2").c_str()), 0);
  ASSERT_EQ(mkdir(dir_.File("t/d").c_str(), 0700), 0);
  ASSERT_EQ(link(dir_.File("t/a").c_str(), dir_.File("t/d/a3").c_str()), 0);
  ASSERT_EQ(symlink("/etc/passwd", dir_.File("t/d/link").c_str()), 0);
  ASSERT_EQ(mkfifo(dir_.File("t/d/fifo").c_str(), 0600), 0);
  ASSERT_EQ(symlink("/", dir_.File("t/root").c_str()), 0);  // never followed
  base::UniqueFd hole = base::OpenFile(dir_.File("t/hole"), O_RDWR | O_CREAT).value();
  ASSERT_EQ(ftruncate(hole.get(), 1 << 30), 0);
  ExpectAsDu();
}

TEST_F(UsageTest, DeepTreesNeedFewDescriptors) {
  base::UniqueFd at = base::OpenFile(dir_.File("t"), O_RDONLY | O_DIRECTORY).value();
  constexpr int kDepth = 1500;
  for (int i = 0; i < kDepth; ++i) {
    ASSERT_EQ(mkdirat(at.get(), "deeper", 0700), 0);
    at = base::UniqueFd(openat(at.get(), "deeper", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(at.valid());
  }
  absl::StatusOr<Usage> usage = ScanUsage(dir_.File("t"));
  ASSERT_TRUE(usage.ok()) << usage.status();
  EXPECT_EQ(usage->inodes, kDepth + 1u);
}

TEST_F(UsageTest, AMissingDirectoryIsNotFound) {
  EXPECT_TRUE(absl::IsNotFound(ScanUsage(dir_.File("none")).status()));
}

}  // namespace
}  // namespace lazyblob::snapshotter
