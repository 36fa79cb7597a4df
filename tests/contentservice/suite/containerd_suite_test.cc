// The cases of containerd's suite of content stores (core/content/testsuite), under their names, over the
// wire. Those of several namespaces are the business of containerd's metadata, which no backend sees.

#include <algorithm>
#include <functional>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "tests/contentservice/suite/suite_fixture.h"

namespace lazyblob::contentservice::suite {
namespace {

using absl::StatusCode;

struct Span {
  absl::Time from;
  absl::Time to;
};
// When `work` ran.
Span During(const std::function<void()>& work) {
  Span span;
  span.from = absl::Now();
  work();
  span.to = absl::Now();
  return span;
}
void ExpectWithin(absl::Time time, const Span& span) {
  EXPECT_GE(time, span.from);
  EXPECT_LE(time, span.to);
}

const Labels kRootLabels = {{"containerd.io/gc.root", "2024-01-02T03:04:05Z"}};

class ContainerdSuiteTest : public SuiteTest {
 protected:
  void ExpectInfo(const std::string& digest, uint64_t size, const Labels& labels, const Span& created,
                  const Span& updated) {
    auto info = client_->GetInfo(digest);
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->digest.ToString(), digest);
    EXPECT_EQ(info->size, size);
    EXPECT_EQ(info->labels, labels);
    ExpectWithin(info->created, created);
    ExpectWithin(info->updated, updated);
  }
  void ExpectStatus(WireWriter& writer, const std::string& ref, uint64_t offset, uint64_t total,
                    const std::string& digest, const Span& started, const Span& updated) {
    auto status = writer.Status();
    ASSERT_TRUE(status.ok()) << status.status();
    EXPECT_EQ(status->ref, ref);
    EXPECT_EQ(status->offset, offset);
    EXPECT_EQ(status->total, total);
    EXPECT_EQ(writer.digest(), digest);
    ExpectWithin(status->started, started);
    ExpectWithin(status->updated, updated);
  }
  void ExpectLocked(const std::string& ref) {
    EXPECT_EQ(client_->OpenWriter(ref).status().code(), StatusCode::kUnavailable);
  }

