#include "exporter/journal.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "base/file.h"
#include "exporter/internal/resumable_hash.h"
#include "tests/exporter/layer_reading.h"
#include "tests/support/fake_clock.h"
#include "tests/support/tar_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::exporter {
namespace {

using internal::ResumableHash;

JournalEntry Entry(absl::string_view sent) {
  ResumableHash hash;
  hash.Update(AsBytes(sent));
  JournalEntry entry;
  entry.repository.host = "registry:5000";
  entry.repository.repository = "team/app";
  entry.digest = base::Digest::Of("the whole blob");
  entry.size = 1000;
  entry.session = {"http://registry:5000/v2/team/app/blobs/uploads/1?_state=secret", sent.size(), 10};
  entry.hash_state = hash.State();
  return entry;
}

class JournalTest : public testing::Test {
 protected:
  std::string path() const { return directory_.File("journal"); }
  std::unique_ptr<Journal> Open() { return Journal::Open(path(), absl::Hours(168), &clock_).value(); }
  std::string OnlyFile() const {
    const auto names = base::ListDirectory(path()).value();
    EXPECT_EQ(names.size(), 1U);
    return names.empty() ? "" : path() + "/" + names[0];
  }

  const support::TempDir directory_;
  support::FakeClock clock_;
};

TEST_F(JournalTest, AnEntrySurvivesTheProcess) {
  const JournalEntry saved = Entry("these bytes were sent");
  ASSERT_TRUE(Open()->Save(saved).ok());
  const auto found = Open()->Find(saved.repository, saved.digest);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->session.location, saved.session.location);
  EXPECT_EQ(found->session.offset, 21U);
  EXPECT_EQ(found->session.min_chunk, 10U);
  EXPECT_EQ(found->size, 1000U);
  EXPECT_EQ(found->hash_state, saved.hash_state);
  EXPECT_EQ(found->saved, 1'700'000'000);
  oci::Reference other = saved.repository;
  other.host = "registry:5001";
  EXPECT_FALSE(Open()->Find(other, saved.digest).has_value());
}

TEST_F(JournalTest, FilesAreTheOwnersOnly) {
  ASSERT_TRUE(Open()->Save(Entry("x")).ok());
  struct stat info{};
  ASSERT_EQ(::stat(path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700U);
  ASSERT_EQ(::stat(OnlyFile().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600U);
  ASSERT_EQ(::chmod(path().c_str(), 0750), 0);
  const auto refused = Journal::Open(path());
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status())) << refused.status();
}

TEST_F(JournalTest, TheFormatIsAsDocumented) {
  ASSERT_TRUE(Open()->Save(Entry("abc")).ok());
  EXPECT_EQ(base::ReadFile(OnlyFile(), 10'000).value(),
            "{\"version\":1,\"host\":\"registry:5000\",\"repository\":\"team/app\",\"digest\":\"" +
                base::Digest::Of("the whole blob").ToString() +
                "\",\"size\":1000,\"location\":\"http://registry:5000/v2/team/app/blobs/uploads/"
                "1?_state=secret\",\"offset\":3,\"minChunk\":10,\"hashState\":\"6a09e667bb67ae853c6ef372"
                "a54ff53a510e527f9b05688c1f83d9ab5be0cd19616263\",\"saved\":1700000000}\n");
  EXPECT_EQ(
      std::filesystem::path(OnlyFile()).filename().string(),
      base::Digest::Of("registry:5000\nteam/app\n" + base::Digest::Of("the whole blob").ToString()).hex() +
          ".session");
}

TEST_F(JournalTest, WhatIsNoEntryIsNone) {
  const JournalEntry entry = Entry("abc");
  auto journal = Open();
  ASSERT_TRUE(journal->Save(entry).ok());
  const std::string file = OnlyFile();
  const std::string good = base::ReadFile(file, 10'000).value();
  std::string lies = good;
  lies.replace(lies.find("\"offset\":3"), 10, "\"offset\":4");
  for (const std::string& bad : {std::string(), good.substr(0, good.size() / 2), std::string("[]"), lies}) {
    ASSERT_TRUE(base::WriteFileAtomically(file, bad).ok());
    EXPECT_FALSE(journal->Find(entry.repository, entry.digest).has_value()) << bad;
    EXPECT_FALSE(std::filesystem::exists(file)) << bad;
  }
}

TEST_F(JournalTest, OldSessionsAreForgotten) {
  const JournalEntry entry = Entry("abc");
  ASSERT_TRUE(Open()->Save(entry).ok());
  clock_.Advance(absl::Hours(160));
  EXPECT_EQ(Open()->All().size(), 1U);
  clock_.Advance(absl::Hours(9));
  EXPECT_EQ(Open()->All().size(), 0U);
}

TEST_F(JournalTest, RemovedIsGone) {
  const JournalEntry entry = Entry("abc");
  auto journal = Open();
  ASSERT_TRUE(journal->Save(entry).ok());
  journal->Remove(entry.repository, entry.digest);
  journal.reset();
  EXPECT_FALSE(Open()->Find(entry.repository, entry.digest).has_value());
}

TEST_F(JournalTest, OneProcessHasIt) {
  auto journal = Open();
  const auto refused = Journal::Open(path(), absl::Hours(168), &clock_, absl::ZeroDuration());
  EXPECT_TRUE(absl::IsFailedPrecondition(refused.status())) << refused.status();
  journal.reset();
  EXPECT_TRUE(Journal::Open(path(), absl::Hours(168), &clock_, absl::ZeroDuration()).ok());
}

TEST(ResumableHash, GoesOnFromAnyOffset) {
  const std::string bytes = support::RandomBytes(1000, 3);
  for (const auto algorithm : {base::DigestAlgorithm::kSha256, base::DigestAlgorithm::kSha512}) {
    base::Hasher whole(algorithm);
    whole.Update(bytes);
    const base::Digest expected = whole.Finish();
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
      ResumableHash first(algorithm);
      first.Update(AsBytes(absl::string_view(bytes).substr(0, cut)));
      auto second = ResumableHash::FromState(algorithm, cut, first.State());
      ASSERT_TRUE(second.ok()) << second.status();
      second->Update(AsBytes(absl::string_view(bytes).substr(cut)));
      ASSERT_EQ(second->Current(), expected) << cut;
      ASSERT_EQ(second->size(), bytes.size());
    }
  }
}

TEST(ResumableHash, RefusesWhatIsNoState) {
  ResumableHash hash;
  hash.Update(AsBytes("abc"));
  const auto algorithm = base::DigestAlgorithm::kSha256;
  EXPECT_FALSE(ResumableHash::FromState(algorithm, 4, hash.State()).ok());
  EXPECT_FALSE(ResumableHash::FromState(algorithm, 3, "").ok());
  EXPECT_FALSE(ResumableHash::FromState(algorithm, 3, hash.State().replace(0, 1, "G")).ok());
  EXPECT_TRUE(ResumableHash::FromState(algorithm, 3, hash.State()).ok());
}

}  // namespace
}  // namespace lazyblob::exporter
