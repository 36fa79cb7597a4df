// How much comes unasked.

#include "tests/contentstore/store_harness.h"

namespace lazyblob::contentstore {
namespace {

using support::GatedBlobSource;

class ReadAheadTest : public StoreTest {};

TEST_F(ReadAheadTest, ASequentialReaderIsReadAheadOf) {
  options_.max_range_bytes = 8 * kChunk;
  Open();
  const support::Layer made = MakeTarLayer(256);
  const std::string data = DataArea(made);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  for (uint64_t chunk = 0; chunk < 256; ++chunk) {
    ASSERT_EQ(Read(*layer, chunk * kChunk, kChunk).value(), data.substr(chunk * kChunk, kChunk)) << chunk;
    if (chunk != 16) continue;  // who never pauses may overtake all of it
    EXPECT_TRUE(Eventually([&] { return Fetched(*layer, FetchCause::kReadAhead) > 0; }));
  }
  for (uint64_t chunk = 0; chunk < 256; ++chunk) EXPECT_EQ(TimesRequested(chunk * kChunk), 1) << chunk;
  EXPECT_LT(RequestCount(), 128);
}

TEST_F(ReadAheadTest, ARandomReaderIsNot) {
  Open();
  const support::Layer made = MakeTarLayer(256);
  const std::string data = DataArea(made);
  std::shared_ptr<LazyLayer> layer = AddIndexed(made);
  for (const uint64_t chunk : {200, 30, 120, 77, 240, 10, 150}) {
    ASSERT_EQ(Read(*layer, chunk * kChunk, kChunk).value(), data.substr(chunk * kChunk, kChunk));
  }
  EXPECT_EQ(RequestCount(), 7);
  EXPECT_EQ(Fetched(*layer, FetchCause::kDemand), 7 * kChunk);
  EXPECT_EQ(layer->stats().cached_bytes, 7 * kChunk);
}

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
  EXPECT_TRUE(Read(*layer, 200 * kChunk, 40 * kChunk).ok());  // a hole in what is missing
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
  const auto requests_beyond = [&](absl::Duration deadline) {
    const auto requests = Requests();
    return std::count_if(requests.begin(), requests.end(),
                         [&](const auto& request) { return request.deadline > deadline; });
  };
  // What lies behind the last byte nobody joins.
  EXPECT_TRUE(Eventually([&] { return requests_beyond(context.deadline) > 0; })) << "nothing was read ahead";
  EXPECT_EQ(requests_beyond(clock_.Monotonic() + absl::Minutes(1)), 0);
}

}  // namespace
}  // namespace lazyblob::contentstore
