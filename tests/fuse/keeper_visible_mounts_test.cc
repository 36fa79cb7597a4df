// What root sees of our mounts may be unmounted by force; what our readers stand on is out of its reach.

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fuse/keeper_harness.h"

namespace lazyblob::fuse {
namespace {

using ::testing::SizeIs;

constexpr int kMountPointField = 4;

std::string ReadAll(int file) {
  std::string bytes(8192, '\0');
  ssize_t n = pread(file, bytes.data(), bytes.size(), 0);
  if (n < 0) return absl::StrCat("errno ", errno);
  bytes.resize(static_cast<size_t>(n));
  return bytes;
}

base::UniqueFd Open(const std::string& path) {
  base::UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(file.valid()) << path;
  return file;
}

// `umount -f` of everything in the mount table that is below `root`, the last one mounted first, twice.
void ForceUnmountAll(const std::string& root) {
  for (int round = 0; round < 2; ++round) {
    std::vector<std::string> lines = MountLines(root);
    for (auto line = lines.rbegin(); line != lines.rend(); ++line) {
      std::vector<std::string> fields = absl::StrSplit(*line, ' ');
      if (umount2(fields[kMountPointField].c_str(), MNT_FORCE) != 0) {
        EXPECT_EQ(errno, EBUSY) << *line;
      }
    }
  }
}

// The same through every directory that a process has open: the detached mount is among them.
int ForceUnmountDescriptorsOf(pid_t pid) {
  int detached = 0;
  std::string directory = absl::StrCat("/proc/", pid, "/fd");
  std::vector<std::string> names = *base::ListDirectory(directory);
  for (const std::string& name : names) {
    std::string path = absl::StrCat(directory, "/", name);
    char link[256];
    ssize_t n = readlink(path.c_str(), link, sizeof link);
    if (n != 1 || link[0] != '/') continue;  // the root of a mount that is attached nowhere
    ++detached;
    EXPECT_EQ(umount2(path.c_str(), MNT_FORCE), -1);
    EXPECT_EQ(errno, EINVAL);
  }
  return detached;
}

class KeeperVisibleMountsTest : public ::testing::TestWithParam<const char*> {};

TEST_P(KeeperVisibleMountsTest, ForceHarmsNoReader) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  KeeperHarness harness;
  harness.Start();
  auto daemon = harness.AcceptDaemon();
  ASSERT_NE(daemon, nullptr) << harness.stderr_text();
  ASSERT_EQ(daemon->Do(harness.ServeCommand()), "OK");
  std::string a = harness.MakeTarget("a");
  std::string b = harness.MakeTarget("b");
  std::string merged = harness.MakeTarget("merged");
  std::string mapped = harness.MakeTarget("mapped");
  ASSERT_EQ(daemon->Do(harness.MountCommand(GetParam(), a)), "OK");
  ASSERT_EQ(daemon->Do(harness.MountCommand(GetParam(), b)), "OK");
  ASSERT_EQ(daemon->Do(absl::StrCat("overlay ", merged, " ", a, " ", b)), "OK");
  ASSERT_EQ(daemon->Do(absl::StrCat("map ", b, " ", mapped, " 0:0:4294967295")), "OK");
  EXPECT_THAT(MountLines(harness.root()), SizeIs(4));

  base::UniqueFd on_overlay = Open(merged + "/whole");
  base::UniqueFd on_view = Open(mapped + "/whole");
  base::UniqueFd unread = Open(merged + "/cut");
  EXPECT_EQ(daemon->Do("hold read"), "OK");
  std::string overlay_bytes;
  std::string view_bytes;
  std::thread overlay_reader([&] { overlay_bytes = ReadAll(on_overlay.get()); });
  EXPECT_EQ(daemon->Do("await-held"), "OK");
  std::thread view_reader([&] { view_bytes = ReadAll(on_view.get()); });

  ForceUnmountAll(harness.root());
  EXPECT_EQ(ForceUnmountDescriptorsOf(harness.keeper()), 1);

  EXPECT_EQ(daemon->Do("release"), "OK");
  overlay_reader.join();
  view_reader.join();
  EXPECT_EQ(overlay_bytes, harness.image().whole);
  EXPECT_EQ(view_bytes, harness.image().whole);
  // Bytes that nobody has read yet still come, and the connection takes new mounts.
  EXPECT_EQ(ReadAll(unread.get()), harness.image().cut);
  std::string later = harness.MakeTarget("later");
  EXPECT_EQ(daemon->Do(harness.MountCommand(GetParam(), later)), "OK");
  EXPECT_EQ(ReadAll(Open(later + "/whole").get()), harness.image().whole);
}

INSTANTIATE_TEST_SUITE_P(Modes, KeeperVisibleMountsTest, ::testing::Values("erofs", "loop"));

}  // namespace
}  // namespace lazyblob::fuse
