// How much comes unasked.

#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

using support::GatedBlobSource;

class ReadAheadTest : public StoreTest {};

// Most files end soon: all that comes unasked is at most as much as was read.
TEST_F(ReadAheadTest, AReaderThatStopsHasNotCausedMuchMore) {
  constexpr uint64_t kRead = 40;
  constexpr uint64_t kSlack = 16;  // a range or two are asked for before it is known where they end
  options_.max_range_bytes = 64 * kChunk;
  Open();
  const support::Layer made = MakeTarLayer(2048);
  const std::string data = DataArea(made);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  ForgetRequests();
  for (const uint64_t start : {uint64_t{0}, uint64_t{600}, uint64_t{1200}}) {
    for (uint64_t chunk = start; chunk < start + kRead; ++chunk) {
      ASSERT_EQ(Read(*layer, chunk * kChunk, kChunk).value(), data.substr(chunk * kChunk, kChunk)) << chunk;
    }
    uint64_t end = 0;
    for (const GatedBlobSource::Request& request : Requests()) {
      end = std::max(end, request.range.offset + request.range.length);
    }
    EXPECT_GE(end, (start + kRead) * kChunk);
    EXPECT_LE(end, (start + 2 * kRead + kSlack) * kChunk);
  }
}

TEST_F(ReadAheadTest, AServerThatIgnoresRangesSendsTheBlobOnce) {
  constexpr uint64_t kChunks = 512;
  options_.max_range_bytes = 64 * kChunk;
  Open();
  const support::Layer made = MakeTarLayer(kChunks);
  const std::string data = DataArea(made);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  registry::Client::LinkEstimate link;
  link.ignores_ranges = true;
  source_->set_link(link);
  ForgetRequests();
  for (const uint64_t chunk : {uint64_t{300}, uint64_t{0}, kChunks - 1, uint64_t{100}}) {
    EXPECT_EQ(Read(*layer, chunk * kChunk, kChunk).value(), data.substr(chunk * kChunk, kChunk)) << chunk;
  }
  EXPECT_EQ(RequestCount(), 1u);
}

// Readers may join it, who have to be answered: a host that is not to be asked for an hour must not hold it.
TEST_F(ReadAheadTest, WhatIsReadAheadHasADeadlineToo) {
  Open();
  std::shared_ptr<LazyLayer> layer = AddIndexed(MakeTarLayer(2048));
  ForgetRequests();
  FetchContext context;
  context.deadline = clock_.Monotonic() + absl::Seconds(5);
  for (uint64_t chunk = 0; chunk < 64; ++chunk) ASSERT_TRUE(Read(*layer, chunk * kChunk, 1, context).ok());
  size_t ahead = 0;
  for (const GatedBlobSource::Request& request : Requests()) {
    EXPECT_LE(request.deadline, clock_.Monotonic() + absl::Minutes(1));
    if (request.deadline > context.deadline) ++ahead;
  }
  EXPECT_GT(ahead, 0u) << "nothing was read ahead";
}

}  // namespace
}  // namespace lazyblob::contentstore
