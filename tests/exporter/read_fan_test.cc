#include "exporter/internal/read_fan.h"

#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "tests/exporter/test_blob.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::exporter::internal {
namespace {

constexpr uint64_t kPiece = 1000;

ReadRequest Request(std::shared_ptr<Blob> blob, uint64_t offset = 0) {
  ReadRequest request;
  request.blob = std::move(blob);
  request.offset = offset;
  request.piece_bytes = kPiece;
  return request;
}

absl::StatusOr<std::string> ReadAll(ReadFan::Cursor* cursor, base::CancelToken* cancel = nullptr) {
  std::string all;
  while (true) {
    ASSIGN_OR_RETURN(const std::shared_ptr<const Piece> piece, cursor->Next(cancel));
    if (piece == nullptr) return all;
    all.append(reinterpret_cast<const char*>(piece->bytes.data()), piece->bytes.size());
  }
}

class ReadFanTest : public testing::Test {
 protected:
  const std::string bytes_ = support::RandomBytes(20'500, 1);
  const std::shared_ptr<TestBlob> blob_ = std::make_shared<TestBlob>(bytes_);
  support::Gate gate_;
  ReadFan fan_{100'000};  // goes first: its threads read
};

TEST_F(ReadFanTest, PiecesComeInOrderFromAnyOffset) {
  for (const uint64_t offset : {0U, 1U, 999U, 1000U, 20'499U, 20'500U}) {
    const auto cursor = fan_.Open(Request(blob_, offset));
    EXPECT_EQ(ReadAll(cursor.get()).value(), bytes_.substr(offset));
  }
}

TEST_F(ReadFanTest, ThoseWhoBeginTogetherShareOneRead) {
  blob_->gate = &gate_;
  std::vector<std::unique_ptr<ReadFan::Cursor>> cursors;
  for (int i = 0; i < 3; ++i) cursors.push_back(fan_.Open(Request(blob_)));
  gate_.Open();
  // In step, so that nobody is left behind.
  for (uint64_t at = 0; at < bytes_.size(); at += kPiece) {
    for (auto& cursor : cursors) {
      const auto piece = cursor->Next(nullptr);
      ASSERT_TRUE(piece.ok() && *piece != nullptr);
      EXPECT_EQ((*piece)->offset, at);
    }
  }
  EXPECT_EQ(fan_.reads(), 1U);
  EXPECT_EQ(blob_->bytes_read, bytes_.size());
}

TEST_F(ReadFanTest, BlobsOfOneDigestAndOriginShareOneRead) {
  const auto same = std::make_shared<TestBlob>(bytes_);
  const auto elsewhere = std::make_shared<TestBlob>(bytes_);
  blob_->read_from = same->read_from = "here";
  elsewhere->read_from = "there";
  blob_->gate = &gate_;
  const auto one = fan_.Open(Request(blob_));
  const auto two = fan_.Open(Request(same));
  EXPECT_EQ(fan_.reads(), 1U);
  const auto three = fan_.Open(Request(elsewhere));
  EXPECT_EQ(fan_.reads(), 2U);
  gate_.Open();
  for (uint64_t at = 0; at < bytes_.size(); at += kPiece) {
    for (ReadFan::Cursor* cursor : {one.get(), two.get(), three.get()}) {
      const auto piece = cursor->Next(nullptr);
      ASSERT_TRUE(piece.ok() && *piece != nullptr);
      EXPECT_EQ((*piece)->offset, at);
    }
  }
  EXPECT_EQ(same->reads, 0);
}

TEST_F(ReadFanTest, TheFailureOfAnothersReadIsNotOnesOwn) {
  const auto same = std::make_shared<TestBlob>(bytes_);
  blob_->read_from = same->read_from = "here";
  blob_->check = [&](const contentstore::FetchContext&) {
    gate_.Pass();
    return absl::PermissionDeniedError("not for you");
  };
  const auto refused = fan_.Open(Request(blob_));
  const auto allowed = fan_.Open(Request(same));
  EXPECT_EQ(fan_.reads(), 1U);
  gate_.Open();
  EXPECT_TRUE(absl::IsPermissionDenied(ReadAll(refused.get()).status()));
  EXPECT_EQ(ReadAll(allowed.get()).value(), bytes_);
  EXPECT_EQ(same->reads, 1);
}

TEST_F(ReadFanTest, WhoFallsBehindGoesOnAlone) {
  const auto fast = fan_.Open(Request(blob_));
  const auto slow = fan_.Open(Request(blob_));
  EXPECT_EQ(ReadAll(fast.get()).value(), bytes_);
  EXPECT_EQ(ReadAll(slow.get()).value(), bytes_);
  EXPECT_EQ(fan_.reads(), 2U);
}

TEST_F(ReadFanTest, AReadIsNotAheadByMoreThanAPiece) {
  const auto cursor = fan_.Open(Request(blob_));
  ASSERT_TRUE(cursor->Next(nullptr).ok());
  ASSERT_TRUE(cursor->Next(nullptr).ok());
  while (!cursor->Ready()) std::this_thread::yield();
  EXPECT_LE(blob_->bytes_read, 5 * kPiece);
  EXPECT_LE(fan_.peak_memory(), 3 * kPiece);
}

TEST_F(ReadFanTest, AFailureComesAfterTheBytesBeforeIt) {
  blob_->source_bytes = {bytes_.substr(0, 2'500)};
  const auto whole = fan_.Open(Request(blob_));
  EXPECT_EQ(ReadAll(whole.get()).value(), bytes_.substr(0, 2'500));
  blob_->failure = absl::InternalError("broken");
  const auto cursor = fan_.Open(Request(blob_));
  EXPECT_TRUE(absl::IsInternal(ReadAll(cursor.get()).status()));
}

TEST_F(ReadFanTest, CancellingOneWaitLeavesTheOther) {
  blob_->gate = &gate_;
  const auto one = fan_.Open(Request(blob_));
  const auto other = fan_.Open(Request(blob_));
  base::CancelToken cancel;
  auto waiting = std::async(std::launch::async, [&] { return one->Next(&cancel).status(); });
  auto going_on = std::async(std::launch::async, [&] { return ReadAll(other.get()); });
  cancel.Cancel();
  EXPECT_TRUE(absl::IsCancelled(waiting.get()));
  gate_.Open();
  EXPECT_EQ(going_on.get().value(), bytes_);
}

TEST_F(ReadFanTest, ManyReadsGoOnWithTheMemoryOfFew) {
  ReadFan small(3 * kPiece);
  std::vector<std::future<absl::StatusOr<std::string>>> results;
  for (int i = 0; i < 10; ++i) {
    results.push_back(std::async(std::launch::async, [&, i] {
      const auto cursor = small.Open(Request(std::make_shared<TestBlob>(bytes_), i));
      return ReadAll(cursor.get());
    }));
  }
  for (int i = 0; i < 10; ++i) EXPECT_EQ(results[i].get().value(), bytes_.substr(i));
  EXPECT_LE(small.peak_memory(), 3 * kPiece);
}

}  // namespace
}  // namespace lazyblob::exporter::internal
