// The client over real sockets, against a registry that fails on demand.

#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "registry/client.h"
#include "tests/registry/pusher_fixture.h"
#include "tests/support/test_registry.h"

namespace lazyblob::registry {
namespace {

using support::FaultAction;
using support::RequestMatcher;
using support::TestRegistry;

class ClientFaultsTest : public testing::Test {
 protected:
  ClientFaultsTest() {
    options_.plain_http = true;
    blob_.digest = registry_.PutBlob("app", bytes_);
    blob_.size = bytes_.size();
    repository_.host = registry_.host();
    repository_.repository = "app";
  }

  Client& client() {
    if (client_ == nullptr) client_ = std::make_unique<Client>(options_);
    return *client_;
  }

  absl::StatusOr<std::string> Read(ByteRange range, CallContext context = {}) {
    std::string bytes;
    auto sink = [&](absl::Span<const uint8_t> data) {
      bytes.append(reinterpret_cast<const char*>(data.data()), data.size());
      return absl::OkStatus();
    };
    absl::Status status = client().ReadBlob(repository_, blob_, range, sink, context);
    if (!status.ok()) return status;
    return bytes;
  }

  void ExpectRight(ByteRange range) {
    absl::StatusOr<std::string> read = Read(range);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(*read == bytes_.substr(range.offset, range.length)) << "wrong bytes";
  }

  static RequestMatcher Blobs(int count = -1) {
    RequestMatcher matcher;
    matcher.path_contains = "/blobs/";
    matcher.count = count;
    return matcher;
  }

