#include "daemon/memory_limit.h"

#include <gtest/gtest.h>

#include "absl/strings/string_view.h"
#include "base/file.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

class MemoryLimitTest : public ::testing::Test {
 protected:
  void Write(const std::string& directory, const std::string& name, absl::string_view text) {
    ASSERT_TRUE(base::MakeDirectories(directory_.File(directory)).ok());
    ASSERT_TRUE(base::WriteFileAtomically(directory_.File(directory + "/" + name), text).ok());
  }
  uint64_t Limit(absl::string_view groups) {
    Write("proc", "cgroup", groups);
    return MemoryLimit(directory_.File("proc/cgroup"), directory_.File("sys"));
  }

  support::TempDir directory_;
};

TEST_F(MemoryLimitTest, TheSmallestLimitOfAGroupAndThoseAboveItCounts) {
  Write("sys/system.slice/lazyblob.service", "memory.max", "max\n");
  Write("sys/system.slice", "memory.max", "1073741824\n");
  EXPECT_EQ(Limit("0::/system.slice/lazyblob.service\n"), uint64_t{1} << 30);
  Write("sys/system.slice/lazyblob.service", "memory.max", "67108864\n");
  EXPECT_EQ(Limit("0::/system.slice/lazyblob.service\n"), uint64_t{64} << 20);
}

TEST_F(MemoryLimitTest, GroupsOfVersionOneAreKnown) {
  Write("sys/memory/small", "memory.limit_in_bytes", "67108864\n");
  Write("sys/memory", "memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(Limit("12:cpu,cpuacct:/x\n4:memory:/small\n0::/\n"), uint64_t{64} << 20);
  EXPECT_EQ(Limit("4:memory:/\n0::/\n"), uint64_t{9223372036854771712u});
}

TEST_F(MemoryLimitTest, WhatCannotBeReadIsNoLimit) {
  EXPECT_EQ(Limit("0::/gone\nnonsense\n"), UINT64_MAX);
  EXPECT_EQ(MemoryLimit(directory_.File("no such file"), directory_.File("sys")), UINT64_MAX);
}

}  // namespace
}  // namespace lazyblob::daemon
