// What a content store that was killed leaves behind: no torn blob, no lost one, every ingest resumable or
// gone, no garbage; and what was begun can be done again. The victim is this program once more
// (tests/support/victim.h).

#include <gmock/gmock.h>

#include <csignal>

#include "base/fault.h"
#include "contentservice/containerd_store.h"
#include "tests/contentservice/content_harness.h"
#include "tests/support/victim.h"

namespace lazyblob::contentservice {
namespace {

using testing::Contains;
using testing::SizeIs;

constexpr size_t kSize = 300'000;

// One operation, on what SetUpFor makes before.
struct Operation {
  const char* name;
  std::vector<const char*> points;
};

const Operation kOperations[] = {
    {"begin",
     {"content/begin/begin", "content/begin/directory-made", "content/begin/record-written",
      "content/begin/done"}},
    {"append",
     {"content/append/begin", "content/append/done", "content/close/begin", "content/close/synced",
      "content/close/done"}},
    {"truncate", {"content/truncate/begin", "content/truncate/done"}},
    {"commit",
     {"content/commit/begin", "content/commit/synced", "content/commit/renamed", "content/commit/named",
      "content/commit/recorded", "content/commit/done"}},
    {"commit-again", {"content/commit/begin"}},
    {"abort", {"content/abort/begin", "content/abort/renamed"}},
    {"update", {"content/update/begin", "content/update/recorded"}},
    {"delete", {"content/delete/begin", "content/delete/record-deleted"}},
    {"adopt", {"content/adopt/begin", "content/adopt/named", "content/adopt/recorded"}},
};

class CrashTest : public ContentTest {
 protected:
  static std::string Whole() { return Blob(kSize); }
  std::string StorePath() const { return options_.root + "-store"; }

