#include "exporter/staged_blob.h"

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <filesystem>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "base/fault.h"
#include "base/status.h"
#include "tests/exporter/layer_reading.h"
#include "tests/support/tar_maker.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::exporter {
namespace {

using support::RandomBytes;
using support::TempDir;

std::unique_ptr<StagedBlobWriter> NewWriter(const TempDir& directory) {
  auto writer = StagedBlobWriter::Create(directory.path());
  EXPECT_TRUE(writer.ok()) << writer.status();
  return *std::move(writer);
}

absl::StatusOr<std::string> ReadAll(StagedBlob* blob, size_t step, base::CancelToken* cancel = nullptr) {
  std::string all;
  std::vector<uint8_t> buffer(step);
  for (;;) {
    ASSIGN_OR_RETURN(const size_t got, blob->ReadAt(all.size(), absl::MakeSpan(buffer), cancel));
    if (got == 0) return all;
    all.append(reinterpret_cast<const char*>(buffer.data()), got);
  }
}

TEST(StagedBlob, ReadersGetAllBytesWhileTheyAreWritten) {
  const TempDir directory;
  auto writer = NewWriter(directory);
  const std::string bytes = RandomBytes(3'000'000, 1);
  std::vector<absl::StatusOr<std::string>> read(8, absl::UnknownError("not run"));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < read.size(); ++i) {
    threads.emplace_back(
        [&read, i, blob = writer->blob()] { read[i] = ReadAll(blob.get(), 1000 + 7777 * i); });
  }
  for (size_t at = 0; at < bytes.size(); at += 12'345) {
    ASSERT_TRUE(writer->Append(AsBytes(absl::string_view(bytes).substr(at, 12'345))).ok());
  }
  ASSERT_TRUE(writer->Finish(base::Digest::Of(bytes), bytes.size()).ok());
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : read) {
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(*result == bytes);
  }
}

TEST(StagedBlob, AReaderBehindTheEndWaitsForThatByteOnly) {
  const TempDir directory;
  auto writer = NewWriter(directory);
  ASSERT_TRUE(writer->Append(AsBytes("abc")).ok());
  absl::Notification done;
  std::thread reader([&] {
    uint8_t buffer[10];
    const auto got = writer->blob()->ReadAt(3, absl::MakeSpan(buffer), nullptr);
    EXPECT_TRUE(got.ok() && *got == 2 && buffer[0] == 'd');
    done.Notify();
  });
  EXPECT_FALSE(done.HasBeenNotified());
  ASSERT_TRUE(writer->Append(AsBytes("de")).ok());
  done.WaitForNotification();
  reader.join();
}

TEST(StagedBlob, DigestAndSizeAreKnownAtTheEnd) {
  const TempDir directory;
  auto writer = NewWriter(directory);
  EXPECT_FALSE(writer->blob()->whole().has_value());
  ASSERT_TRUE(writer->Append(AsBytes("abc")).ok());
  EXPECT_EQ(writer->blob()->size(), 3U);
  ASSERT_TRUE(writer->Finish(base::Digest::Of("abc"), 3).ok());
  const auto whole = writer->blob()->Wait(nullptr);
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(whole->digest, base::Digest::Of("abc"));
  EXPECT_EQ(whole->size, 3U);
  uint8_t byte[1];
  EXPECT_EQ(*writer->blob()->ReadAt(3, absl::MakeSpan(byte), nullptr), 0U);
  EXPECT_TRUE(absl::IsOutOfRange(writer->blob()->ReadAt(4, absl::MakeSpan(byte), nullptr).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(writer->Append(AsBytes("d"))));
}

TEST(StagedBlob, AnEndThatIsNotTheEndFailsTheBlob) {
  const TempDir directory;
  auto writer = NewWriter(directory);
  ASSERT_TRUE(writer->Append(AsBytes("abc")).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(writer->Finish(base::Digest::Of("abcd"), 4)));
  EXPECT_TRUE(absl::IsFailedPrecondition(writer->blob()->Wait(nullptr).status()));
}

// Runs `act` when 16 threads wait for the blob's end; what they return.
template <typename Act>
std::vector<absl::Status> WakeAll(StagedBlob* blob, Act act) {
  std::vector<absl::Status> statuses(16, absl::UnknownError("not run"));
  std::vector<std::thread> threads;
  std::atomic<int> started = 0;
  for (size_t i = 0; i < statuses.size(); ++i) {
    threads.emplace_back([&, i] {
      ++started;
      uint8_t byte[1];
      statuses[i] = i % 2 == 0 ? blob->Wait(nullptr).status()
                               : blob->ReadAt(100, absl::MakeSpan(byte), nullptr).status();
    });
  }
  while (started < static_cast<int>(statuses.size())) std::this_thread::yield();
  act();
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

TEST(StagedBlob, AbandonmentWakesAll) {
  const TempDir directory;
  auto writer = NewWriter(directory);
  const auto blob = writer->blob();
  for (const absl::Status& status : WakeAll(blob.get(), [&] { writer.reset(); })) {
    EXPECT_TRUE(absl::IsAborted(status)) << status;
  }
}

TEST(StagedBlob, AnErrorWakesAllAndStays) {
  const TempDir directory;
  auto writer = NewWriter(directory);
  const auto blob = writer->blob();
  for (const absl::Status& status : WakeAll(blob.get(), [&] { writer->Fail(absl::DataLossError("torn")); })) {
    EXPECT_EQ(status, absl::DataLossError("torn"));
  }
  EXPECT_EQ(writer->Append(AsBytes("x")), absl::DataLossError("torn"));
  EXPECT_EQ(writer->Finish(base::Digest::Of(""), 0), absl::DataLossError("torn"));
  writer.reset();
  EXPECT_EQ(blob->Wait(nullptr).status(), absl::DataLossError("torn"));
}

TEST(StagedBlob, CancellingOneReaderLeavesTheOthers) {
  const TempDir directory;
  auto writer = NewWriter(directory);
  base::CancelToken cancel;
  absl::Status cancelled;
  absl::StatusOr<std::string> read = absl::UnknownError("not run");
  std::thread one([&] { cancelled = writer->blob()->Wait(&cancel).status(); });
  std::thread other([&, blob = writer->blob()] { read = ReadAll(blob.get(), 10); });
  cancel.Cancel();
  one.join();
  EXPECT_TRUE(absl::IsCancelled(cancelled)) << cancelled;
  ASSERT_TRUE(writer->Append(AsBytes("all the same")).ok());
  ASSERT_TRUE(writer->Finish(base::Digest::Of("all the same"), 12).ok());
  other.join();
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, "all the same");
}

TEST(StagedBlob, LeavesNoFileBehindAndReadersMayOutliveTheWriter) {
  const TempDir directory;
  std::shared_ptr<StagedBlob> blob;
  {
    auto writer = NewWriter(directory);
    blob = writer->blob();
    ASSERT_TRUE(writer->Append(AsBytes("kept")).ok());
    EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
    ASSERT_TRUE(writer->Finish(base::Digest::Of("kept"), 4).ok());
  }
  const auto read = ReadAll(blob.get(), 3);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, "kept");
}

TEST(StagedBlob, AWriteErrorReachesWriterAndReaders) {
  const TempDir directory;
  auto writer = NewWriter(directory);
  const base::ScopedFault fault("exporter.stage", [] { return base::ErrnoStatus(ENOSPC, "pwrite"); });
  const absl::Status status = writer->Append(AsBytes("x"));
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_NE(status.message().find(directory.path()), absl::string_view::npos) << status;
  EXPECT_TRUE(absl::IsResourceExhausted(writer->blob()->Wait(nullptr).status()));
}

TEST(StagedBlob, AFullDiskIsNamed) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: needs root";
  const TempDir directory;
  ASSERT_EQ(::mount("tmpfs", directory.path().c_str(), "tmpfs", 0, "size=1m"), 0);
  {
    auto writer = NewWriter(directory);
    const std::string bytes = RandomBytes(600'000, 2);
    ASSERT_TRUE(writer->Append(AsBytes(bytes)).ok());
    const absl::Status status = writer->Append(AsBytes(bytes));
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_TRUE(absl::IsResourceExhausted(writer->blob()->Wait(nullptr).status()));
  }
  EXPECT_EQ(::umount(directory.path().c_str()), 0);
}

TEST(StagedBlob, ADirectoryThatIsNotThereIsNamed) {
  const auto writer = StagedBlobWriter::Create("/nonexistent/staging");
  ASSERT_FALSE(writer.ok());
  EXPECT_NE(writer.status().message().find("/nonexistent/staging"), absl::string_view::npos);
}

}  // namespace
}  // namespace lazyblob::exporter
