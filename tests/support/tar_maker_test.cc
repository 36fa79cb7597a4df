// The tars are judged by GNU tar and bsdtar, which we did not write.
#include "tests/support/tar_maker.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::support {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class TarMakerTest : public ::testing::Test {
 protected:
  // Extracts with `program` ("tar" or "bsdtar") into out/; the program's own words on failure.
  std::string Extract(const std::string& program, const std::string& tar) {
    EXPECT_TRUE(base::RemoveTree(Out("")).ok());
    EXPECT_TRUE(base::MakeDirectories(Out("")).ok());
    EXPECT_TRUE(base::WriteFileAtomically(dir_.File("t.tar"), tar).ok());
    const std::string command = absl::StrCat(program, " --numeric-owner --xattrs -xpf ", dir_.File("t.tar"),
                                             " -C ", Out(""), " 2>&1");
    FILE* pipe = popen(command.c_str(), "r");
    std::string said;
    char piece[512];
    while (fgets(piece, sizeof piece, pipe) != nullptr) said += piece;
    const int status = pclose(pipe);
    return status == 0 ? said : absl::StrCat("failed: ", said);
  }
  std::string Out(const std::string& name) const { return dir_.File("out/" + name); }
  std::string Contents(const std::string& name) const {
    auto contents = base::ReadFile(Out(name), 64 << 20);
    return contents.ok() ? *contents : contents.status().ToString();
  }
  struct stat Stat(const std::string& name) const {
    struct stat info{};
    EXPECT_EQ(lstat(Out(name).c_str(), &info), 0) << name;
    return info;
  }

  TempDir dir_;
};

