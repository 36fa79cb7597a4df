#include "tests/support/gated_blob_source.h"

#include <thread>

#include "gtest/gtest.h"
#include "tests/support/fake_clock.h"
#include "tests/support/gate.h"

namespace lazyblob::support {
namespace {

using registry::ByteRange;
using registry::CallContext;

class NamedCredentials final : public registry::CredentialsProvider {
 public:
  absl::StatusOr<std::optional<registry::Credentials>> Lookup(absl::string_view) const override {
    return registry::Credentials{"alice", "secret", "", ""};
  }
};

// What a read gave.
struct Result {
  absl::Status status;
  std::string bytes;
};

Result Read(GatedBlobSource& source, const base::Digest& digest, ByteRange range,
            const CallContext& context = {}) {
  oci::Descriptor descriptor;
  descriptor.digest = digest;
  Result result;
  result.status = source.Read(
      descriptor, range,
      [&result](absl::Span<const uint8_t> piece) {
        result.bytes.append(reinterpret_cast<const char*>(piece.data()), piece.size());
        return absl::OkStatus();
      },
      context);
  return result;
}

TEST(GatedBlobSourceTest, GivesTheRangeAndCounts) {
  GatedBlobSource source;
  const base::Digest digest = source.PutBlob("0123456789");
  source.set_piece_size(3);
  std::atomic<uint64_t> received{0};
  CallContext context;
  context.bytes_received = &received;
  context.credentials = std::make_shared<NamedCredentials>();
  const Result result = Read(source, digest, {2, 7}, context);
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.bytes, "2345678");
  EXPECT_EQ(received.load(), 7U);
  EXPECT_EQ(source.bytes_given(), 7U);
  ASSERT_EQ(source.requests().size(), 1U);
  EXPECT_EQ(source.requests()[0].username, "alice");
  EXPECT_TRUE(source.requests()[0].finished);
  EXPECT_EQ(source.TimesRequested(digest, 8), 1U);
  EXPECT_EQ(source.TimesRequested(digest, 9), 0U);
}

TEST(GatedBlobSourceTest, EndsAsTheTestSays) {
  GatedBlobSource source;
  const base::Digest digest = source.PutBlob("0123456789");
  source.Enqueue(GatedBlobSource::Fail(absl::NotFoundError("gone")));
  source.Enqueue(GatedBlobSource::BreakAfter(4));
  source.Enqueue(GatedBlobSource::Lie(2));
  source.Enqueue(GatedBlobSource::Corrupt(3));
  EXPECT_TRUE(absl::IsNotFound(Read(source, digest, {0, 10}).status));
  Result result = Read(source, digest, {0, 10});
  EXPECT_TRUE(absl::IsUnavailable(result.status));
  EXPECT_EQ(result.bytes, "0123");
  result = Read(source, digest, {0, 10});
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.bytes, "01");
  result = Read(source, digest, {2, 4});
  EXPECT_TRUE(result.status.ok());
  EXPECT_EQ(result.bytes, "2245");
  EXPECT_EQ(Read(source, digest, {0, 10}).bytes, "0123456789");
  EXPECT_FALSE(Read(source, digest, {5, 6}).status.ok());
  EXPECT_TRUE(absl::IsNotFound(Read(source, base::Digest::Of("other"), {0, 1}).status));
}

TEST(GatedBlobSourceTest, HeldReadsGoOneByOne) {
  GatedBlobSource source;
  const base::Digest digest = source.PutBlob("ab");
  source.Hold();
  Result first, second;
  std::thread one([&] { first = Read(source, digest, {0, 1}); });
  ASSERT_TRUE(source.AwaitHeld(1));
  std::thread two([&] { second = Read(source, digest, {1, 1}); });
  ASSERT_TRUE(source.AwaitHeld(2));
  ASSERT_TRUE(source.ReleaseOne(GatedBlobSource::Fail(absl::InternalError("first"))));
  one.join();
  EXPECT_EQ(first.status, absl::InternalError("first"));
  EXPECT_EQ(source.held(), 1U);
  source.Release();
  two.join();
  EXPECT_EQ(second.bytes, "b");
}

TEST(GatedBlobSourceTest, CancelDeadlineAndDestructionEndAHeldRead) {
  FakeClock clock;
  auto source = std::make_unique<GatedBlobSource>("test:gated", &clock);
  const base::Digest digest = source->PutBlob("ab");
  source->Hold();
  Result cancelled, late, stopped;
  CallContext with_cancel;
  with_cancel.cancel = std::make_shared<base::CancelToken>();
  CallContext with_deadline;
  with_deadline.deadline = clock.Monotonic() + absl::Seconds(1);
  std::thread one([&] { cancelled = Read(*source, digest, {0, 1}, with_cancel); });
  std::thread two([&] { late = Read(*source, digest, {0, 1}, with_deadline); });
  std::thread three([&] { stopped = Read(*source, digest, {0, 1}); });
  ASSERT_TRUE(source->AwaitHeld(3));
  with_cancel.cancel->Cancel();
  one.join();
  EXPECT_TRUE(absl::IsCancelled(cancelled.status));
  clock.Advance(absl::Seconds(2));
  two.join();
  EXPECT_TRUE(absl::IsDeadlineExceeded(late.status));
  source.reset();
  three.join();
  EXPECT_TRUE(absl::IsCancelled(stopped.status));
}

TEST(GateTest, TicketsLetThatManyThrough) {
  Gate gate;
  std::atomic<int> passed{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      gate.Pass();
      ++passed;
    });
  }
  ASSERT_TRUE(gate.AwaitWaiting(3));
  EXPECT_EQ(passed.load(), 0);
  gate.LetThrough(1);
  while (gate.waiting() != 2) std::this_thread::yield();
  gate.Open();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(passed.load(), 3);
  EXPECT_TRUE(gate.Pass());
  EXPECT_EQ(gate.arrived(), 4U);
}

}  // namespace
}  // namespace lazyblob::support
