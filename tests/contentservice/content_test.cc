// Blobs: information, labels, lists, reads, deletion, imports and exports; and what stands between held blobs
// and lazy ones.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "absl/synchronization/notification.h"
#include "base/fault.h"
#include "contentservice/containerd_store.h"
#include "tests/contentservice/content_harness.h"
#include "tests/support/gate.h"

namespace lazyblob::contentservice {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using testing::UnorderedElementsAre;

TEST_F(ContentTest, ABlobIsWhatWasCommitted) {
  const std::string bytes = Blob(3'000'000);
  const base::Digest digest = base::Digest::Of(bytes);
  ASSERT_TRUE(Write("ref", bytes, {{"k", "v"}}).ok());
  for (int i = 0; i < 2; ++i, Open()) {
    const Info info = content_->GetInfo(digest).value();
    EXPECT_EQ(info.digest, digest);
    EXPECT_EQ(info.size, bytes.size());
    EXPECT_EQ(info.labels, (Labels{{"k", "v"}}));
    EXPECT_EQ(info.created, clock_.WallTime());
    EXPECT_EQ(info.updated, clock_.WallTime());
    EXPECT_EQ(Read(digest).value(), bytes);
    EXPECT_EQ(content_->HeldFile(digest).value(), PathOf(digest));
  }
  struct stat st;
  ASSERT_EQ(stat(PathOf(digest).c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 0777, 0444u);
  EXPECT_TRUE(absl::IsNotFound(content_->GetInfo(base::Digest::Of("other")).status()));
}

TEST_F(ContentTest, AnEmptyBlobIsOneToo) {
  ASSERT_TRUE(Write("ref", "").ok());
  EXPECT_EQ(content_->GetInfo(base::Digest::Of(""))->size, 0u);
  EXPECT_EQ(Read(base::Digest::Of("")).value(), "");
}

TEST_F(ContentTest, RangesAreReadAndThoseBeyondTheEndRefused) {
  const std::string bytes = Blob(1000);
  const base::Digest digest = base::Digest::Of(bytes);
  ASSERT_TRUE(Write("ref", bytes).ok());
  EXPECT_EQ(Read(digest, 10, 20).value(), bytes.substr(10, 20));
  EXPECT_EQ(Read(digest, 990).value(), bytes.substr(990));
  EXPECT_EQ(Read(digest, 1000).value(), "");
  EXPECT_TRUE(absl::IsOutOfRange(Read(digest, 1001).status()));
  EXPECT_TRUE(absl::IsOutOfRange(Read(digest, 990, 11).status()));
  EXPECT_TRUE(absl::IsOutOfRange(Read(digest, 1, ~0ull).status()));
  EXPECT_TRUE(absl::IsNotFound(Read(base::Digest::Of("other")).status()));
}

TEST_F(ContentTest, LabelsAreUpdatedByFieldPaths) {
  ASSERT_TRUE(Write("ref", "bytes", {{"a", "1"}, {"b", "2"}}).ok());
  Info info;
  info.digest = base::Digest::Of("bytes");
  info.labels = {{"a", "3"}, {"c.d/e", "4"}};
  clock_.Advance(absl::Seconds(1));
  EXPECT_EQ(content_->Update(info, {"labels.c.d/e", "labels.b"})->labels,
            (Labels{{"a", "1"}, {"c.d/e", "4"}}));
  EXPECT_EQ(content_->Update(info, {"labels"})->labels, info.labels);
  info.labels = {{"a", ""}, {"z", "5"}};
  const Info updated = content_->Update(info, {}).value();
  EXPECT_EQ(updated.labels, (Labels{{"z", "5"}}));
  EXPECT_EQ(updated.updated - updated.created, absl::Seconds(1));
  EXPECT_TRUE(absl::IsInvalidArgument(content_->Update(info, {"size"}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(content_->Update(info, {"labelsx"}).status()));
  Open();
  const Info read = content_->GetInfo(info.digest).value();
  EXPECT_EQ(read.labels, updated.labels);
  EXPECT_EQ(read.updated, updated.updated);
  info.digest = base::Digest::Of("other");
  EXPECT_TRUE(absl::IsNotFound(content_->Update(info, {}).status()));
}

TEST_F(ContentTest, ListsInOrderWhatAnyFilterMatches) {
  std::vector<std::string> all;
  for (int i = 0; i < 20; ++i) {
    const std::string bytes = absl::StrCat("blob ", i);
    ASSERT_TRUE(Write("ref", bytes, {{"n", absl::StrCat(i)}}).ok());
    all.push_back(base::Digest::Of(bytes).ToString());
  }
  std::sort(all.begin(), all.end());
  EXPECT_EQ(Listed(), all);
  const std::string three = base::Digest::Of("blob 3").ToString();
  EXPECT_THAT(Listed({"labels.n==3"}), ElementsAre(three));
  EXPECT_THAT(Listed({"digest==" + three}), ElementsAre(three));
  EXPECT_THAT(Listed({"size==7,labels.n~=^1"}), SizeIs(10));
  EXPECT_THAT(Listed({"labels.n==1", "labels.n==2"}), SizeIs(2));
  EXPECT_THAT(Listed({"labels.x"}), IsEmpty());
  EXPECT_TRUE(
      absl::IsInvalidArgument(content_->List({"size=="}, [](const Info&) { return absl::OkStatus(); })));
  int visited = 0;
  EXPECT_TRUE(absl::IsCancelled(content_->List({}, [&](const Info& info) {
    EXPECT_TRUE(content_->Delete(info.digest).ok());  // no lock is held
    return ++visited == 3 ? absl::CancelledError("enough") : absl::OkStatus();
  })));
  EXPECT_EQ(visited, 3);
}

TEST_F(ContentTest, AReadOutlivesTheDeletion) {
  const std::string bytes = Blob(4'000'000);
  const base::Digest digest = base::Digest::Of(bytes);
  ASSERT_TRUE(Write("ref", bytes).ok());
  std::string read;
  ASSERT_TRUE(content_
                  ->Read(
                      digest, 0, 0,
                      [&](absl::Span<const uint8_t> piece) {
                        if (read.empty()) {
                          EXPECT_TRUE(content_->Delete(digest).ok());
                          EXPECT_TRUE(Write("again", bytes).ok());  // waits for the file to be gone
                          EXPECT_TRUE(content_->Delete(digest).ok());
                        }
                        read.append(reinterpret_cast<const char*>(piece.data()), piece.size());
                        return absl::OkStatus();
                      },
                      nullptr)
                  .ok());
  EXPECT_EQ(read, bytes);
  EXPECT_TRUE(absl::IsNotFound(content_->Delete(digest)));
  Open();
  EXPECT_THAT(Files("blobs/sha256"), IsEmpty());
}

TEST_F(ContentTest, ACancelledReadEnds) {
  ASSERT_TRUE(Write("ref", Blob(4'000'000)).ok());
  auto cancel = std::make_shared<base::CancelToken>();
  int pieces = 0;
  EXPECT_TRUE(absl::IsCancelled(content_->Read(
      base::Digest::Of(Blob(4'000'000)), 0, 0,
      [&](absl::Span<const uint8_t>) {
        ++pieces;
        cancel->Cancel();
        return absl::OkStatus();
      },
      cancel)));
  EXPECT_EQ(pieces, 1);
}

TEST_F(ContentTest, AnswersFromMemoryWhileTheDatabaseIsBusy) {
  ASSERT_TRUE(Write("a", "a").ok());
  ASSERT_TRUE(Write("b", "b").ok());
  absl::Notification stuck, go_on;
  base::ScopedFault fault("content/commit/named", [&] {
    stuck.Notify();
    go_on.WaitForNotification();
    return absl::OkStatus();
  });
  base::ScopedFault slow("content/delete/begin", [&] {
    go_on.WaitForNotification();
    return absl::OkStatus();
  });
  std::thread writer([&] { EXPECT_TRUE(Write("c", "c").ok()); });
  stuck.WaitForNotification();
  EXPECT_TRUE(content_->Delete(base::Digest::Of("a")).ok());
  EXPECT_TRUE(absl::IsNotFound(content_->GetInfo(base::Digest::Of("a")).status()));
  EXPECT_TRUE(content_->GetInfo(base::Digest::Of("b")).ok());
  EXPECT_THAT(Listed(), SizeIs(1));
  EXPECT_THAT(Refs(), ElementsAre("c"));
  go_on.Notify();
  writer.join();
  EXPECT_THAT(Listed(), SizeIs(2));
}

TEST_F(ContentTest, ABlobIsWrittenAgainWhileTheDeletionOfAnotherWaits) {
  ASSERT_TRUE(Write("a", "a").ok());
  ASSERT_TRUE(Write("b", "b").ok());
  absl::Notification stuck, go_on;
  base::ScopedFault fault("content/update/begin", [&] {
    stuck.Notify();
    go_on.WaitForNotification();
    return absl::OkStatus();
  });
  std::thread update([&] {
    Info info;
    info.digest = base::Digest::Of("a");
    info.labels = {{"k", "v"}};
    content_->Update(info, {}).IgnoreError();
  });
  stuck.WaitForNotification();
  EXPECT_TRUE(content_->Delete(base::Digest::Of("a")).ok());
  EXPECT_TRUE(content_->Delete(base::Digest::Of("b")).ok());
  EXPECT_TRUE(Write("again", "b").ok());
  EXPECT_THAT(Listed(), ElementsAre(base::Digest::Of("b").ToString()));
  go_on.Notify();
  update.join();
}

TEST_F(ContentTest, RecordsAndFilesAreABlobOnlyTogether) {
  for (const char* bytes : {"whole", "no file", "cut"}) ASSERT_TRUE(Write("ref", bytes).ok());
  content_.reset();
  ASSERT_EQ(unlink(PathOf(base::Digest::Of("no file")).c_str()), 0);
  ASSERT_EQ(truncate(PathOf(base::Digest::Of("cut")).c_str(), 2), 0);
  ASSERT_TRUE(base::WriteFileAtomically(PathOf(base::Digest::Of("no record")), "no record").ok());
  ASSERT_TRUE(base::WriteFileAtomically(options_.root + "/blobs/sha256/x.tmp", "x").ok());
  Open();
  EXPECT_THAT(Listed(), ElementsAre(base::Digest::Of("whole").ToString()));
  EXPECT_THAT(Files("blobs/sha256"), SizeIs(1));
  {
    absl::MutexLock lock(&log_mutex_);
    EXPECT_THAT(log_, UnorderedElementsAre(HasSubstr("its file is missing"), HasSubstr("of another size")));
  }
  EXPECT_TRUE(Write("ref", "no file").ok());
}

class FakeLazy final : public LazyBlobs {
 public:
  void Add(const std::string& bytes, bool listed) {
    Info info;
    info.digest = base::Digest::Of(bytes);
    info.size = bytes.size();
    blobs_[info.digest] = {info, bytes, listed};
  }
  absl::StatusOr<Info> Find(const base::Digest& digest) override {
    auto found = blobs_.find(digest);
    if (found == blobs_.end()) return absl::NotFoundError("not lazy");
    return found->second.info;
  }
  std::vector<Info> Listed() override {
    std::vector<Info> infos;
    for (const auto& [digest, blob] : blobs_) {
      if (blob.listed) infos.push_back(blob.info);
    }
    return infos;
  }
  std::vector<Info> MayBeHeld() override {
    std::vector<Info> infos;
    for (const auto& [digest, blob] : blobs_) infos.push_back(blob.info);
    return infos;
  }
  absl::Status SetLabels(const base::Digest& digest, const Labels& labels, absl::Time updated) override {
    blobs_.at(digest).info.labels = labels;
    blobs_.at(digest).info.updated = updated;
    return absl::OkStatus();
  }
  absl::Status Forget(const base::Digest& digest) override {
    return blobs_.erase(digest) != 0 ? absl::OkStatus() : absl::NotFoundError("not lazy");
  }
  absl::StatusOr<size_t> Read(const base::Digest& digest, uint64_t offset, absl::Span<uint8_t> out,
                              const std::shared_ptr<base::CancelToken>&) override {
    if (!blobs_.contains(digest)) return absl::NotFoundError("not lazy");
    const std::string& bytes = blobs_.at(digest).bytes;
    return bytes.copy(reinterpret_cast<char*>(out.data()), std::min(out.size(), size_t{100}), offset);
  }
  void Committed(const base::Digest& digest, uint64_t size, const std::string& ref) override {
    events_.push_back(absl::StrCat("committed ", digest.hex().substr(0, 4), " ", size, " ", ref));
  }
  void Deleted(const base::Digest& digest) override {
    events_.push_back(absl::StrCat("deleted ", digest.hex().substr(0, 4)));
  }
  void Lost(const base::Digest& digest) override {
    events_.push_back(absl::StrCat("lost ", digest.hex().substr(0, 4)));
  }
  struct Known {
    Info info;
    std::string bytes;
    bool listed = false;
  };
  std::map<base::Digest, Known> blobs_;
  std::vector<std::string> events_;
};

class LazyContentTest : public ContentTest {
 protected:
  void SetUp() override {
    options_.lazy = &lazy_;
    Open();
  }
  FakeLazy lazy_;
};

TEST_F(LazyContentTest, LazyBlobsAnswerWhereNothingIsHeld) {
  const std::string bytes = Blob(1000), candidate = Blob(500, 2);
  lazy_.Add(bytes, true);
  lazy_.Add(candidate, false);
  const base::Digest digest = base::Digest::Of(bytes);
  EXPECT_EQ(content_->GetInfo(digest)->size, 1000u);
  EXPECT_TRUE(content_->GetInfo(base::Digest::Of(candidate)).ok());
  EXPECT_THAT(Listed(), ElementsAre(digest.ToString()));
  EXPECT_EQ(Read(digest).value(), bytes);
  EXPECT_EQ(Read(digest, 50, 300).value(), bytes.substr(50, 300));
  EXPECT_TRUE(absl::IsOutOfRange(Read(digest, 1001).status()));
  EXPECT_TRUE(absl::IsNotFound(content_->HeldFile(digest).status()));
  EXPECT_TRUE(absl::IsAlreadyExists(content_->OpenWriter("ref", 0, digest).status()));
  Info info;
  info.digest = digest;
  info.labels = {{"k", "v"}};
  EXPECT_EQ(content_->Update(info, {})->labels, info.labels);
  EXPECT_EQ(lazy_.blobs_.at(digest).info.labels, info.labels);
  EXPECT_TRUE(content_->Delete(digest).ok());
  EXPECT_TRUE(absl::IsNotFound(content_->Delete(digest)));
  EXPECT_THAT(lazy_.events_, IsEmpty());
}

TEST_F(LazyContentTest, BytesThatComeAllTheSameAreHeld) {
  lazy_.Add("bytes", true);
  ASSERT_TRUE(Write("ns/1/ref", "bytes", {{"held", "yes"}}).ok());
  const base::Digest digest = base::Digest::Of("bytes");
  const std::string name = digest.hex().substr(0, 4);
  EXPECT_THAT(Listed(), SizeIs(1));
  EXPECT_THAT(content_->GetInfo(digest)->labels, SizeIs(1));
  EXPECT_TRUE(content_->HeldFile(digest).ok());
  EXPECT_TRUE(content_->Delete(digest).ok());
  EXPECT_TRUE(lazy_.blobs_.empty());
  EXPECT_THAT(lazy_.events_, ElementsAre("committed " + name + " 5 ns/1/ref", "deleted " + name));
}

TEST_F(LazyContentTest, ASourceThatEndsEarlyIsAnError) {
  lazy_.Add("bytes", true);
  lazy_.blobs_.at(base::Digest::Of("bytes")).bytes = "byt";
  EXPECT_TRUE(absl::IsDataLoss(Read(base::Digest::Of("bytes")).status()));
}

TEST_F(LazyContentTest, ALazyReadGoesOnInWhatWasCommittedMeanwhile) {
  const std::string bytes = Blob(1000);
  const base::Digest digest = base::Digest::Of(bytes);
  lazy_.Add(bytes, true);
  std::string read;
  const absl::Status status = content_->Read(
      digest, 10, 500,
      [&](absl::Span<const uint8_t> piece) {
        if (read.empty()) {
          EXPECT_TRUE(Write("ns/1/ref", bytes).ok());
          lazy_.blobs_.erase(digest);
        }
        read.append(reinterpret_cast<const char*>(piece.data()), piece.size());
        return absl::OkStatus();
      },
      nullptr);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(read, bytes.substr(10, 500));
}

TEST_F(LazyContentTest, BlobsWhoseFilesAreLostAreTold) {
  ASSERT_TRUE(Write("ref", "no file").ok());
  const base::Digest digest = base::Digest::Of("no file");
  content_.reset();
  ASSERT_EQ(unlink(PathOf(digest).c_str()), 0);
  lazy_.events_.clear();
  Open();
  EXPECT_THAT(lazy_.events_, ElementsAre("lost " + digest.hex().substr(0, 4)));
}

class ImportTest : public LazyContentTest {
 protected:
  // A blob in a store of containerd's kind.
  std::string Store(const std::string& bytes, const std::string& name = "") {
    const std::string blobs = store_ + "/blobs/sha256";
    EXPECT_TRUE(base::MakeDirectories(blobs).ok());
    const std::string path = absl::StrCat(blobs, "/", name.empty() ? base::Digest::Of(bytes).hex() : name);
    EXPECT_TRUE(base::WriteFileAtomically(path, bytes, 0444).ok());
    return path;
  }
  ino_t Inode(const std::string& path) {
    struct stat st;
    return stat(path.c_str(), &st) == 0 ? st.st_ino : 0;
  }
  const std::string store_ = dir_.File("io.containerd.content.v1.content");
};

TEST_F(ImportTest, TakesBlobsWithoutCopyingThem) {
  const std::string path = Store("one");
  Store("two");
  ASSERT_TRUE(Write("ref", "two", {{"k", "v"}}).ok());
  const std::string odd = Store("no blob", "index.json");
  auto result = Import(*content_, store_);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->blobs, 1u);
  EXPECT_EQ(result->present, 1u);
  EXPECT_THAT(result->skipped, ElementsAre(odd));
  EXPECT_EQ(Inode(PathOf(base::Digest::Of("one"))), Inode(path));
  for (int i = 0; i < 2; ++i, Open()) {
    EXPECT_EQ(Read(base::Digest::Of("one")).value(), "one");
    EXPECT_THAT(content_->GetInfo(base::Digest::Of("two"))->labels, SizeIs(1));
  }
  ASSERT_EQ(unlink(path.c_str()), 0);  // containerd's store may go now
  EXPECT_EQ(Read(base::Digest::Of("one")).value(), "one");
  EXPECT_EQ(Import(*content_, store_)->present, 1u);
  EXPECT_TRUE(absl::IsNotFound(Import(*content_, dir_.path()).status()));
}

TEST_F(ImportTest, ABlobThatIsNotWhatItsNameSaysIsDroppedWhenItIsReadFirst) {
  const base::Digest digest = base::Digest::Of("right");
  Store("wrong", digest.hex());
  ASSERT_TRUE(Import(*content_, store_).ok());
  Open();
  EXPECT_EQ(content_->GetInfo(digest)->size, 5u);
  const absl::Status status = Read(digest, 0, 1).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(lazy_.events_, ElementsAre("lost " + digest.hex().substr(0, 4)));
  EXPECT_TRUE(absl::IsNotFound(Read(digest).status()));
  EXPECT_TRUE(Write("ref", "right").ok());
  EXPECT_EQ(Read(digest).value(), "right");
}

TEST_F(ImportTest, ReadersOfAnImportedBlobShareItsVerification) {
  const std::string bytes = Blob(2'000'000);
  Store(bytes);
  ASSERT_TRUE(Import(*content_, store_).ok());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] { EXPECT_EQ(Read(base::Digest::Of(bytes)).value(), bytes); });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(ImportTest, ExportGivesAStoreThatCanBeImported) {
  const std::string out = dir_.File("out");
  ASSERT_TRUE(Write("ref", "held").ok());
  const std::string lazy = Blob(1000);
  lazy_.Add(lazy, true);
  const absl::Status refused = Export(*content_, out, /*unlazy=*/false, nullptr).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr(base::Digest::Of(lazy).ToString()));
  EXPECT_NE(access(out.c_str(), F_OK), 0);

  auto result = Export(*content_, out, /*unlazy=*/true, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->blobs, 2u);
  EXPECT_THAT(result->lazy, ElementsAre(base::Digest::Of(lazy)));
  const std::string blobs = out + "/blobs/sha256/";
  EXPECT_EQ(Inode(blobs + base::Digest::Of("held").hex()), Inode(PathOf(base::Digest::Of("held"))));
  EXPECT_EQ(base::ReadFile(blobs + base::Digest::Of(lazy).hex(), 4096).value(), lazy);
  EXPECT_THAT(base::ListDirectory(blobs).value(), SizeIs(2));
  EXPECT_EQ(Export(*content_, out, /*unlazy=*/true, nullptr)->present, 2u);

  options_.root = dir_.File("second");
  options_.lazy = nullptr;
  Open();
  EXPECT_EQ(Import(*content_, out)->blobs, 2u);
  EXPECT_EQ(Read(base::Digest::Of(lazy)).value(), lazy);
  EXPECT_TRUE(Export(*content_, dir_.File("third"), /*unlazy=*/false, nullptr).ok());
}

TEST_F(ImportTest, ExportLeavesOutNoLazyBlobThatMayBeHeld) {
  lazy_.Add("not listed", false);
  EXPECT_TRUE(
      absl::IsFailedPrecondition(Export(*content_, dir_.File("out"), /*unlazy=*/false, nullptr).status()));
  const auto result = Export(*content_, dir_.File("out"), /*unlazy=*/true, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->lazy, ElementsAre(base::Digest::Of("not listed")));
}

TEST_F(ImportTest, ThousandsOfBlobsAreImportedAndListedQuickly) {
  constexpr int kBlobs = 5000;
  ASSERT_TRUE(base::MakeDirectories(store_ + "/blobs/sha256").ok());
  for (int i = 0; i < kBlobs; ++i) {
    const std::string bytes = absl::StrCat("blob ", i);
    auto file = base::OpenFile(absl::StrCat(store_, "/blobs/sha256/", base::Digest::Of(bytes).hex()),
                               O_WRONLY | O_CREAT, 0444);
    ASSERT_TRUE(file.ok() && base::WriteFull(file->get(), Bytes(bytes)).ok());
  }
  absl::Time begin = absl::Now();
  ASSERT_EQ(Import(*content_, store_)->blobs, uint64_t{kBlobs});
  const absl::Duration imported = absl::Now() - begin;
  begin = absl::Now();
  Open();
  const absl::Duration opened = absl::Now() - begin;
  begin = absl::Now();
  EXPECT_THAT(Listed(), SizeIs(kBlobs));
  const absl::Duration listed = absl::Now() - begin;
  RecordProperty("import_ms", static_cast<int>(absl::ToInt64Milliseconds(imported)));
  RecordProperty("open_ms", static_cast<int>(absl::ToInt64Milliseconds(opened)));
  RecordProperty("list_ms", static_cast<int>(absl::ToInt64Milliseconds(listed)));
  EXPECT_LT(imported, support::kPatience);
  EXPECT_LT(listed, support::kPatience / 10);
}

}  // namespace
}  // namespace lazyblob::contentservice