  // The blob "kept" is there always.
  void SetUpFor(const std::string& operation) {
    ASSERT_TRUE(Write("kept", "kept", {{"l", "old"}}).ok());
    if (operation == "append") Leave("ref", Whole().substr(0, kSize / 3));
    if (operation == "truncate") Leave("ref", "wrong");
    if (operation == "commit" || operation == "abort") Leave("ref", Whole());
    if (operation == "commit-again") Leave("ref", "kept");
    if (operation == "delete") {
      ASSERT_TRUE(Write("ref", Whole()).ok());
    }
    if (operation == "adopt") {
      const std::string blobs = StorePath() + "/blobs/sha256";
      ASSERT_TRUE(base::MakeDirectories(blobs).ok());
      for (const std::string& bytes : {Whole(), std::string("small")}) {
        const std::string path = absl::StrCat(blobs, "/", base::Digest::Of(bytes).hex());
        ASSERT_TRUE(base::WriteFileAtomically(path, bytes).ok());
      }
    }
  }
  absl::Status Do(const std::string& operation) {
    if (operation == "abort") return content_->Abort("ref");
    if (operation == "delete") {
      const absl::Status status = content_->Delete(base::Digest::Of(Whole()));
      content_.reset();  // files go in the background
      return status;
    }
    if (operation == "adopt") return Import(*content_, StorePath()).status();
    if (operation == "update") {
      Info info;
      info.digest = base::Digest::Of("kept");
      info.labels = {{"l", "new"}};
      return content_->Update(info, {}).status();
    }
    auto writer = content_->OpenWriter("ref", 0, {});
    if (!writer.ok() || operation == "begin") return writer.status();
    if (operation == "commit" || operation == "commit-again") return (*writer)->Commit(0, {}, {});
    if (operation == "truncate") {
      const absl::Status status = (*writer)->Truncate(0);
      if (!status.ok()) return status;
    }
    const std::string rest = Whole().substr((*writer)->status().offset);
    return (*writer)->Append(Bytes(rest.substr(0, rest.size() / 2)));
  }
  // Makes everything afresh for an operation, closed.
  void StartAgain(const std::string& operation) {
    content_.reset();
    ASSERT_TRUE(base::RemoveTree(options_.root).ok());
    ASSERT_TRUE(base::RemoveTree(StorePath()).ok());
    Open();
    SetUpFor(operation);
    content_.reset();
  }
  // Whatever the operation was and wherever it ended.
  void ExpectConsistent(const std::string& operation) {
    const std::vector<std::string> blobs = Listed();
    EXPECT_THAT(blobs, Contains(base::Digest::Of("kept").ToString()));
    EXPECT_THAT(Files("blobs/sha256"), SizeIs(blobs.size()));
    for (const std::string& blob : blobs) {
      const base::Digest digest = base::Digest::Parse(blob).value();
      const auto bytes = Read(digest);
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      EXPECT_EQ(base::Digest::Of(*bytes), digest);
    }
    const Labels labels = content_->GetInfo(base::Digest::Of("kept"))->labels;
    EXPECT_THAT(labels, SizeIs(1));
    if (operation != "update") {
      EXPECT_EQ(labels.at("l"), "old");
    }

    const std::vector<std::string> refs = Refs();
    EXPECT_THAT(Files("ingest"), SizeIs(refs.size()));
    for (const std::string& ref : refs) {
      auto writer = Begin(ref);
      const uint64_t offset = writer->status().offset;
      const std::string given = operation == "commit-again"              ? "kept"
                                : operation == "truncate" && offset == 5 ? "wrong"
                                                                         : Whole();
      ASSERT_LE(offset, given.size());
      EXPECT_EQ(writer->digest(), base::Digest::Of(given.substr(0, offset)));
    }
  }
  // In the end the blob is whole, by whatever it takes.
  void ExpectCanBeDone(const std::string& operation) {
    const base::Digest digest = base::Digest::Of(Whole());
    if (operation == "adopt") {
      ASSERT_TRUE(Import(*content_, StorePath()).ok());
      EXPECT_EQ(Read(base::Digest::Of("small")).value(), "small");
    } else if (auto writer = content_->OpenWriter("ref", 0, digest); writer.ok()) {
      if ((*writer)->status().offset < 6) {
        ASSERT_TRUE((*writer)->Truncate(0).ok());
      }
      ASSERT_TRUE((*writer)->Append(Bytes(Whole().substr((*writer)->status().offset))).ok());
      ASSERT_TRUE((*writer)->Commit(kSize, digest, {}).ok());
    } else {
      EXPECT_TRUE(absl::IsAlreadyExists(writer.status())) << writer.status();
    }
    EXPECT_EQ(Read(digest).value(), Whole());
  }
  void ExpectWhole(const std::string& operation) {
    ExpectConsistent(operation);
    ExpectCanBeDone(operation);
    Open();
    ExpectConsistent(operation);
  }
};

class Victim : public CrashTest {
  void SetUp() override {}
};

TEST_F(Victim, DISABLED_Runs) {
  const std::string root = support::VictimRoot();
  ASSERT_NE(root, "") << "runs only for the crash tests";
  options_.root = root + "/content";
  Open();
  base::ArmFaultsFromEnvironment();
  Do(support::VictimTask()).IgnoreError();
}

TEST_F(CrashTest, NothingIsTornOrLostAtAnyFaultPoint) {
  for (const Operation& operation : kOperations) {
    for (const char* point : operation.points) {
      SCOPED_TRACE(absl::StrCat(operation.name, " ", point));
      StartAgain(operation.name);
      ASSERT_EQ(support::RunVictim(dir_.path(), operation.name, point), SIGKILL);
      Open();
      ExpectWhole(operation.name);
    }
  }
}

TEST_F(CrashTest, NothingIsTornOrLostAtAnySystemCallThatChangesFiles) {
  const std::string mutating = absl::StrCat(support::kMutatingCalls, ",write,link");
  int kills = 0;
  for (const Operation& operation : kOperations) {
    const int killed = support::KillAtEachCall(
        dir_.path(), operation.name, mutating, [&] { StartAgain(operation.name); },
        [&](const std::string& at) {
          SCOPED_TRACE(at);
          Open();
          ExpectWhole(operation.name);
        });
    ASSERT_GT(killed, 0) << "needs strace";
    kills += killed;
  }
  RecordProperty("kills", kills);
  EXPECT_GT(kills, 100);
}

TEST_F(CrashTest, WhatAnAnsweredCallDidStays) {
  auto killed_after = [&](const std::string& operation, const std::string& point) {
    StartAgain(operation);
    EXPECT_EQ(support::RunVictim(dir_.path(), operation, point), SIGKILL);
    Open();
  };
  killed_after("commit", "content/commit/done");
  EXPECT_EQ(Read(base::Digest::Of(Whole())).value(), Whole());
  EXPECT_THAT(Refs(), SizeIs(0));
  killed_after("append", "content/append/done");
  EXPECT_GT(content_->Status("ref")->offset, kSize / 3);
  killed_after("abort", "content/abort/renamed");
  EXPECT_THAT(Refs(), SizeIs(0));
  killed_after("update", "content/update/recorded");
  EXPECT_EQ(content_->GetInfo(base::Digest::Of("kept"))->labels.at("l"), "new");
  killed_after("adopt", "content/adopt/recorded");
  EXPECT_EQ(Read(base::Digest::Of("small")).value(), "small");
  killed_after("delete", "content/delete/record-deleted");
  EXPECT_TRUE(absl::IsNotFound(content_->GetInfo(base::Digest::Of(Whole())).status()));
}

}  // namespace
}  // namespace lazyblob::contentservice
