#include <gtest/gtest.h>

#include "registry/internal/blob_reader.h"
#include "tests/registry/fake_transport.h"

namespace lazyblob::registry::internal {
namespace {

const std::string& Bytes() {
  static const std::string bytes = Pattern(300'000);
  return bytes;
}

struct ReadResult {
  absl::Status status;
  std::string bytes;
};

ReadResult Read(FakeClient& client, ByteRange range, CallContext context = {},
                const std::string& blob = Bytes()) {
  ReadResult result;
  auto sink = [&](absl::Span<const uint8_t> data) {
    result.bytes.append(reinterpret_cast<const char*>(data.data()), data.size());
    return absl::OkStatus();
  };
  result.status = client->ReadBlob(Repository(), DescriptorOf(blob), range, sink, context);
  return result;
}

TEST(ReadBlob, AsksForExactlyTheRange) {
  FakeClient client([](const Seen& seen) { return Serve(seen, Bytes()); });
  std::atomic<uint64_t> received{0};
  CallContext context;
  context.bytes_received = &received;
  ReadResult result = Read(client, {1000, 5000}, context);
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.bytes, Bytes().substr(1000, 5000));
  EXPECT_EQ(received, 5000u);
  ASSERT_EQ(client.network().log().size(), 1u);
  EXPECT_EQ(client.network().log()[0].Header("Range"), "bytes=1000-5999");
  EXPECT_EQ(client.network().log()[0].line,
            "GET https://reg.example:443/v2/app/blobs/" + DescriptorOf(Bytes()).digest.ToString());
}

TEST(ReadBlob, WholeBlobNeedsNoRange) {
  FakeClient client([](const Seen& seen) { return Serve(seen, Bytes()); });
  ReadResult result = Read(client, {0, Bytes().size()});
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.bytes, Bytes());
  EXPECT_EQ(client.network().log()[0].Header("Range"), "");
}

TEST(ReadBlob, EmptyRangesAndRangesOutside) {
  FakeClient client([](const Seen& seen) { return Serve(seen, Bytes()); });
  EXPECT_TRUE(Read(client, {5, 0}).status.ok());
  EXPECT_EQ(Read(client, {0, Bytes().size() + 1}).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Read(client, {UINT64_MAX, 2}).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(client.network().log().empty());
}

TEST(ReadBlob, ResumesWhereItBroke) {
  std::atomic<int> calls{0};
  FakeClient client([&](const Seen& seen) {
    Reply reply = Serve(seen, Bytes());
    if (calls++ < 2) {
      reply.body.resize(70'000);
      reply.after = absl::UnavailableError("reset");
    }
    return reply;
  });
  ReadResult result = Read(client, {1000, 250'000});
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.bytes, Bytes().substr(1000, 250'000));
  auto log = client.network().log();
  ASSERT_EQ(log.size(), 3u);
  EXPECT_EQ(log[1].Header("Range"), "bytes=71000-250999");
  EXPECT_EQ(log[2].Header("Range"), "bytes=141000-250999");
}

TEST(ReadBlob, ShortBodyThatEndsCleanlyIsResumed) {
  std::atomic<int> calls{0};
  FakeClient client([&](const Seen& seen) {
    Reply reply = Serve(seen, Bytes());
    if (calls++ == 0) reply.body.resize(10);
    return reply;
  });
  ReadResult result = Read(client, {0, Bytes().size()});
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.bytes, Bytes());
  EXPECT_EQ(client.network().log()[1].Header("Range"), "bytes=10-299999");
}

TEST(ReadBlob, GivesUpAfterItsAttemptsWithoutProgress) {
  FakeClient client([](const Seen&) {
    Reply reply;
    reply.before = absl::UnavailableError("connection refused");
    return reply;
  });
  ReadResult result = Read(client, {0, 10});
  EXPECT_EQ(result.status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(client.network().log().size(), 6u);
  // 50, 100, 200, 400, 800 ms, each at least half.
  EXPECT_GE(client.slept(), absl::Milliseconds(775));
  EXPECT_LE(client.slept(), absl::Milliseconds(1550));
  EXPECT_NE(result.status.message().find("reg.example"), absl::string_view::npos) << result.status;
}

TEST(ReadBlob, ProgressResetsTheAttempts) {
  FakeClient client(
      [](const Seen& seen) {
        Reply reply = Serve(seen, Bytes());
        if (reply.body.size() > 66'000) {
          reply.body.resize(66'000);
          reply.after = absl::UnavailableError("reset");
        }
        return reply;
      },
      [] {
        ClientOptions options;
        options.max_attempts = 2;
        return options;
      }());
  ReadResult result = Read(client, {0, Bytes().size()});
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.bytes, Bytes());
  EXPECT_EQ(client.network().log().size(), 5u);
}

TEST(ReadBlob, ADribbleIsNotProgress) {
  FakeClient client([](const Seen& seen) {
    Reply reply = Serve(seen, Bytes());
    reply.body.resize(1);
    reply.after = absl::UnavailableError("reset");
    return reply;
  });
  EXPECT_EQ(Read(client, {0, Bytes().size()}).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(client.network().log().size(), 6u);
}

TEST(ReadBlob, A200IsStreamedOnceAndCut) {
  FakeClient client(
      [](const Seen&) { return Status(200, {{"content-length", absl::StrCat(Bytes().size())}}, Bytes()); });
  std::atomic<uint64_t> received{0};
  CallContext context;
  context.bytes_received = &received;
  ReadResult result = Read(client, {100'000, 1000}, context);
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.bytes, Bytes().substr(100'000, 1000));
  EXPECT_EQ(client.network().log().size(), 1u);
  EXPECT_LT(received, 200'000u);
  EXPECT_TRUE(client->EstimateLink(Repository()).ignores_ranges);
}

TEST(ReadBlob, WrongContentRangeIsNeverDelivered) {
  for (const char* header : {"bytes 0-9/300000", "bytes 11-20/300000", "bytes 10-20/300000",
                             "bytes 10-19/300001", "bytes 10-19/20", "items 10-19/300000", ""}) {
    FakeClient client(
        [&](const Seen&) { return Status(206, {{"content-range", header}}, Bytes().substr(10, 10)); });
    ReadResult result = Read(client, {10, 10});
    EXPECT_EQ(result.status.code(), absl::StatusCode::kDataLoss) << header << result.status;
    EXPECT_EQ(result.bytes, "") << header;
    EXPECT_EQ(client.network().log().size(), 2u) << "asked once more, not for ever";
  }
}

TEST(ReadBlob, UnknownTotalIsAccepted) {
  FakeClient client(
      [](const Seen&) { return Status(206, {{"content-range", "bytes 10-19/*"}}, Bytes().substr(10, 10)); });
  EXPECT_EQ(Read(client, {10, 10}).bytes, Bytes().substr(10, 10));
}

TEST(ReadBlob, WrongLengthsAreRefused) {
  FakeClient client([](const Seen&) { return Status(200, {{"content-length", "299999"}}, Bytes()); });
  EXPECT_EQ(Read(client, {0, Bytes().size()}).status.code(), absl::StatusCode::kDataLoss);
  FakeClient part([](const Seen&) {
    return Status(206, {{"content-range", "bytes 10-19/300000"}, {"content-length", "11"}},
                  Bytes().substr(10, 11));
  });
  EXPECT_EQ(Read(part, {10, 10}).bytes, "");
  FakeClient unasked(
      [](const Seen&) { return Status(206, {{"content-range", "bytes 0-299999/300000"}}, Bytes()); });
  EXPECT_EQ(Read(unasked, {0, Bytes().size()}).status.code(), absl::StatusCode::kDataLoss);
}

TEST(ReadBlob, BodiesLongerThanTheirRangeAreCut) {
  FakeClient client([](const Seen&) {
    return Status(206, {{"content-range", "bytes 10-19/300000"}}, Bytes().substr(10, 500));
  });
  ReadResult result = Read(client, {10, 10});
  EXPECT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.bytes, Bytes().substr(10, 10));
}

TEST(ReadBlob, RefusedRangesFallBackToTheWhole) {
  FakeClient client(
      [](const Seen& seen) { return seen.Header("Range").empty() ? Serve(seen, Bytes()) : Status(416); });
  ReadResult result = Read(client, {200'000, 10});
  ASSERT_TRUE(result.status.ok()) << result.status;
  EXPECT_EQ(result.bytes, Bytes().substr(200'000, 10));
  FakeClient shorter(
      [](const Seen& seen) { return seen.Header("Range").empty() ? Serve(seen, "short") : Status(416); });
  EXPECT_EQ(Read(shorter, {200'000, 10}).status.code(), absl::StatusCode::kDataLoss);
}

TEST(ReadBlob, AnErrorsStatusStandsWhenItsBodyBreaksOff) {
  FakeClient client([](const Seen& seen) {
    if (seen.Header("Range").empty()) return Serve(seen, Bytes());
    Reply reply = Status(416, {{"content-length", "300000"}}, "short");
    reply.after = absl::UnavailableError("transfer closed with 299995 bytes remaining");
    return reply;
  });
  EXPECT_EQ(Read(client, {200'000, 10}).bytes, Bytes().substr(200'000, 10));
}

TEST(ReadBlob, StatusesThatAreRetriedAndNot) {
  struct Case {
    int status;
    absl::StatusCode code;
    size_t requests;
  };
  for (const Case& c :
       {Case{500, absl::StatusCode::kUnavailable, 6}, Case{503, absl::StatusCode::kUnavailable, 6},
        Case{429, absl::StatusCode::kUnavailable, 6}, Case{408, absl::StatusCode::kUnavailable, 6},
        Case{404, absl::StatusCode::kNotFound, 1}, Case{403, absl::StatusCode::kPermissionDenied, 1},
        Case{401, absl::StatusCode::kUnauthenticated, 1}, Case{400, absl::StatusCode::kInvalidArgument, 1}}) {
    FakeClient client([&](const Seen&) { return Status(c.status); });
    ReadResult result = Read(client, {0, 10});
    EXPECT_EQ(result.status.code(), c.code) << c.status << " " << result.status;
    EXPECT_EQ(client.network().log().size(), c.requests) << c.status;
  }
}

TEST(ReadBlob, TheSinksErrorEndsItAndIsKept) {
  ClientOptions options;
  options.host_config = Mirrors({"https://mirror.example"});
  FakeClient client([](const Seen& seen) { return Serve(seen, Bytes()); }, options);
  auto sink = [](absl::Span<const uint8_t>) { return absl::ResourceExhaustedError("disk full"); };
  absl::Status status = client->ReadBlob(Repository(), DescriptorOf(Bytes()), {0, 100}, sink, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("disk full"), absl::string_view::npos);
  EXPECT_EQ(client.network().log().size(), 1u);
}

TEST(ReadBlob, StopsAtTheDeadlineAndSaysWhatWentWrong) {
  FakeClient client([](const Seen&) { return Status(500); });
  CallContext context;
  context.deadline = client.clock().Monotonic() + absl::Milliseconds(120);
  ReadResult result = Read(client, {0, 10}, context);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(result.status.message().find("HTTP 500"), absl::string_view::npos) << result.status;
  EXPECT_LE(client.slept(), absl::Milliseconds(120));
}

TEST(ReadBlob, CancelledBeforeItStarts) {
  FakeClient client([](const Seen& seen) { return Serve(seen, Bytes()); });
  CallContext context;
  context.cancel = std::make_shared<base::CancelToken>();
  context.cancel->Cancel();
  EXPECT_EQ(Read(client, {0, 10}, context).status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(client.network().log().empty());
}

TEST(RetryAfter, IsHonouredByTheNextAttempt) {
  std::atomic<int> calls{0};
  FakeClient client([&](const Seen& seen) {
    return calls++ == 0 ? Status(429, {{"retry-after", "2"}}) : Serve(seen, Bytes());
  });
  absl::Duration start = client.clock().Monotonic();
  ASSERT_TRUE(Read(client, {0, 10}).status.ok());
  EXPECT_GE(client.clock().Monotonic() - start, absl::Seconds(2));
  EXPECT_EQ(client.network().log().size(), 2u);
}

TEST(RetryAfter, LongerThanTheCallFailsAtOnceForAllCallers) {
  FakeClient client([](const Seen&) { return Status(503, {{"retry-after", "3600"}}); });
  CallContext context;
  context.deadline = client.clock().Monotonic() + absl::Seconds(60);
  EXPECT_EQ(Read(client, {0, 10}, context).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Read(client, {0, 10}, context).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(client.network().log().size(), 1u) << "the second caller must not ask at all";
  EXPECT_LT(client.slept(), absl::Seconds(1));
}

TEST(RetryAfter, IsNeverLongerThanTenMinutes) {
  std::atomic<int> calls{0};
  FakeClient client([&](const Seen& seen) {
    return calls++ == 0 ? Status(503, {{"retry-after", "999999999"}}) : Serve(seen, Bytes());
  });
  ASSERT_TRUE(Read(client, {0, 10}).status.ok());
  EXPECT_LE(client.slept(), absl::Minutes(11));
}

TEST(LinkEstimate, FollowsWhatIsMeasured) {
  FakeClient client([](const Seen& seen) { return Serve(seen, Bytes()); });
  EXPECT_EQ(client->EstimateLink(Repository()).bytes_per_second, 0);
  ASSERT_TRUE(Read(client, {0, Bytes().size()}).status.ok());
  Client::LinkEstimate link = client->EstimateLink(Repository());
  EXPECT_NEAR(link.bytes_per_second, 3e6, 1);  // 300 kB in the fake's 100 ms
  EXPECT_EQ(link.round_trip, absl::Milliseconds(20));
  EXPECT_FALSE(link.ignores_ranges);
  EXPECT_EQ(client->EstimateLink(Repository("other.example")).bytes_per_second, 0);
}

TEST(SmallBlob, IsVerifiedAndBounded) {
  std::atomic<int> calls{0};
  FakeClient client(
      [&](const Seen& seen) { return calls++ == 0 ? Serve(seen, "wrong") : Serve(seen, "right"); });
  absl::StatusOr<std::string> blob = client->GetSmallBlob(Repository(), DescriptorOf("right"), 100, {});
  ASSERT_TRUE(blob.ok()) << blob.status();
  EXPECT_EQ(*blob, "right");
  EXPECT_EQ(client->GetSmallBlob(Repository(), DescriptorOf("right"), 4, {}).status().code(),
            absl::StatusCode::kResourceExhausted);
  FakeClient liar([](const Seen& seen) { return Serve(seen, "wrong"); });
  EXPECT_EQ(liar->GetSmallBlob(Repository(), DescriptorOf("right"), 100, {}).status().code(),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace lazyblob::registry::internal
