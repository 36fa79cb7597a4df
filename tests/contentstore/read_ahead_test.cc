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

}  // namespace
}  // namespace lazyblob::contentstore
