// Writers and what they leave: resumed, locked, aborted, cut, across restarts.

#include <gmock/gmock.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/str_replace.h"
#include "base/fault.h"
#include "tests/contentservice/content_harness.h"

namespace lazyblob::contentservice {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

using IngestTest = ContentTest;

TEST_F(IngestTest, TellsWhatWasWrittenSoFar) {
  const std::string bytes = Blob(256);
  const absl::Time started = clock_.WallTime();
  auto writer = Begin("ref", 256, base::Digest::Of(bytes));
  EXPECT_EQ(writer->digest(), base::Digest::Of(""));
  clock_.Advance(absl::Seconds(1));
  ASSERT_TRUE(writer->Append(Bytes(bytes.substr(0, 64))).ok());
  for (const IngestStatus& status : {writer->status(), content_->Status("ref").value()}) {
    EXPECT_EQ(status.ref, "ref");
    EXPECT_EQ(status.offset, 64u);
    EXPECT_EQ(status.total, 256u);
    EXPECT_EQ(status.expected, base::Digest::Of(bytes));
    EXPECT_EQ(status.started, started);
    EXPECT_EQ(status.updated, started + absl::Seconds(1));
  }
  EXPECT_EQ(writer->digest(), base::Digest::Of(bytes.substr(0, 64)));
  ASSERT_TRUE(writer->Append(Bytes(bytes.substr(64))).ok());
  EXPECT_EQ(writer->digest(), base::Digest::Of(bytes));
  ASSERT_TRUE(writer->Commit(0, {}, {}).ok());
  EXPECT_EQ(writer->digest(), base::Digest::Of(bytes));
  EXPECT_EQ(writer->status().offset, 256u);
  EXPECT_TRUE(absl::IsFailedPrecondition(writer->Append(Bytes("x"))));
  EXPECT_TRUE(absl::IsFailedPrecondition(writer->Truncate(0)));
  EXPECT_TRUE(absl::IsFailedPrecondition(writer->Commit(0, {}, {})));
  EXPECT_TRUE(absl::IsNotFound(content_->Status("ref").status()));
  EXPECT_THAT(Files("ingest"), IsEmpty());
}

TEST_F(IngestTest, ARefHasOneWriter) {
  auto writer = Begin("ref");
  const absl::Status second = content_->OpenWriter("ref", 0, {}).status();
  EXPECT_TRUE(absl::IsUnavailable(second)) << second;
  EXPECT_THAT(std::string(second.message()), HasSubstr("locked"));
  EXPECT_NE(Begin("other"), nullptr);
  writer.reset();
  EXPECT_NE(Begin("ref"), nullptr);
}

TEST_F(IngestTest, OfManyWritersOfOneRefOneGetsIt) {
  std::vector<std::unique_ptr<Writer>> got(8);
  std::vector<std::thread> threads;
  for (auto& writer : got) {
    threads.emplace_back([this, &writer] {
      auto opened = content_->OpenWriter("ref", 0, {});
      if (opened.ok()) writer = *std::move(opened);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::count(got.begin(), got.end(), nullptr), 7);
}

TEST_F(IngestTest, GoesOnWhereItEndedAlsoAfterARestart) {
  const std::string bytes = Blob(5000);
  for (const bool restart : {false, true}) {
    for (const size_t limit : {size_t{0}, size_t{500}, size_t{4500}, size_t{5000}}) {
      SCOPED_TRACE(absl::StrCat(limit, restart ? " restarted" : ""));
      const absl::Time started = clock_.WallTime();
      Leave("ref", bytes.substr(0, limit), 5000);
      clock_.Advance(absl::Minutes(1));
      if (restart) Open();
      EXPECT_THAT(Refs(), ElementsAre("ref"));
      auto writer = Begin("ref", 5000, base::Digest::Of(bytes));
      EXPECT_EQ(writer->status().offset, limit);
      EXPECT_EQ(writer->status().total, 5000u);
      EXPECT_EQ(writer->status().started, started);
      EXPECT_EQ(writer->digest(), base::Digest::Of(bytes.substr(0, limit)));
      ASSERT_TRUE(writer->Append(Bytes(bytes.substr(limit))).ok());
      ASSERT_TRUE(writer->Commit(5000, base::Digest::Of(bytes), {}).ok());
      EXPECT_EQ(Read(base::Digest::Of(bytes)).value(), bytes);
      ASSERT_TRUE(content_->Delete(base::Digest::Of(bytes)).ok());
    }
  }
}

TEST_F(IngestTest, BeginsAnewWhenTruncated) {
  const std::string bytes = Blob(500);
  Leave("ref", "wrong");
  auto writer = Begin("ref");
  EXPECT_TRUE(writer->Truncate(5).ok());  // what is there
  EXPECT_TRUE(absl::IsOutOfRange(writer->Truncate(3)));
  EXPECT_TRUE(absl::IsOutOfRange(writer->Truncate(6)));
  EXPECT_EQ(writer->status().offset, 5u);
  ASSERT_TRUE(writer->Truncate(0).ok());
  EXPECT_EQ(writer->status().offset, 0u);
  EXPECT_EQ(writer->digest(), base::Digest::Of(""));
  ASSERT_TRUE(writer->Append(Bytes(bytes)).ok());
  ASSERT_TRUE(writer->Commit(500, base::Digest::Of(bytes), {}).ok());
  EXPECT_EQ(Read(base::Digest::Of(bytes)).value(), bytes);
}

TEST_F(IngestTest, AnotherTotalBeginsAnew) {
  Leave("ref", "hello", 100);
  EXPECT_EQ(Begin("ref", 0)->status().total, 100u);
  auto writer = Begin("ref", 7);
  EXPECT_EQ(writer->status().offset, 0u);
  EXPECT_EQ(writer->status().total, 7u);
  writer.reset();
  Leave("late", "hello");  // a total that is told late is none of another kind
  EXPECT_EQ(Begin("late", 9)->status().offset, 5u);
  Open();
  EXPECT_EQ(content_->Status("late")->total, 9u);
  EXPECT_EQ(content_->Status("ref")->total, 7u);
  EXPECT_EQ(content_->Status("ref")->offset, 0u);
}

TEST_F(IngestTest, IsHashedAsTheExpectedDigestIs) {
  const std::string bytes = Blob(300);
  base::Hasher hasher(base::DigestAlgorithm::kSha512);
  hasher.Update(bytes);
  const base::Digest digest = hasher.Finish();
  Leave("ref", bytes.substr(0, 100));
  auto writer = Begin("ref", 0, digest);
  ASSERT_TRUE(writer->Append(Bytes(bytes.substr(100))).ok());
  ASSERT_TRUE(writer->Commit(300, digest, {}).ok());
  EXPECT_EQ(Read(digest).value(), bytes);
  Open();
  EXPECT_EQ(Read(digest).value(), bytes);
}

TEST_F(IngestTest, AWrongSizeOrDigestKeepsIt) {
  for (const bool wrong_size : {true, false}) {
    auto writer = Begin("ref");
    ASSERT_TRUE(writer->Append(Bytes("x")).ok());
    const uint64_t size = writer->status().offset;
    const absl::Status status =
        wrong_size ? writer->Commit(size + 1, {}, {}) : writer->Commit(size, base::Digest::Of("other"), {});
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_EQ(content_->Status("ref")->offset, size);
  }
  auto writer = Begin("ref");  // the ref was let go by Commit
  ASSERT_TRUE(writer->Commit(2, base::Digest::Of("xx"), {}).ok());
  EXPECT_THAT(Listed(), SizeIs(1));
}

TEST_F(IngestTest, ABlobThatIsThereEndsIt) {
  ASSERT_TRUE(Write("first", "bytes").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(content_->OpenWriter("second", 0, base::Digest::Of("bytes")).status()));
  EXPECT_THAT(Refs(), IsEmpty());
  for (const base::Digest& expected : {base::Digest(), base::Digest::Of("bytes")}) {
    auto writer = Begin("second");
    ASSERT_TRUE(writer->Append(Bytes("bytes")).ok());
    EXPECT_TRUE(absl::IsAlreadyExists(writer->Commit(5, expected, {})));
    EXPECT_THAT(Refs(), IsEmpty());
    EXPECT_THAT(Files("ingest"), IsEmpty());
  }
}

TEST_F(IngestTest, OfManyCommitsOfOneBlobOneWins) {
  std::vector<std::unique_ptr<Writer>> writers;
  for (int i = 0; i < 8; ++i) {
    writers.push_back(Begin(absl::StrCat("ref-", i)));
    ASSERT_TRUE(writers.back()->Append(Bytes("bytes")).ok());
  }
  std::vector<absl::Status> statuses(writers.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < writers.size(); ++i) {
    threads.emplace_back([&, i] { statuses[i] = writers[i]->Commit(0, {}, {}); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::count_if(statuses.begin(), statuses.end(), [](const auto& s) { return s.ok(); }), 1);
  EXPECT_EQ(std::count_if(statuses.begin(), statuses.end(), absl::IsAlreadyExists), 7);
  EXPECT_EQ(Read(base::Digest::Of("bytes")).value(), "bytes");
}

TEST_F(IngestTest, AbortTakesItAwayFromItsWriter) {
  EXPECT_TRUE(absl::IsNotFound(content_->Abort("ref")));
  Leave("closed", "bytes");
  EXPECT_TRUE(content_->Abort("closed").ok());
  auto writer = Begin("ref");
  ASSERT_TRUE(writer->Append(Bytes("bytes")).ok());
  EXPECT_TRUE(content_->Abort("ref").ok());
  EXPECT_TRUE(absl::IsNotFound(content_->Status("ref").status()));
  EXPECT_TRUE(absl::IsUnavailable(content_->OpenWriter("ref", 0, {}).status()));
  EXPECT_TRUE(writer->Append(Bytes("more")).ok());
  EXPECT_TRUE(absl::IsNotFound(writer->Commit(0, {}, {})));
  EXPECT_THAT(Listed(), IsEmpty());
  EXPECT_EQ(Begin("ref")->status().offset, 0u);
  Open();
  EXPECT_THAT(Refs(), ElementsAre("ref"));
  EXPECT_THAT(Files("ingest"), SizeIs(1));
}

TEST_F(IngestTest, StatusesAreFilteredByRef) {
  Leave("a/1", "x");
  Leave("b/1", "x");
  EXPECT_THAT(Refs(), ElementsAre("a/1", "b/1"));
  EXPECT_THAT(Refs({"ref~=^a/"}), ElementsAre("a/1"));
  EXPECT_THAT(Refs({"ref==\"b/1\"", "ref==\"a/1\""}), SizeIs(2));
  EXPECT_TRUE(absl::IsInvalidArgument(content_->ListStatuses({"ref=="}).status()));
}

TEST_F(IngestTest, RefsThatAreNoneAreRefused) {
  for (const std::string& ref : {std::string(), std::string("\xff"), std::string(1 << 20, 'x')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(content_->OpenWriter(ref, 0, {}).status()));
  }
  const std::string odd("../x\0y \xc3\xbc\n\"", 11);
  Leave(odd, "bytes");
  Open();
  EXPECT_EQ(content_->Status(odd)->offset, 5u);
}

TEST_F(IngestTest, AfterARestartOfTheMachineOnlySyncedBytesCount) {
  Leave("closed", "synced");
  auto writer = Begin("open");
  ASSERT_TRUE(writer->Append(Bytes("unsynced")).ok());
  // As if the machine had gone down here.
  for (const std::string& name : Files("ingest")) {
    const std::string path = absl::StrCat(options_.root, "/ingest/", name, "/ingest.json");
    const std::string boot_id = base::ReadFile("/proc/sys/kernel/random/boot_id", 4096).value().substr(0, 36);
    std::string text = base::ReadFile(path, 4096).value();
    ASSERT_EQ(absl::StrReplaceAll({{boot_id, "another"}}, &text), 1);
    ASSERT_TRUE(base::WriteFileAtomically(path, text).ok());
  }
  auto other = Content::Open(options_).value();
  EXPECT_EQ(other->Status("closed")->offset, 6u);
  EXPECT_EQ(other->Status("open")->offset, 0u);
}

TEST_F(IngestTest, WhatIsNoIngestIsRemoved) {
  Leave("ref", "bytes");
  content_.reset();
  const std::string ingest = options_.root + "/ingest/";
  ASSERT_TRUE(base::WriteFileAtomically(ingest + "file", "x").ok());
  ASSERT_TRUE(base::MakeDirectories(ingest + "empty/directory").ok());
  ASSERT_TRUE(base::MakeDirectories(ingest + "torn").ok());
  ASSERT_TRUE(base::WriteFileAtomically(ingest + "torn/ingest.json", "{\"ref\":").ok());
  ASSERT_TRUE(base::WriteFileAtomically(ingest + "torn/data", "x").ok());
  Open();
  EXPECT_THAT(Refs(), ElementsAre("ref"));
  EXPECT_THAT(Files("ingest"), ElementsAre(base::Digest::Of("ref").hex()));
}

TEST_F(IngestTest, ACommitThatCannotBeRecordedLeavesTheIngest) {
  Leave("ref", "bytes");
  for (const char* point : {"content/commit/renamed", "content/commit/named"}) {
    base::ScopedFault fault(point, [] { return absl::ResourceExhaustedError("disk full"); });
    EXPECT_TRUE(absl::IsResourceExhausted(Begin("ref")->Commit(5, {}, {})));
    EXPECT_TRUE(absl::IsNotFound(content_->GetInfo(base::Digest::Of("bytes")).status()));
    EXPECT_THAT(Files("blobs/sha256"), IsEmpty());
  }
  EXPECT_EQ(content_->Status("ref")->offset, 5u);
  ASSERT_TRUE(Begin("ref")->Commit(5, {}, {}).ok());
  EXPECT_EQ(Read(base::Digest::Of("bytes")).value(), "bytes");
}

TEST_F(IngestTest, WhatWasSyncedBeforeANewBeginningIsNotBelievedAfterIt) {
  Leave("ref", "synced");
  const std::string record =
      absl::StrCat(options_.root, "/ingest/", base::Digest::Of("ref").hex(), "/ingest.json");
  ASSERT_THAT(base::ReadFile(record, 4096).value(), HasSubstr(R"("synced":6)"));
  auto writer = Begin("ref");
  ASSERT_TRUE(writer->Truncate(0).ok());
  EXPECT_THAT(base::ReadFile(record, 4096).value(), HasSubstr(R"("synced":0)"));
  ASSERT_TRUE(content_->Abort("ref").ok());
  EXPECT_TRUE(writer->Truncate(0).ok()) << "only its Commit fails";
}

}  // namespace
}  // namespace lazyblob::contentservice