TEST_F(TarMakerTest, EveryTypeIsExtractedByBothPrograms) {
  const std::string tar = MakeTar({Directory("d", 0750), File("d/f", "hello", 0640), Symlink("d/s", "f"),
                                   HardLink("d/h", "d/f"), Fifo("d/p"), File("d/empty", "")});
  for (const char* program : {"tar", "bsdtar"}) {
    EXPECT_EQ(Extract(program, tar), "") << program;
    EXPECT_EQ(Contents("d/f"), "hello");
    EXPECT_EQ(Stat("d").st_mode, S_IFDIR | 0750U);
    EXPECT_EQ(Stat("d/f").st_mode, S_IFREG | 0640U);
    EXPECT_EQ(Stat("d/f").st_mtime, 1'600'000'000);
    EXPECT_EQ(Stat("d/f").st_ino, Stat("d/h").st_ino);
    EXPECT_TRUE(S_ISLNK(Stat("d/s").st_mode));
    EXPECT_TRUE(S_ISFIFO(Stat("d/p").st_mode));
    EXPECT_EQ(Stat("d/empty").st_size, 0);
  }
}

TEST_F(TarMakerTest, DevicesAndBigOwners) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  TarMember owned = File("f", "x");
  owned.uid = 3'000'000'000;
  owned.gid = 4'000'000'000;
  TarMember gnu = owned;
  gnu.name = "g";
  gnu.dialect = TarDialect::kGnu;
  EXPECT_EQ(Extract("tar", MakeTar({owned, gnu, CharDevice("c", 1, 3, 0666), BlockDevice("b", 7, 9)})), "");
  for (const char* name : {"f", "g"}) {
    EXPECT_EQ(Stat(name).st_uid, 3'000'000'000U);
    EXPECT_EQ(Stat(name).st_gid, 4'000'000'000U);
  }
  EXPECT_EQ(Stat("c").st_mode, S_IFCHR | 0666U);
  EXPECT_EQ(Stat("c").st_rdev, makedev(1, 3));
  EXPECT_EQ(Stat("b").st_rdev, makedev(7, 9));
}

TEST_F(TarMakerTest, LongNamesInEveryDialect) {
  const std::string name = "d/" + std::string(90, 'a') + "/" + std::string(90, 'b');
  const std::string very_long = std::string(200, 'n');
  for (const TarDialect dialect : {TarDialect::kUstar, TarDialect::kPax, TarDialect::kGnu}) {
    TarMember member = File(name, "deep");
    member.dialect = dialect;
    TarMember link =
        Symlink(dialect == TarDialect::kUstar ? "s" : very_long, dialect == TarDialect::kUstar ? "t" : name);
    link.dialect = dialect;
    EXPECT_EQ(Extract("tar", MakeTar({member, link})), "");
    EXPECT_EQ(Contents(name), "deep");
    EXPECT_TRUE(S_ISLNK(Stat(link.name).st_mode));
  }
}

TEST_F(TarMakerTest, OddNamesAndTimes) {
  TarMember odd = File("caf\xc3\xa9\nnew\xff", "odd");
  odd.mtime = -5;
  odd.mtime_nanoseconds = 250'000'000;  // 4.75 s before the epoch
  TarMember far = File("far", "x");
  far.mtime = 10'000'000'000;
  far.mtime_nanoseconds = 123'456'789;
  TarMember gnu = File("gnu", "x");
  gnu.dialect = TarDialect::kGnu;
  gnu.mtime = -7;
  EXPECT_THAT(Extract("tar", MakeTar({odd, far, gnu})), Not(HasSubstr("failed")));
  EXPECT_EQ(Contents(odd.name), "odd");
  EXPECT_EQ(Stat(odd.name).st_mtim.tv_sec, -5);
  EXPECT_EQ(Stat(odd.name).st_mtim.tv_nsec, 250'000'000);
  EXPECT_EQ(Stat("far").st_mtim.tv_sec, 10'000'000'000);
  EXPECT_EQ(Stat("far").st_mtim.tv_nsec, 123'456'789);
  EXPECT_EQ(Stat("gnu").st_mtim.tv_sec, -7);
}

TEST_F(TarMakerTest, SparseFilesInEveryStyle) {
  std::string contents(100'000, '\0');
  std::vector<std::pair<uint64_t, uint64_t>> runs;
  for (uint64_t at = 1024; at + 512 <= contents.size();
       at += 3072) {  // more than one extension block of old GNU
    contents.replace(at, 512, RandomBytes(512, at));
    runs.emplace_back(at, 512);
  }
  ASSERT_GT(runs.size(), 25U);
  for (const SparseStyle style :
       {SparseStyle::kOldGnu, SparseStyle::kPax00, SparseStyle::kPax01, SparseStyle::kPax10}) {
    TarMember member = File("sparse", contents);
    member.sparse = style;
    member.runs = runs;
    const std::string tar = MakeTar({member, File("after", "still here")});
    EXPECT_LT(tar.size(), contents.size());
    EXPECT_EQ(Extract("tar", tar), "") << static_cast<int>(style);
    EXPECT_TRUE(Contents("sparse") == contents) << static_cast<int>(style);
    EXPECT_EQ(Contents("after"), "still here");
  }
}

TEST_F(TarMakerTest, WhiteoutsHaveTheirNames) {
  EXPECT_EQ(Whiteout("a/b").name, "a/.wh.b");
  EXPECT_EQ(Whiteout("b").name, ".wh.b");
  EXPECT_EQ(OpaqueMarker("a/").name, "a/.wh..wh..opq");
  EXPECT_EQ(OpaqueMarker("").name, ".wh..wh..opq");
}

TEST_F(TarMakerTest, LiesAreNoticed) {
  TarMember bad = File("bad", "x");
  bad.bad_checksum = true;
  EXPECT_THAT(Extract("tar", MakeTar({bad})), HasSubstr("failed"));
  TarMember cut = File("cut", "short");
  cut.claimed_size = 1 << 20;
  EXPECT_THAT(Extract("tar", TarMaker().Add(cut).Unfinished()), HasSubstr("failed"));
}

TEST_F(TarMakerTest, BytesAreTheSameEveryTime) {
  EXPECT_EQ(RandomBytes(1001, 7), RandomBytes(1001, 7));
  EXPECT_NE(RandomBytes(1001, 7), RandomBytes(1001, 8));
  EXPECT_EQ(RandomBytes(1001, 7).substr(0, 10), RandomBytes(10, 7));
  EXPECT_EQ(TextBytes(5000).size(), 5000U);
  EXPECT_EQ(TarMaker().Finish(true).size(), 10240U);
}

}  // namespace
}  // namespace lazyblob::support
