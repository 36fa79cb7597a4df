// The steps of a push over real HTTP, against a registry with the habits of other people's.

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/registry/pusher_fixture.h"

namespace lazyblob::registry {
namespace {

using support::AuthOptions;
using support::UploadOptions;

constexpr size_t kChunk = 1 << 20;

TEST_F(PusherPersonalitiesTest, WholeAndInChunksOfAnySize) {
  for (size_t size : {size_t{0}, size_t{1}, size_t{70'000}, kChunk, kChunk + 1, 5 * kChunk + 17}) {
    std::string bytes = Noise(size);
    ASSERT_TRUE(PushWhole(bytes).ok()) << size;
    EXPECT_TRUE(Has(bytes)) << size;
    registry_.RemoveBlob("app", base::Digest::Of(bytes));
    if (size < 2) continue;
    absl::Status status = PushChunks(bytes);
    // The last chunk of this size is one byte long.
    if (size == kChunk + 1) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    } else {
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(Has(bytes)) << size;
    }
  }
  for (const auto& request : registry_.Log({.method = "POST"})) {
    EXPECT_EQ(request.received_bytes, 0u);
    for (const auto& [name, value] : request.headers) EXPECT_NE(name, "content-type") << value;
  }
  EXPECT_EQ(registry_.connections(), 1u);
}

TEST_F(PusherPersonalitiesTest, EveryKindOfLocationIsFollowed) {
  std::string bytes = Noise(3 * kChunk);
  auth_.kind = AuthOptions::Kind::kBearer;
  for (auto kind : {UploadOptions::Locations::kRelative, UploadOptions::Locations::kAbsolute,
                    UploadOptions::Locations::kElsewhere}) {
    uploads_.locations = kind;
    Apply();
    registry_.RemoveBlob("app", base::Digest::Of(bytes));
    absl::Status status = PushChunks(bytes);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(Has(bytes));
    ASSERT_TRUE(PushWhole(bytes).ok());
  }
  size_t elsewhere = 0;
  for (const auto& request : registry_.Log()) {
    if (!request.cdn) continue;
    ++elsewhere;
    EXPECT_EQ(request.authorization, "");
  }
  EXPECT_EQ(elsewhere, 5u) << "three chunks, a commit and a whole blob";
}

TEST_F(PusherPersonalitiesTest, MountsFromWhereItIsAllowed) {
  std::string bytes = Noise(1000);
  base::Digest digest = registry_.PutBlob("base/image", bytes);
  auto mounted = pusher().Mount(repository_, digest, "base/image", {});
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  EXPECT_FALSE(*mounted);
  EXPECT_TRUE(Has(bytes));
  EXPECT_EQ(registry_.Log().size(), 1u);

  // Not there, or not from anywhere: the session that is opened instead takes the blob.
  for (const std::string& from : {std::string("other"), std::string()}) {
    registry_.RemoveBlob("app", digest);
    registry_.ClearLog();
    auto session = pusher().Mount(repository_, digest, from, {});
    ASSERT_TRUE(session.ok() && *session) << session.status();
    ASSERT_TRUE(PutWhole(bytes, **session).ok());
    EXPECT_TRUE(Has(bytes));
    EXPECT_EQ(registry_.Log().size(), 2u) << "one POST, one PUT";
  }
  registry_.RemoveBlob("app", digest);
  Become({"anonymous-mount"});
  mounted = pusher().Mount(repository_, digest, "", {});
  ASSERT_TRUE(mounted.ok());
  EXPECT_FALSE(*mounted);
  registry_.RemoveBlob("app", digest);
  Become({"no-mount"});
  auto session = pusher().Mount(repository_, digest, "base/image", {});
  ASSERT_TRUE(session.ok());
  EXPECT_TRUE(*session);
}

TEST_F(PusherPersonalitiesTest, AMountAsksForBothScopesAndAPushForAllOfItsOwn) {
  auth_.kind = AuthOptions::Kind::kBearer;
  Apply();
  base::Digest digest = registry_.PutBlob("base/image", "layer");
  CallContext push;
  push.access = Access::kPush;
  // A check first: its token has to be good for the push as well.
  EXPECT_EQ(client_, nullptr);
  pusher();
  EXPECT_EQ(client_->HeadBlob(repository_, digest, push).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(registry_.token_requests(), 1u);
  ASSERT_TRUE(PushWhole("config").ok());
  EXPECT_EQ(registry_.token_requests(), 1u);
  auto mounted = pusher().Mount(repository_, digest, "base/image", {});
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  EXPECT_FALSE(*mounted);
  std::vector<support::LoggedRequest> tokens = registry_.Log({.path_contains = "/token"});
  ASSERT_EQ(tokens.size(), 2u);
  EXPECT_TRUE(absl::StrContains(tokens[1].query,
                                "scope=repository%3Aapp%3Apull%2Cpush&scope="
                                "repository%3Abase%2Fimage%3Apull"))
      << tokens[1].query;
}

TEST_F(PusherPersonalitiesTest, ATokenThatDoesNotCoverTheSourceMakesAMountAnUpload) {
  std::string bytes = Noise(1000);
  base::Digest digest = registry_.PutBlob("base", bytes);
  for (int kind = 0; kind < 3; ++kind) {
    auth_ = AuthOptions();
    auth_.kind = AuthOptions::Kind::kBearer;
    if (kind == 0) Become({"first-scope"});
    if (kind == 1) auth_.refuses_many_scopes = true;
    if (kind == 2) auth_.never_granted = {"repository:base:pull"};
    Apply();
    registry_.RevokeTokens();
    registry_.ClearLog();
    registry_.RemoveBlob("app", digest);
    pusher_ = nullptr;
    client_ = nullptr;
    auto session = pusher().Mount(repository_, digest, "base", {});
    ASSERT_TRUE(session.ok()) << kind << ": " << session.status();
    ASSERT_TRUE(*session) << kind;
    ASSERT_TRUE(PutWhole(bytes, **session).ok());
    EXPECT_TRUE(Has(bytes));
    EXPECT_LE(registry_.Log().size(), 9u) << kind;
  }
}

TEST_F(PusherPersonalitiesTest, APushThatIsDeniedSaysSo) {
  auth_.kind = AuthOptions::Kind::kBearer;
  auth_.never_granted = {"repository:app:push"};
  Apply();
  absl::Status status = pusher().Start(repository_, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "/app")) << status;
  ASSERT_TRUE(RefusalOf(status)) << status;
  EXPECT_EQ(RefusalOf(status)->http_status, 401);
  EXPECT_EQ(status.message().find("secret"), absl::string_view::npos);
}

TEST_F(PusherPersonalitiesTest, TokensThatAreRevokedInMidSessionAreReplaced) {
  auth_.kind = AuthOptions::Kind::kBearer;
  Apply();
  std::string bytes = Noise(6 * kChunk);
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok()) << session.status();
  registry_.RevokeTokens();
  absl::string_view view = bytes;
  ASSERT_TRUE(pusher().Patch(repository_, &*session, Bytes(view.substr(0, 2000)), {}).ok());
  registry_.RevokeTokens();
  ASSERT_TRUE(pusher().Query(repository_, &*session, {}).ok());
  EXPECT_EQ(session->offset, 2000u);
  registry_.RevokeTokens();
  ASSERT_TRUE(PatchRest(bytes, &*session).ok());
  registry_.RevokeTokens();
  ASSERT_TRUE(pusher().Commit(repository_, *session, base::Digest::Of(bytes), {}).ok());
  EXPECT_TRUE(Has(bytes));

  // A whole body is not begun before the registry says yes.
  registry_.RemoveBlob("app", base::Digest::Of(bytes));
  session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  registry_.RevokeTokens();
  registry_.ClearLog();
  size_t taken = 0;
  absl::Status put = PutWhole(bytes, *session, &taken);
  ASSERT_TRUE(put.ok()) << put;
  EXPECT_EQ(taken, bytes.size());
  EXPECT_EQ(Count("PUT"), 2u);
  EXPECT_EQ(registry_.ReceivedBytes({.method = "PUT"}), bytes.size());
}

TEST_F(PusherPersonalitiesTest, ShortTokensAreRenewedBetweenChunks) {
  auth_.kind = AuthOptions::Kind::kBearer;
  auth_.token_ttl = absl::Seconds(1);
  Apply();
  std::string bytes = Noise(3 * kChunk);
  const absl::Duration start = base::SystemClock().Monotonic();
  int pushed = 0;
  while (HalfSecondsSince(start) < 5) {
    absl::Status status = PushChunks(bytes);
    ASSERT_TRUE(status.ok()) << status;
    ++pushed;
  }
  EXPECT_TRUE(Has(bytes));
  EXPECT_GE(registry_.token_requests(), 2u);
  EXPECT_LE(registry_.token_requests(), 2u + HalfSecondsSince(start)) << pushed << " pushes";
}

TEST_F(PusherPersonalitiesTest, NoChunksIsSaidBeforeMuchIsSent) {
  for (int status : {404, 405}) {
    uploads_.refuse_chunks = status;
    Apply();
    absl::Status patched = PushChunks(Noise(kChunk));
    ASSERT_TRUE(RefusalOf(patched)) << patched;
    EXPECT_EQ(RefusalOf(patched)->http_status, status);
    EXPECT_TRUE(PushWhole(Noise(kChunk)).ok());
  }
}

TEST_F(PusherPersonalitiesTest, DroppedChunksAreNoticed) {
  Become({"ecr"});
  std::string bytes = Noise(3 * kChunk);
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  absl::Status status = PatchRest(bytes, &*session);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_EQ(Count("PATCH"), 2u);
  EXPECT_EQ(session->offset, kChunk);
  // Nor would such an upload be committed.
  absl::Status commit = pusher().Commit(repository_, *session, base::Digest::Of(bytes), {});
  EXPECT_EQ(commit.code(), absl::StatusCode::kDataLoss) << commit;
  EXPECT_EQ(RefusalOf(commit)->code, "DIGEST_INVALID");
  EXPECT_FALSE(Has(bytes));
}

TEST_F(PusherPersonalitiesTest, ABrokenChunkIsResumedWhereTheRegistryKeptIt) {
  std::string bytes = Noise(4 * kChunk);
  for (const char* who : {"distribution", "gar"}) {
    uploads_ = UploadOptions();
    Become({who});
    uploads_.refuse_chunks = 0;
    Apply();
    for (uint64_t cut : {uint64_t{1}, uint64_t{300'000}, uint64_t{kChunk}}) {
      registry_.RemoveBlob("app", base::Digest::Of(bytes));
      registry_.ClearFaults();
      registry_.ClearLog();
      registry_.AddFault({.method = "PATCH", .skip = 1, .count = 1}, {.cut_request_at = cut});
      absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
      ASSERT_TRUE(session.ok());
      absl::Status status = PatchRest(bytes, &*session);
      ASSERT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
      EXPECT_FALSE(RefusalOf(status));
      status = pusher().Query(repository_, &*session, {});
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(session->offset, kChunk + cut);
      ASSERT_TRUE(PatchRest(bytes, &*session).ok());
      status = pusher().Commit(repository_, *session, base::Digest::Of(bytes), {});
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(Has(bytes));
      EXPECT_EQ(registry_.ReceivedBytes({.method = "PATCH"}), bytes.size()) << "not a byte twice";
    }
  }
}

TEST_F(PusherPersonalitiesTest, AStaleLocationIsRefusedAndQueryHelps) {
  std::string bytes = Noise(2 * kChunk);
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  UploadSession old = *session;
  absl::string_view view = bytes;
  ASSERT_TRUE(pusher().Patch(repository_, &*session, Bytes(view.substr(0, kChunk)), {}).ok());
  absl::Status stale = pusher().Patch(repository_, &old, Bytes(view.substr(0, kChunk)), {});
  EXPECT_EQ(stale.code(), absl::StatusCode::kOutOfRange) << stale;
  EXPECT_EQ(RefusalOf(stale)->code, "RANGE_INVALID");
  ASSERT_TRUE(pusher().Query(repository_, &old, {}).ok());
  EXPECT_EQ(old.offset, kChunk);
  ASSERT_TRUE(PatchRest(bytes, &old).ok());
  ASSERT_TRUE(pusher().Commit(repository_, old, base::Digest::Of(bytes), {}).ok());
  EXPECT_TRUE(Has(bytes));
}

TEST_F(PusherPersonalitiesTest, ASessionOfTheOldDistributionIsGoneWithItsState) {
  Become({"distribution-2.8"});
  std::string bytes = Noise(3 * kChunk);
  registry_.AddFault({.method = "PATCH", .skip = 1, .count = 1}, {.cut_request_at = 1000});
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  EXPECT_EQ(PatchRest(bytes, &*session).code(), absl::StatusCode::kUnavailable);
  absl::Status gone = pusher().Query(repository_, &*session, {});
  EXPECT_EQ(gone.code(), absl::StatusCode::kNotFound) << gone;
  EXPECT_EQ(RefusalOf(gone)->code, "BLOB_UPLOAD_INVALID");
  EXPECT_TRUE(PushChunks(bytes).ok());
}

TEST_F(PusherPersonalitiesTest, ASessionThatDiedWithItsChunkIsGone) {
  Become({"zot"});
  std::string bytes = Noise(3 * kChunk);
  registry_.AddFault({.method = "PATCH", .skip = 1, .count = 1}, {.cut_request_at = 1000});
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  EXPECT_EQ(PatchRest(bytes, &*session).code(), absl::StatusCode::kUnavailable);
  absl::Status gone = pusher().Query(repository_, &*session, {});
  EXPECT_EQ(gone.code(), absl::StatusCode::kNotFound) << gone;
  EXPECT_EQ(RefusalOf(gone)->code, "BLOB_UPLOAD_UNKNOWN");
  absl::string_view view = bytes;
  EXPECT_EQ(pusher().Patch(repository_, &*session, Bytes(view.substr(0, kChunk)), {}).code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(PutWhole(bytes, UploadSession{session->location, 0, 0}).code(), absl::StatusCode::kNotFound);
}

TEST_F(PusherPersonalitiesTest, AWholeBodyThatIsCutIsTriedOnce) {
  std::string bytes = Noise(4 * kChunk);
  registry_.AddFault({.method = "PUT", .count = 1}, {.cut_request_at = 2 * kChunk});
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  absl::Status status = PutWhole(bytes, *session);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(Count("PUT"), 1u);
  EXPECT_FALSE(Has(bytes));
  ASSERT_TRUE(PushWhole(bytes).ok());
  EXPECT_TRUE(Has(bytes));
}

TEST_F(PusherPersonalitiesTest, TheLoserOfARaceIsTold) {
  Become({"nexus"});
  std::string bytes = Noise(1000);
  absl::StatusOr<UploadSession> first = pusher().Start(repository_, {});
  absl::StatusOr<UploadSession> second = pusher().Start(repository_, {});
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_TRUE(PutWhole(bytes, *first).ok());
  absl::Status lost = PutWhole(bytes, *second);
  EXPECT_EQ(lost.code(), absl::StatusCode::kInvalidArgument) << lost;
  EXPECT_EQ(RefusalOf(lost)->http_status, 400);
  EXPECT_EQ(RefusalOf(lost)->code, "BLOB_UPLOAD_INVALID");
  EXPECT_EQ(*client_->HeadBlob(repository_, base::Digest::Of(bytes), {}), bytes.size());
}

TEST_F(PusherPersonalitiesTest, WrongBytesAreDataLossAndLeaveNothing) {
  std::string bytes = Noise(1000);
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  ASSERT_TRUE(PatchRest(bytes, &*session).ok());
  absl::Status status = pusher().Commit(repository_, *session, base::Digest::Of("other"), {});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_FALSE(registry_.Blob("app", base::Digest::Of("other")));
  EXPECT_EQ(registry_.upload_sessions(), 0u);
}

TEST_F(PusherPersonalitiesTest, AnUploadThatPausesIsBrokenOff) {
  uploads_.idle_limit = absl::Milliseconds(100);
  Apply();
  std::string bytes = Noise(4 * kChunk);
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  size_t at = 0;
  // The source goes on only once the registry has given up.
  auto source = [&](absl::Span<uint8_t> out) -> absl::StatusOr<size_t> {
    if (at >= 2 * kChunk) {
      auto put = registry_.Log({.method = "PUT"});
      while (put.empty() || !put[0].finished) {
        std::this_thread::yield();
        put = registry_.Log({.method = "PUT"});
      }
    }
    size_t count = std::min(out.size(), bytes.size() - at);
    memcpy(out.data(), bytes.data() + at, count);
    at += count;
    return count;
  };
  absl::Status status = pusher().PutWhole(repository_, *session, Describe(bytes), source, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_FALSE(Has(bytes));
}

TEST_F(PusherPersonalitiesTest, ASlowCommitIsWaitedForBeyondTheStallTimeout) {
  constexpr absl::Duration kDelay = absl::Milliseconds(1500);
  uploads_.commit_delay = kDelay;
  Apply();
  const std::string bytes = Noise(1000);
  absl::StatusOr<UploadSession> whole = pusher().Start(repository_, {});
  absl::StatusOr<UploadSession> chunked = pusher().Start(repository_, {});
  ASSERT_TRUE(whole.ok() && chunked.ok() && PatchRest(bytes, &*chunked).ok());
  pusher_.reset();
  options_.stall_timeout = kDelay / 3;
  client_.reset();
  EXPECT_EQ(PutWhole(bytes, *whole), absl::OkStatus());
  EXPECT_EQ(pusher().Commit(repository_, *chunked, base::Digest::Of(bytes), {}), absl::OkStatus());
  EXPECT_EQ(Count("PUT"), 2u);
  // Other answers are not waited for so long.
  registry_.AddFault({.method = "POST", .count = 3}, {.delay = kDelay});
  EXPECT_EQ(pusher().Start(repository_, {}).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(PusherPersonalitiesTest, RetryAfterStopsReadsAndPushesOfTheHost) {
  std::string bytes = Noise(1000);
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  registry_.AddFault({.method = "PUT", .count = 1}, {.status = 429, .headers = {{"Retry-After", "1"}}});
  absl::Duration start = base::SystemClock().Monotonic();
  absl::Status limited = PutWhole(bytes, *session);
  EXPECT_EQ(RefusalOf(limited)->http_status, 429) << limited;
  EXPECT_FALSE(client_->HeadBlob(repository_, base::Digest::Of(bytes), {}).ok());
  EXPECT_GE(base::SystemClock().Monotonic() - start, absl::Milliseconds(990));
  EXPECT_TRUE(PutWhole(bytes, *session).ok());
  // Whoever is refused is told at once.
  session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  registry_.AddFault({.method = "PUT", .count = 1}, {.status = 429, .headers = {{"Retry-After", "100"}}});
  start = base::SystemClock().Monotonic();
  limited = PutWhole(bytes, *session);
  EXPECT_EQ(RefusalOf(limited)->http_status, 429) << limited;
  EXPECT_LT(base::SystemClock().Monotonic() - start, absl::Seconds(90));
}

TEST_F(PusherPersonalitiesTest, CancellingEndsASendAtOnceAndTheSession) {
  options_.stall_timeout = absl::Hours(1);
  std::string bytes = Noise(16 * kChunk);
  auto gate = std::make_shared<support::Gate>();
  registry_.AddFault({.method = "PUT"}, {.request_gate = gate, .request_gate_at = 1});
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  CallContext context;
  context.cancel = std::make_shared<base::CancelToken>();
  absl::Status status;
  std::thread sender([&] {
    size_t at = 0;
    auto source = [&](absl::Span<uint8_t> out) -> absl::StatusOr<size_t> {
      size_t count = std::min(out.size(), bytes.size() - at);
      memcpy(out.data(), bytes.data() + at, count);
      at += count;
      return count;
    };
    status = pusher().PutWhole(repository_, *session, Describe(bytes), source, context);
  });
  ASSERT_TRUE(gate->AwaitWaiting(1));
  context.cancel->Cancel();
  sender.join();  // the gate is closed
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  gate->Open();
  pusher().Cancel(repository_, *session, context);
  EXPECT_EQ(registry_.upload_sessions(), 0u);
}

TEST_F(PusherPersonalitiesTest, CancellingWhileASessionIsOpenedEndsThatSession) {
  options_.stall_timeout = absl::Hours(1);
  const base::Digest digest = base::Digest::Of("bytes");
  for (const bool mount : {false, true}) {
    for (const bool answers : {true, false}) {
      auto gate = std::make_shared<support::Gate>();
      registry_.ClearFaults();
      registry_.AddFault({.method = "POST"}, {.gate = gate, .drop = !answers});
      CallContext context;
      context.cancel = std::make_shared<base::CancelToken>();
      absl::Status status;
      std::thread opener([&] {
        status = mount ? pusher().Mount(repository_, digest, "base", context).status()
                       : pusher().Start(repository_, context).status();
      });
      ASSERT_TRUE(gate->AwaitWaiting(1));
      const absl::Duration start = base::SystemClock().Monotonic();
      context.cancel->Cancel();
      if (answers) gate->Open();
      opener.join();
      EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
      EXPECT_LT(base::SystemClock().Monotonic() - start, support::kPatience / 2) << "the gate is closed";
      gate->Open();
      EXPECT_EQ(registry_.upload_sessions(), 0u);
    }
  }
  EXPECT_EQ(registry_.Count({.method = "DELETE"}), 2u);
}

TEST_F(PusherPersonalitiesTest, AMinimumOfChunksIsPassedOn) {
  uploads_.min_chunk = 2 * kChunk;
  Apply();
  std::string bytes = Noise(5 * kChunk);
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  EXPECT_EQ(session->min_chunk, 2 * kChunk);
  ASSERT_TRUE(PatchRest(bytes, &*session, 2 * kChunk).ok());
  ASSERT_TRUE(pusher().Commit(repository_, *session, base::Digest::Of(bytes), {}).ok());
  EXPECT_EQ(PushChunks(bytes).code(), absl::StatusCode::kInvalidArgument) << "of 1 MiB";
}

TEST_F(PusherPersonalitiesTest, AConnectionThatWasClosedMeanwhileCostsNothing) {
  std::string bytes = Noise(3 * kChunk);
  absl::StatusOr<UploadSession> session = pusher().Start(repository_, {});
  ASSERT_TRUE(session.ok());
  for (size_t at = 0; at < bytes.size(); at += kChunk) {
    registry_.BreakConnections();
    absl::string_view piece = absl::string_view(bytes).substr(at, kChunk);
    absl::Status status = pusher().Patch(repository_, &*session, Bytes(piece), {});
    // Where the break is noticed only in sending, the caller asks and goes on.
    if (!status.ok()) {
      ASSERT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
      ASSERT_TRUE(pusher().Query(repository_, &*session, {}).ok());
      ASSERT_EQ(session->offset, at);
      ASSERT_TRUE(pusher().Patch(repository_, &*session, Bytes(piece), {}).ok());
    }
  }
  ASSERT_TRUE(pusher().Commit(repository_, *session, base::Digest::Of(bytes), {}).ok());
  EXPECT_TRUE(Has(bytes));
}

TEST_F(PusherPersonalitiesTest, ManifestsNeedTheirBlobsAndTellTheirSubject) {
  base::Digest config = registry_.PutBlob("app", "{}");
  std::string raw = absl::StrCat(
      R"({"schemaVersion":2,"mediaType":")", oci::kMediaTypeOciManifest,
      R"(","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":")", config.ToString(),
      R"(","size":2},"layers":[],"subject":{"mediaType":"x/y","size":3,"digest":")",
      base::Digest::Of("abc").ToString(), R"("}})");
  repository_.tag = "1";
  auto put = pusher().PutManifest(repository_, oci::kMediaTypeOciManifest, raw, {});
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_EQ(put->digest, base::Digest::Of(raw));
  EXPECT_TRUE(put->subject_indexed);
  EXPECT_EQ(registry_.Manifest("app", "1"), raw);
  EXPECT_EQ(client_->GetManifest(repository_, {})->content_type, oci::kMediaTypeOciManifest);
  registry_.SetReferrersApi(false);
  EXPECT_FALSE(pusher().PutManifest(repository_, oci::kMediaTypeOciManifest, raw, {})->subject_indexed);

  registry_.MakeOrphan("app", config);
  EXPECT_TRUE(client_->HeadBlob(repository_, config, {}).ok());
  absl::Status unknown = pusher().PutManifest(repository_, oci::kMediaTypeOciManifest, raw, {}).status();
  ASSERT_TRUE(RefusalOf(unknown)) << unknown;
  EXPECT_EQ(RefusalOf(unknown)->code, "MANIFEST_BLOB_UNKNOWN");
  EXPECT_EQ(RefusalOf(unknown)->digests, std::vector<base::Digest>{config});
  ASSERT_TRUE(PushWhole("{}").ok());
  EXPECT_TRUE(pusher().PutManifest(repository_, oci::kMediaTypeOciManifest, raw, {}).ok());
}

TEST_F(PusherPersonalitiesTest, ASharedStoreHasBlobsEverywhere) {
  base::Digest digest = registry_.PutBlob("elsewhere", "blob");
  EXPECT_FALSE((pusher(), client_->HeadBlob(repository_, digest, {}).ok()));
  Become({"shared-store"});
  EXPECT_TRUE(client_->HeadBlob(repository_, digest, {}).ok());
}

}  // namespace
}  // namespace lazyblob::registry
