// What the keeper holds for the next daemon, and which program that is; on the real kernel, as root.

#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/fuse/keeper_harness.h"

namespace lazyblob::fuse {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class KeeperSuccessorTest : public KeeperTest {
 protected:
  // False: refused. Else a connection that waits for somebody to accept it.
  bool Connects(const std::string& path) {
    connections_.push_back(ConnectTo(path));
    return connections_.back().first == 0;
  }

  std::vector<std::pair<int, base::UniqueFd>> connections_;
};

TEST_F(KeeperSuccessorTest, WhoConnectsWhileNoDaemonRunsWaitsForTheNext) {
  harness_->Start();
  auto daemon = Next();
  ASSERT_NE(daemon, nullptr);
  const std::string path = harness_->root() + "/s";
  EXPECT_EQ(daemon->Do("serve " + harness_->blob_path()), "OK");
  EXPECT_EQ(daemon->Do(harness_->MountCommand("fuse", harness_->MakeTarget("t"))), "OK");
  EXPECT_EQ(daemon->Do("keep name place " + path), "OK");
  EXPECT_THAT(daemon->Do("keep name place " + path + "2 dull"), StartsWith("INVALID_ARGUMENT"));
  for (const char* name : {"b", "c", "d"}) {
    EXPECT_EQ(daemon->Do(absl::StrCat("keep ", name, " place ", path, name)), "OK");
  }
  EXPECT_THAT(daemon->Do("keep e place " + path + "e"), StartsWith("RESOURCE_EXHAUSTED"));
  daemon->Kill();
  EXPECT_TRUE(Connects(path));
  daemon = Next();
  ASSERT_NE(daemon, nullptr);
  EXPECT_TRUE(Connects(path));
  EXPECT_THAT(daemon->Do("accept name elsewhere"), StartsWith("NOT_FOUND"));
  EXPECT_THAT(daemon->Do("accept nobody place"), StartsWith("NOT_FOUND"));
  EXPECT_EQ(daemon->Do("accept name place"), "2");
  EXPECT_EQ(daemon->Do("keep name another " + path + "3"), "OK");
  EXPECT_FALSE(Connects(path)) << "the one of before is still open";
}

TEST_F(KeeperSuccessorTest, AProgramThatIsNeverReadyIsReplacedByItsPredecessor) {
  harness_->Start();
  auto daemon = Next();
  ASSERT_NE(daemon, nullptr);
  EXPECT_EQ(daemon->Do("serve " + harness_->blob_path()), "OK");
  const std::string target = harness_->MakeTarget("t");
  EXPECT_EQ(daemon->Do(harness_->MountCommand("fuse", target)), "OK");
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(daemon->Do("ready"), "OK");
    daemon->Begin("replace " LAZYBLOB_FAKE_DAEMON);
    daemon = Next();
    ASSERT_NE(daemon, nullptr);
  }
  EXPECT_EQ(daemon->Do("ready"), "OK");
  for (const char* bad : {"/bin/false", "/no/such/program"}) {
    daemon->Begin(absl::StrCat("replace ", bad));
    daemon = Next();
    ASSERT_NE(daemon, nullptr);
    EXPECT_EQ(daemon->Do("mounted"), absl::StrCat("[", target, "]"));
    EXPECT_EQ(daemon->Do("ready"), "OK");
  }
  EXPECT_THAT(harness_->stderr_text(), HasSubstr("the program of its predecessor is started again"));
}

}  // namespace
}  // namespace lazyblob::fuse