  TestRegistry registry_;
  const std::string bytes_ = Noise(1 << 20);
  oci::Descriptor blob_;
  oci::Reference repository_;
  ClientOptions options_;
  std::unique_ptr<Client> client_;
};

TEST_F(ClientFaultsTest, ManySmallReadsUseOneConnection) {
  for (uint64_t i = 0; i < 200; ++i) ExpectRight({i * 5000, 4096});
  EXPECT_EQ(registry_.connections(), 1u);
  EXPECT_EQ(registry_.Count(Blobs()), 200u);
}

TEST_F(ClientFaultsTest, ParallelReadsStayWithinTheirConnections) {
  options_.max_connections_per_host = 3;
  client();
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 12; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 20; ++i) {
        uint64_t offset = (t * 20 + i) * 4000;
        absl::StatusOr<std::string> read = Read({offset, 3000});
        if (read.ok() && *read == bytes_.substr(offset, 3000)) ++good;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 240);
  EXPECT_LE(registry_.connections(), 3u);
}

TEST_F(ClientFaultsTest, ResetMidBodyIsResumedFromThere) {
  FaultAction action;
  action.reset_at = 300'000;
  registry_.AddFault(Blobs(1), action);
  std::atomic<uint64_t> received{0};
  CallContext context;
  context.bytes_received = &received;
  absl::StatusOr<std::string> read = Read({0, bytes_.size()}, context);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(*read == bytes_);
  EXPECT_EQ(received, bytes_.size()) << "nothing twice";
  EXPECT_EQ(registry_.Count(Blobs()), 2u);
}

TEST_F(ClientFaultsTest, TruncationIsResumed) {
  for (bool length : {true, false}) {
    registry_.ClearFaults();
    FaultAction action;
    action.truncate_at = 100'000;
    action.no_content_length = !length;
    registry_.AddFault(Blobs(1), action);
    ExpectRight({1000, 500'000});
  }
}

TEST_F(ClientFaultsTest, ChunkedBodiesAndDroppedConnections) {
  FaultAction action;
  action.chunked = true;
  registry_.AddFault(Blobs(1), action);
  ExpectRight({5, 200'000});
  registry_.ClearFaults();
  action = {};
  action.drop = true;
  registry_.AddFault(Blobs(2), action);
  ExpectRight({7, 200'000});
  registry_.ClearFaults();
  registry_.BreakConnections();
  ExpectRight({9, 1000});
}

TEST_F(ClientFaultsTest, IgnoredRangesAreCutFromTheStream) {
  FaultAction action;
  action.ignore_range = true;
  registry_.AddFault(Blobs(), action);
  ExpectRight({700'000, 1000});
  EXPECT_TRUE(client().EstimateLink(repository_).ignores_ranges);
}

TEST_F(ClientFaultsTest, WrongRangesAreRefused) {
  std::vector<FaultAction> lies(4);
  lies[0].shift_range = 512;
  lies[1].content_range = "bytes 0-99/1048576";
  lies[2].content_range = "bytes 100-199/77";
  lies[3].claim_gzip = true;
  for (size_t i = 0; i < lies.size(); ++i) {
    registry_.ClearFaults();
    registry_.AddFault(Blobs(), lies[i]);
    EXPECT_EQ(Read({100, 100}).status().code(), absl::StatusCode::kDataLoss) << i;
    registry_.ClearFaults();
    registry_.AddFault(Blobs(1), lies[i]);
    ExpectRight({100, 100});
  }
}

TEST_F(ClientFaultsTest, HeadersAreBounded) {
  for (const int size : {70 << 10, 1 << 20}) {
    registry_.ClearFaults();
    FaultAction action;
    action.huge_header_bytes = static_cast<uint64_t>(size);
    registry_.AddFault(Blobs(), action);
    const absl::Status status = Read({100, 100}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "headers")) << status;
  }
}

TEST_F(ClientFaultsTest, ServerTroubleIsRetriedAndRetryAfterHonoured) {
  FaultAction action;
  action.status = 503;
  registry_.AddFault(Blobs(2), action);
  ExpectRight({0, 10});
  registry_.ClearFaults();
  action.status = 429;
  action.headers = {{"Retry-After", "1"}};
  registry_.AddFault(Blobs(1), action);
  absl::Duration start = base::SystemClock().Monotonic();
  ExpectRight({0, 10});
  EXPECT_GE(base::SystemClock().Monotonic() - start, absl::Milliseconds(990));
}

TEST_F(ClientFaultsTest, SignedTargetsAreReusedAndRenewed) {
  support::CdnOptions cdn;
  cdn.enabled = true;
  registry_.SetCdn(cdn);
  registry_.SetAuth({.kind = support::AuthOptions::Kind::kBasic, .username = "user", .password = "secret"});
  options_.credentials = std::make_shared<UserCredentials>();
  for (uint64_t i = 0; i < 10; ++i) ExpectRight({i * 1000, 500});
  size_t at_registry = 0;
  for (const auto& request : registry_.Log()) {
    at_registry += request.cdn ? 0 : 1;
    if (request.cdn) {
      EXPECT_EQ(request.authorization, "");
    }
  }
  EXPECT_EQ(at_registry, 2u) << "one refusal and one redirect for ten reads";
  registry_.ExpireCdnUrls();
  ExpectRight({77, 500});
}

TEST_F(ClientFaultsTest, ShortTokensAndRevokedOnes) {
  registry_.SetAuth({.kind = support::AuthOptions::Kind::kBearer,
                     .username = "user",
                     .password = "secret",
                     .token_ttl = absl::Seconds(1)});
  options_.credentials = std::make_shared<UserCredentials>();
  const absl::Duration start = base::SystemClock().Monotonic();
  int reads = 0;
  while (HalfSecondsSince(start) < 5) {
    ExpectRight({1000, 100});
    ++reads;
  }
  EXPECT_GE(registry_.token_requests(), 2u);
  EXPECT_LE(registry_.token_requests(), 2u + HalfSecondsSince(start)) << "for " << reads << " reads";
  registry_.RevokeTokens();
  ExpectRight({2000, 100});
  registry_.SetAuth({.kind = support::AuthOptions::Kind::kBearer, .username = "user", .password = "changed"});
  registry_.RevokeTokens();
  absl::Status status = Read({2000, 100}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
}

TEST_F(ClientFaultsTest, TenColdCallersCauseOneTokenRequest) {
  registry_.SetAuth({.kind = support::AuthOptions::Kind::kBearer});
  client();
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 10; ++t) {
    threads.emplace_back([&] { good += Read({1000, 100}).ok() ? 1 : 0; });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 10);
  EXPECT_EQ(registry_.token_requests(), 1u);
}

TEST_F(ClientFaultsTest, CancelIsImmediate) {
  options_.stall_timeout = absl::Hours(1);
  auto gate = std::make_shared<support::Gate>();
  FaultAction action;
  action.gate = gate;
  registry_.AddFault(Blobs(), action);
  CallContext context;
  context.cancel = std::make_shared<base::CancelToken>();
  absl::Status status;
  std::thread reader([&] { status = Read({0, 10}, context).status(); });
  ASSERT_TRUE(registry_.AwaitRequests(Blobs(), 1));
  context.cancel->Cancel();
  reader.join();  // the gate is closed
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
}

TEST_F(ClientFaultsTest, WaitingForAConnectionCanBeCancelledToo) {
  options_.max_connections_per_host = 1;
  auto gate = std::make_shared<support::Gate>();
  FaultAction action;
  action.gate = gate;
  registry_.AddFault(Blobs(1), action);
  absl::Status first;
  absl::Status second;
  client();
  std::thread holder([&] { first = Read({0, 10}).status(); });
  ASSERT_TRUE(registry_.AwaitRequests(Blobs(), 1));
  CallContext context;
  context.cancel = std::make_shared<base::CancelToken>();
  std::thread waiter([&] { second = Read({0, 10}, context).status(); });
  context.cancel->Cancel();
  waiter.join();
  EXPECT_EQ(second.code(), absl::StatusCode::kCancelled);
  CallContext brief;
  brief.deadline = base::SystemClock().Monotonic() + absl::Milliseconds(50);
  EXPECT_EQ(Read({0, 10}, brief).status().code(), absl::StatusCode::kDeadlineExceeded);
  gate->Open();
  holder.join();
  EXPECT_TRUE(first.ok()) << first;
}

TEST_F(ClientFaultsTest, DeadlinesAndStalls) {
  auto gate = std::make_shared<support::Gate>();
  FaultAction action;
  action.body_gate = gate;
  action.body_gate_at = 1000;
  registry_.AddFault(Blobs(), action);
  CallContext context;
  context.deadline = base::SystemClock().Monotonic() + absl::Milliseconds(200);
  EXPECT_EQ(Read({0, bytes_.size()}, context).status().code(), absl::StatusCode::kDeadlineExceeded);

  options_.stall_timeout = absl::Milliseconds(200);
  client_.reset();
  registry_.ClearFaults();
  registry_.AddFault(Blobs(1), action);
  ExpectRight({0, bytes_.size()});
  gate->Open();
}

TEST_F(ClientFaultsTest, NobodyThere) {
  repository_.host = "127.0.0.1:1";
  options_.max_attempts = 2;
  absl::Status status = Read({0, 10}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("127.0.0.1:1"), absl::string_view::npos) << status;
}

TEST_F(ClientFaultsTest, NeverHttpWhenHttpsIsMeant) {
  options_.plain_http = false;
  options_.max_attempts = 2;
  absl::Status status = Read({0, 10}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(registry_.Log().size(), 0u);
}

TEST_F(ClientFaultsTest, ManifestsByTagAndDigestAndReferrers) {
  std::string config = "{}";
  std::string raw = absl::StrCat(
      "{\"schemaVersion\":2,\"mediaType\":\"", oci::kMediaTypeOciManifest,
      "\",\"config\":{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"size\":2,\"digest\":\"",
      base::Digest::Of(config).ToString(), "\"},\"layers\":[]}");
  base::Digest digest = registry_.PutManifest("app", "1", raw, oci::kMediaTypeOciManifest);
  oci::Reference tagged = repository_;
  tagged.tag = "1";
  absl::StatusOr<FetchedManifest> manifest = client().GetManifest(tagged, {});
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->raw, raw);
  EXPECT_EQ(manifest->descriptor.digest, digest);
  EXPECT_EQ(client().HeadManifest(tagged, {})->digest, digest);
  tagged.digest = digest;
  EXPECT_TRUE(client().GetManifest(tagged, {}).ok());
  EXPECT_EQ(*client().HeadBlob(repository_, blob_.digest, {}), blob_.size);
  EXPECT_EQ(client().HeadBlob(repository_, base::Digest::Of("absent"), {}).status().code(),
            absl::StatusCode::kNotFound);
  for (bool api : {true, false}) {
    registry_.SetReferrersApi(api);
    absl::StatusOr<std::vector<oci::Descriptor>> referrers = client().Referrers(repository_, digest, "", {});
    ASSERT_TRUE(referrers.ok()) << referrers.status();
    EXPECT_TRUE(referrers->empty());
  }
}

TEST_F(ClientFaultsTest, AFlippedBitInAManifestIsRefused) {
  std::string raw = "{\"schemaVersion\":2,\"manifests\":[]}";
  oci::Reference reference = repository_;
  reference.digest = registry_.PutManifest("app", "", raw, oci::kMediaTypeOciIndex);
  for (uint64_t i = 0; i < raw.size(); ++i) {
    registry_.ClearFaults();
    RequestMatcher manifests;
    manifests.path_contains = "/manifests/";
    FaultAction action;
    action.flip_bit_of_byte = i;
    registry_.AddFault(manifests, action);
    ASSERT_EQ(client().GetManifest(reference, {}).status().code(), absl::StatusCode::kDataLoss) << i;
  }
}

TEST_F(ClientFaultsTest, LinkIsMeasured) {
  ExpectRight({0, bytes_.size()});
  EXPECT_GT(client().EstimateLink(repository_).bytes_per_second, 0);
  EXPECT_GT(client().EstimateLink(repository_).round_trip, absl::ZeroDuration());
}

}  // namespace
}  // namespace lazyblob::registry