  // Writes and closes a part of each of several blobs, and has `resume(writer, bytes, written)` do the rest
  // with a new writer.
  void CheckResume(const std::function<absl::Status(WireWriter&, const Made&, size_t)>& resume) {
    int count = 0;
    for (size_t size : {500u, 5000u, 50000u}) {
      for (double part : {0.0, 0.1, 0.5, 0.9, 1.0}) {
        const Made made = MakeBlob(size);
        const auto written = static_cast<size_t>(static_cast<double>(size) * part);
        const std::string ref = absl::StrCat("ref-", ++count);
        auto first = Open(ref, size, made.digest);
        ASSERT_TRUE(first->Write(made.bytes.substr(0, written)).ok());
        ASSERT_TRUE(first->Close().ok());
        auto second = Open(ref, size, made.digest);
        EXPECT_EQ(second->offset(), written);
        const Span commit = During([&] {
          absl::Status status = resume(*second, made, written);
          EXPECT_TRUE(status.ok()) << ref << ": " << status;
        });
        ExpectInfo(made.digest, size, {}, commit, commit);
        EXPECT_EQ(client_->Read(made.digest).value_or("none"), made.bytes);
      }
    }
  }
  static absl::Status WriteAll(WireWriter& writer, absl::string_view bytes) {
    while (!bytes.empty()) {
      RETURN_IF_ERROR(writer.Write(bytes.substr(0, 1024)));
      bytes.remove_prefix(std::min<size_t>(1024, bytes.size()));
    }
    return absl::OkStatus();
  }
  // content.Copy: goes on where the writer is, by seeking or by reading past what is there.
  static absl::Status Copy(WireWriter& writer, const Made& made, size_t) {
    ASSIGN_OR_RETURN(IngestStatus status, writer.Status());
    RETURN_IF_ERROR(WriteAll(writer, absl::string_view(made.bytes).substr(status.offset)));
    return writer.Commit(made.bytes.size(), made.digest);
  }
};

TEST_F(ContainerdSuiteTest, Writer) {
  struct Case {
    std::string ref;
    bool total;
    bool expected;
    Made made = MakeBlob(256);
    std::unique_ptr<WireWriter> writer = nullptr;
  };
  std::vector<Case> cases;
  cases.push_back({"c1", false, false});
  cases.push_back({"c2", true, false});
  cases.push_back({"c3", false, true});
  cases.push_back({"c4", true, true});
  for (Case& one : cases) {
    one.writer = Open(one.ref, one.total ? 256 : 0, one.expected ? one.made.digest : "");
  }
  for (Case& one : cases) {
    for (size_t at = 0; at < 256; at += 32)
      ASSERT_TRUE(one.writer->Write(one.made.bytes.substr(at, 32)).ok());
    const Span commit = During([&] { EXPECT_TRUE(one.writer->Commit(0, "", kRootLabels).ok()); });
    EXPECT_EQ(one.writer->digest(), one.made.digest);
    ExpectInfo(one.made.digest, 256, kRootLabels, commit, commit);
  }
}

TEST_F(ContainerdSuiteTest, UpdateStatus) {
  const Made made = MakeBlob(256);
  std::unique_ptr<WireWriter> writer;
  const Span start = During([&] { writer = Open("c1", 256, made.digest); });
  ExpectStatus(*writer, "c1", 0, 256, base::Digest::Of("").ToString(), start, start);
  size_t written = 0;
  for (size_t part : {64u, 128u, 64u}) {
    const Span update = During([&] { EXPECT_TRUE(writer->Write(made.bytes.substr(written, part)).ok()); });
    written += part;
    ExpectStatus(*writer, "c1", written, 256,
                 base::Digest::Of(absl::string_view(made.bytes).substr(0, written)).ToString(), start,
                 update);
  }
  const Span commit = During([&] { EXPECT_TRUE(writer->Commit(0, "", kRootLabels).ok()); });
  ExpectInfo(made.digest, 256, kRootLabels, commit, commit);
}

TEST_F(ContainerdSuiteTest, CommitExists) {
  const Made made = MakeBlob(256);
  ASSERT_TRUE(client_->WriteBlob("c1", made.bytes).ok());
  for (const std::string& expected : {made.digest, std::string()}) {
    auto writer = Open(absl::StrCat("c1-commitexists-", expected.size()));
    ASSERT_TRUE(writer->Write(made.bytes).ok());
    EXPECT_EQ(writer->Commit(256, expected).code(), StatusCode::kAlreadyExists);
  }
  EXPECT_THAT(*client_->ListStatuses(), testing::IsEmpty()) << "what exists leaves no ingest";
}

TEST_F(ContainerdSuiteTest, Resume) {
  const Made made = MakeBlob(256);
  const std::string half = made.bytes.substr(0, 128);
  const std::string half_digest = base::Digest::Of(half).ToString();
  std::unique_ptr<WireWriter> first;
  const Span start = During([&] { first = Open("cb", 256, made.digest); });
  Span update = During([&] { ASSERT_TRUE(first->Write(half).ok()); });
  ExpectStatus(*first, "cb", 128, 256, half_digest, start, update);
  ASSERT_TRUE(first->Close().ok());

  auto second = Open("cb", 256, made.digest);
  ExpectStatus(*second, "cb", 128, 256, half_digest, start, update);
  update = During([&] { ASSERT_TRUE(second->Write(made.bytes.substr(128)).ok()); });
  ExpectStatus(*second, "cb", 256, 256, made.digest, start, update);
  const Span commit = During([&] { EXPECT_TRUE(second->Commit(0, "").ok()); });
  ExpectInfo(made.digest, 256, {}, commit, commit);
}

TEST_F(ContainerdSuiteTest, ResumeTruncate) {
  CheckResume([](WireWriter& writer, const Made& made, size_t) {
    writer.Truncate();
    RETURN_IF_ERROR(WriteAll(writer, made.bytes));
    return writer.Commit(made.bytes.size(), made.digest);
  });
}

TEST_F(ContainerdSuiteTest, ResumeDiscard) {
  CheckResume([](WireWriter& writer, const Made& made, size_t written) {
    RETURN_IF_ERROR(WriteAll(writer, absl::string_view(made.bytes).substr(written)));
    return writer.Commit(made.bytes.size(), made.digest);
  });
}

TEST_F(ContainerdSuiteTest, ResumeCopy) { CheckResume(Copy); }
TEST_F(ContainerdSuiteTest, ResumeCopySeeker) { CheckResume(Copy); }
TEST_F(ContainerdSuiteTest, ResumeCopyReaderAt) { CheckResume(Copy); }

TEST_F(ContainerdSuiteTest, SmallBlob) {
  const std::string digest = base::Digest::Of("foobar").ToString();
  ASSERT_TRUE(client_->WriteBlob("small", "foobar").ok());
  EXPECT_EQ(client_->Read(digest, 0, 7).value_or("none"), "foobar") << "more than there is";
  EXPECT_EQ(client_->Read(digest, 6, 1).value_or("none"), "") << "at the end";
}

TEST_F(ContainerdSuiteTest, Labels) {
  const Made made = MakeBlob(256);
  auto writer = Open("c1-checklabels", 256, made.digest);
  ASSERT_TRUE(writer->Write(made.bytes).ok());
  contentservice::Labels labels = {{"k1", "v1"}, {"k2", "v2"}, *kRootLabels.begin()};
  const Span commit = During([&] { EXPECT_TRUE(writer->Commit(0, "", labels).ok()); });
  ExpectInfo(made.digest, 256, labels, commit, commit);

  labels["k1"] = "newvalue";
  labels.erase("k2");
  labels["k3"] = "v3";
  Span update = During([&] { EXPECT_TRUE(client_->Update(made.digest, labels).ok()); });
  ExpectInfo(made.digest, 256, labels, commit, update);

  labels["k1"] = "v1";
  labels.erase("k3");
  update =
      During([&] { EXPECT_TRUE(client_->Update(made.digest, labels, {"labels.k3", "labels.k1"}).ok()); });
  ExpectInfo(made.digest, 256, labels, commit, update);
}

TEST_F(ContainerdSuiteTest, CommitErrorState) {
  const Made made = MakeBlob(256);
  const std::string longer = made.bytes + "more";
  const std::string other = MakeBlob(256).digest;
  const std::string ref = "c1-commiterror-state";
  ASSERT_TRUE(client_->WriteBlob("c1", made.bytes).ok());
  auto commit = [&](absl::string_view bytes, uint64_t size, const std::string& expected) {
    auto writer = Open(ref);
    if (!bytes.empty()) {
      EXPECT_TRUE(writer->Write(bytes).ok());
    }
    ExpectLocked(ref);
    return writer->Commit(size, expected).code();
  };
  EXPECT_EQ(commit(made.bytes, 256, made.digest), StatusCode::kAlreadyExists);
  EXPECT_EQ(commit(made.bytes, 256, ""), StatusCode::kAlreadyExists);
  EXPECT_EQ(commit(longer, 260, other), StatusCode::kFailedPrecondition) << "another digest";
  EXPECT_EQ(commit("", 256, ""), StatusCode::kFailedPrecondition) << "another size; the bytes are there";
  EXPECT_EQ(commit("", 260, ""), StatusCode::kOk);
  EXPECT_EQ(commit(made.bytes, 256, made.digest), StatusCode::kAlreadyExists);
  auto last = Open(ref);
  ExpectLocked(ref);
  ASSERT_TRUE(last->Close().ok());
  EXPECT_TRUE(Open(ref)->Close().ok());
}

}  // namespace
}  // namespace lazyblob::contentservice::suite
