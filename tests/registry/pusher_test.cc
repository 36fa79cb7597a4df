// Pushing on a fake network: what goes out, and what is made of the answers.

#include "registry/pusher.h"

#include <gtest/gtest.h>

#include "registry/internal/push.h"
#include "registry/internal/refusal.h"
#include "registry/internal/token_request.h"
#include "tests/registry/fake_transport.h"

namespace lazyblob::registry {
namespace {

using internal::DescriptorOf;
using internal::FakeClient;
using internal::MergeScopes;
using internal::ParseErrorBody;
using internal::ParseUploadRange;
using internal::Pattern;
using internal::Push;
using internal::Reply;
using internal::Repository;
using internal::Seen;
using internal::Status;

constexpr char kLocation[] = "https://reg.example:443/v2/app/blobs/uploads/7?_state=a%2Fb+c%3D&x";

UploadSession SessionAt(const std::string& location, uint64_t offset = 0) {
  UploadSession session;
  session.location = location;
  session.offset = offset;
  return session;
}

absl::Span<const uint8_t> Bytes(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Gives `text` in pieces of at most `piece`, and counts what was taken.
class Source {
 public:
  explicit Source(std::string text, size_t piece = 1 << 20) : text_(std::move(text)), piece_(piece) {}
  absl::StatusOr<size_t> operator()(absl::Span<uint8_t> out) const {
    size_t count = std::min({out.size(), piece_, text_.size() - taken_});
    memcpy(out.data(), text_.data() + taken_, count);
    taken_ += count;
    return count;
  }
  size_t taken() const { return taken_; }

 private:
  const std::string text_;
  const size_t piece_;
  mutable size_t taken_ = 0;
};

TEST(UploadRange, IsReadAndZeroIsNothing) {
  EXPECT_EQ(ParseUploadRange("0-1023"), 1024u);
  EXPECT_EQ(ParseUploadRange(" bytes=0-1 "), 2u);
  EXPECT_EQ(ParseUploadRange("0-0"), 0u);
  for (const char* bad : {"", "0", "-", "1-5", "0-", "0--1", "0-x", "0-18446744073709551615", "5"}) {
    EXPECT_FALSE(ParseUploadRange(bad)) << bad;
  }
}

TEST(Scopes, OursComeFirstAndWhole) {
  EXPECT_EQ(MergeScopes("repository:app:pull,push", "repository:app:pull"), "repository:app:pull,push");
  EXPECT_EQ(MergeScopes("repository:app:pull,push repository:lib:pull",
                        "repository:lib:pull repository:app:pull,push"),
            "repository:app:pull,push repository:lib:pull");
  EXPECT_EQ(MergeScopes("repository:app:pull,push", "repository:app:push,delete repository:log:push"),
            "repository:app:pull,push,delete repository:log:push");
  EXPECT_EQ(MergeScopes("repository:app:pull,push", "repository:team/app:pull,push"),
            "repository:team/app:pull,push");
}

TEST(ErrorBody, CodesAndDigestsOfAllErrors) {
  std::string one = base::Digest::Of("1").ToString();
  std::string two = base::Digest::Of("2").ToString();
  internal::ErrorBody body = ParseErrorBody(
      absl::StrCat("{\"errors\":[{\"code\":\"MANIFEST_BLOB_UNKNOWN\",\"detail\":\"", one,
                   "\"},{\"code\":\"bad code\",\"detail\":{\"Digest\":\"", two, "\",\"n\":3}}]}"));
  EXPECT_EQ(body.codes, std::vector<std::string>{"MANIFEST_BLOB_UNKNOWN"});
  EXPECT_EQ(body.digests, (std::vector<base::Digest>{base::Digest::Of("1"), base::Digest::Of("2")}));
  for (const char* bad :
       {"", "[]", "{\"errors\":3}", "{\"errors\":[3]}", "<html>", "{\"errors\":[{\"code\":1}]}"}) {
    EXPECT_TRUE(ParseErrorBody(bad).codes.empty()) << bad;
  }
  EXPECT_FALSE(RefusalOf(absl::NotFoundError("x")));
  absl::Status status = internal::WithRefusal(absl::NotFoundError("x"), 404, body);
  EXPECT_EQ(RefusalOf(base::Annotate(status, "y"))->digests, body.digests);
  EXPECT_EQ(RefusalOf(status)->http_status, 404);
  EXPECT_EQ(RefusalOf(status)->code, "MANIFEST_BLOB_UNKNOWN");
}

TEST(Start, KeepsTheQueryOfAnyLocation) {
  const std::vector<std::pair<std::string, std::string>> locations = {
      {kLocation, kLocation},
      {"/v2/app/blobs/uploads/7?_state=a%2Fb+c%3D&x", kLocation},
      {"7?_state=a%2Fb+c%3D&x", kLocation},
      {"https://store.example/up?sig=%2b%2F", "https://store.example:443/up?sig=%2b%2F"}};
  for (const auto& [header, expected] : locations) {
    FakeClient client([&](const Seen&) {
      return Status(202, {{"location", header}, {"range", "0-0"}, {"oci-chunk-min-length", "999999999999"}});
    });
    absl::StatusOr<UploadSession> session = Push(client.operator->()).Start(Repository(), {});
    ASSERT_TRUE(session.ok()) << session.status();
    EXPECT_EQ(session->location, expected);
    EXPECT_EQ(session->offset, 0u);
    EXPECT_EQ(session->min_chunk, 128u << 20);
    EXPECT_EQ(client.network().log()[0].line, "POST https://reg.example:443/v2/app/blobs/uploads/");
  }
}

TEST(Start, RefusesLocationsThatNoRegistryHasBusinessToSend) {
  for (const char* location : {"", "http://reg.example/v2/app/blobs/uploads/7", "https://127.0.0.1/up",
                               "https://169.254.169.254/up", "https://10.0.0.1/up", "https://[::1]/up",
                               "ftp://reg.example/up", "https://user:pw@reg.example/up"}) {
    FakeClient client([&](const Seen&) { return Status(202, {{"location", location}}); });
    absl::StatusOr<UploadSession> session = Push(client.operator->()).Start(Repository(), {});
    EXPECT_FALSE(session.ok()) << location;
    EXPECT_EQ(session.status().message().find("pw"), absl::string_view::npos);
    // Nor is one from a journal used.
    UploadSession kept = SessionAt(location);
    EXPECT_FALSE(Push(client.operator->()).Query(Repository(), &kept, {}).ok()) << location;
    EXPECT_EQ(client.network().log().size(), 1u) << location;
  }
}

TEST(Mount, IsAskedForAndSaidToBeDone) {
  base::Digest digest = base::Digest::Of("x");
  FakeClient client([](const Seen&) { return Status(201, {{"location", "/v2/app/blobs/x"}}); });
  auto mounted = Push(client.operator->()).Mount(Repository(), digest, "team/base", {});
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  EXPECT_FALSE(*mounted);
  EXPECT_EQ(client.network().log()[0].line,
            absl::StrCat("POST https://reg.example:443/v2/app/blobs/uploads/?mount=sha256%3A", digest.hex(),
                         "&from=team%2Fbase"));
  mounted = Push(client.operator->()).Mount(Repository(), digest, "", {});
  EXPECT_EQ(client.network().log()[1].line,
            absl::StrCat("POST https://reg.example:443/v2/app/blobs/uploads/?mount=sha256%3A", digest.hex()));
}

TEST(Mount, OpensASessionWhereItIsRefused) {
  for (int status : {202, 400, 401, 403, 404, 405, 416, 500, 501}) {
    FakeClient client([&](const Seen& seen) {
      bool mount = absl::StrContains(seen.line, "mount=");
      return Status(mount ? status : 202, {{"location", kLocation}});
    });
    auto session = Push(client.operator->()).Mount(Repository(), base::Digest::Of("x"), "lib", {});
    ASSERT_TRUE(session.ok()) << status << ": " << session.status();
    ASSERT_TRUE(*session) << status;
    EXPECT_EQ((*session)->location, kLocation);
    EXPECT_EQ(client.network().Count("mount="), status >= 500 ? 2u : 1u) << status;
  }
}

TEST(Sessions, CredentialsStayWithTheRegistry) {
  std::string body = "12345";
  auto credentials = [] {
    class Fixed final : public CredentialsProvider {
      absl::StatusOr<std::optional<Credentials>> Lookup(absl::string_view) const override {
        return std::optional<Credentials>(Credentials{"user", "secret", "", ""});
      }
    };
    return std::make_shared<Fixed>();
  };
  ClientOptions options;
  options.credentials = credentials();
  FakeClient client(
      [&](const Seen& seen) {
        if (absl::StrContains(seen.line, "store.example")) return Status(201);
        if (seen.Header("Authorization").empty())
          return Status(401, {{"www-authenticate", "Basic realm=\"r\""}});
        return Status(202, {{"location", "https://store.example/up?sig=1"}});
      },
      options);
  Push push(client.operator->());
  absl::StatusOr<UploadSession> session = push.Start(Repository(), {});
  ASSERT_TRUE(session.ok());
  ASSERT_TRUE(push.PutWhole(Repository(), *session, DescriptorOf(body), Source(body), {}).ok());
  Seen put = client.network().log().back();
  EXPECT_EQ(put.line, absl::StrCat("PUT https://store.example:443/up?sig=1&digest=sha256%3A",
                                   base::Digest::Of(body).hex()));
  EXPECT_EQ(put.Header("Authorization"), "");
  EXPECT_EQ(put.body, body);
}

TEST(PutWhole, StreamsLargeBodiesAndSmallOnesAlike) {
  for (size_t size : {0, 1, 1000, 1 << 20, (1 << 20) + 1, 3 << 20}) {
    std::string body = Pattern(size);
    FakeClient client([](const Seen&) { return Status(201); });
    Source source(body + "more", 777);
    absl::Status put = Push(client.operator->())
                           .PutWhole(Repository(), SessionAt(kLocation), DescriptorOf(body), source, {});
    ASSERT_TRUE(put.ok()) << put;
    Seen seen = client.network().log().at(0);
    EXPECT_EQ(seen.line, absl::StrCat("PUT ", kLocation, "&digest=sha256%3A", base::Digest::Of(body).hex()));
    EXPECT_TRUE(seen.body == body) << size;
    EXPECT_EQ(source.taken(), size) << "no byte beyond";
  }
}

TEST(PutWhole, A401BeforeTheBodyIsAnsweredWithAFreshToken) {
  std::string body = Pattern(2 << 20);
  int refused = 0;
  FakeClient client([&](const Seen& seen) {
    if (absl::StrContains(seen.line, "/token"))
      return Status(200, {}, absl::StrCat("{\"token\":\"t", refused, "\"}"));
    if (seen.Header("Authorization") != "Bearer t3") {
      ++refused;
      return Status(
          401, {{"www-authenticate",
                 "Bearer realm=\"https://reg.example/token\",service=\"s\",scope=\"repository:app:pull\""}});
    }
    return Status(201);
  });
  Push push(client.operator->());
  Source source(body);
  // The first PUT comes without a token and gets one that is refused as well: the next call has the right
  // one.
  absl::Status first = push.PutWhole(Repository(), SessionAt(kLocation), DescriptorOf(body), source, {});
  EXPECT_EQ(first.code(), absl::StatusCode::kUnauthenticated) << first;
  EXPECT_EQ(RefusalOf(first)->http_status, 401);
  EXPECT_EQ(source.taken(), 0u) << "nothing was taken for requests that were refused";
  absl::Status second = push.PutWhole(Repository(), SessionAt(kLocation), DescriptorOf(body), source, {});
  EXPECT_TRUE(second.ok()) << second;
  EXPECT_TRUE(client.network().log().back().body == body);
  EXPECT_EQ(client.network().Count("/token?"), 2u);
  EXPECT_EQ(client.network().Count("scope=repository%3Aapp%3Apull%2Cpush"), 2u)
      << "though the challenge speaks of pulling alone";
}

TEST(PutWhole, ErrorsOfTheSourceAreTheCallers) {
  FakeClient client([](const Seen&) { return Status(201); });
  Push push(client.operator->());
  for (size_t size : {100, 2 << 20}) {
    oci::Descriptor blob = DescriptorOf(Pattern(size));
    int calls = 0;
    auto failing = [&](absl::Span<uint8_t> out) -> absl::StatusOr<size_t> {
      if (++calls > 2) return absl::AbortedError("mine");
      return std::min<size_t>(out.size(), 10);
    };
    EXPECT_EQ(push.PutWhole(Repository(), SessionAt(kLocation), blob, failing, {}),
              absl::AbortedError("mine"));
    absl::Status brief = push.PutWhole(Repository(), SessionAt(kLocation), blob, Source("short"), {});
    EXPECT_EQ(brief.code(), absl::StatusCode::kDataLoss) << brief;
  }
  EXPECT_EQ(push.PutWhole(Repository(), SessionAt(kLocation, 5), DescriptorOf("x"), Source("x"), {}).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(PutWhole, TellsWhatTheRegistryThoughtOfIt) {
  struct Case {
    int status;
    std::string code;
    absl::StatusCode expected;
  };
  const std::vector<Case> cases = {{400, "DIGEST_INVALID", absl::StatusCode::kDataLoss},
                                   {400, "BLOB_UPLOAD_INVALID", absl::StatusCode::kInvalidArgument},
                                   {404, "BLOB_UPLOAD_UNKNOWN", absl::StatusCode::kNotFound},
                                   {409, "", absl::StatusCode::kInvalidArgument},
                                   {413, "", absl::StatusCode::kInvalidArgument},
                                   {403, "DENIED", absl::StatusCode::kPermissionDenied},
                                   {429, "TOOMANYREQUESTS", absl::StatusCode::kUnavailable},
                                   {500, "UNKNOWN", absl::StatusCode::kUnavailable}};
  for (const Case& c : cases) {
    FakeClient client([&](const Seen&) {
      return Status(c.status, {}, c.code.empty() ? "" : "{\"errors\":[{\"code\":\"" + c.code + "\"}]}");
    });
    absl::Status status =
        Push(client.operator->())
            .PutWhole(Repository(), SessionAt(kLocation), DescriptorOf("x"), Source("x"), {});
    EXPECT_EQ(status.code(), c.expected) << status;
    ASSERT_TRUE(RefusalOf(status)) << status;
    EXPECT_EQ(RefusalOf(status)->http_status, c.status);
    EXPECT_EQ(RefusalOf(status)->code, c.code);
    EXPECT_EQ(client.network().log().size(), 1u) << "a body goes out once";
    EXPECT_EQ(status.message().find("_state"), absl::string_view::npos) << status;
  }
  FakeClient liar([](const Seen&) {
    return Status(201, {{"docker-content-digest", base::Digest::Of("other").ToString()}});
  });
  EXPECT_EQ(Push(liar.operator->())
                .PutWhole(Repository(), SessionAt(kLocation), DescriptorOf("x"), Source("x"), {})
                .code(),
            absl::StatusCode::kDataLoss);
}

TEST(Patch, MovesOnByWhatTheRangeSays) {
  struct Case {
    std::string range;
    uint64_t offset;
    absl::StatusCode expected;
  };
  const std::vector<Case> cases = {
      {"0-109", 110, absl::StatusCode::kOk},      {"bytes=0-109", 110, absl::StatusCode::kOk},
      {"0-99", 100, absl::StatusCode::kDataLoss}, {"0-104", 105, absl::StatusCode::kDataLoss},
      {"0-0", 0, absl::StatusCode::kDataLoss},    {"0-500", 501, absl::StatusCode::kDataLoss}};
  for (const Case& c : cases) {
    FakeClient client([&](const Seen&) {
      return Status(202, {{"location", "/v2/app/blobs/uploads/7?_state=next"}, {"range", c.range}});
    });
    UploadSession session = SessionAt(kLocation, 100);
    absl::Status status = Push(client.operator->()).Patch(Repository(), &session, Bytes("0123456789"), {});
    EXPECT_EQ(status.code(), c.expected) << c.range << ": " << status;
    EXPECT_EQ(session.offset, c.offset);
    EXPECT_EQ(session.location, "https://reg.example:443/v2/app/blobs/uploads/7?_state=next");
    Seen seen = client.network().log()[0];
    EXPECT_EQ(seen.line, absl::StrCat("PATCH ", kLocation));
    EXPECT_EQ(seen.Header("Content-Range"), "100-109");
    EXPECT_EQ(seen.Header("Content-Type"), "application/octet-stream");
    EXPECT_EQ(seen.body, "0123456789");
  }
}

TEST(Patch, AsksWhereTheAnswerHasNoRange) {
  FakeClient client([&](const Seen& seen) {
    return absl::StartsWith(seen.line, "PATCH") ? Status(202) : Status(204, {{"range", "0-9"}});
  });
  UploadSession session = SessionAt(kLocation);
  EXPECT_TRUE(Push(client.operator->()).Patch(Repository(), &session, Bytes("0123456789"), {}).ok());
  EXPECT_EQ(session.offset, 10u);
  EXPECT_EQ(session.location, kLocation);
  EXPECT_EQ(client.network().log().size(), 2u);
}

TEST(Patch, IsTriedOnceAndSaysWhatToDoNext) {
  const std::vector<std::pair<int, absl::StatusCode>> cases = {{416, absl::StatusCode::kOutOfRange},
                                                               {404, absl::StatusCode::kNotFound},
                                                               {500, absl::StatusCode::kUnavailable}};
  for (const auto& [http, code] : cases) {
    FakeClient client([status = http](const Seen&) { return Status(status); });
    UploadSession session = SessionAt(kLocation, 4);
    absl::Status status = Push(client.operator->()).Patch(Repository(), &session, Bytes("0123"), {});
    EXPECT_EQ(status.code(), code);
    EXPECT_EQ(session.offset, 4u);
    EXPECT_EQ(client.network().log().size(), 1u);
    EXPECT_EQ(Push(client.operator->()).Patch(Repository(), &session, Bytes("0"), {}).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST(Commit, LooksWhetherItWorkedWhenTheAnswerGotLost) {
  for (bool there : {true, false}) {
    int puts = 0;
    FakeClient client([&](const Seen& seen) {
      if (absl::StartsWith(seen.line, "HEAD")) return Status(there ? 200 : 404, {{"content-length", "3"}});
      Reply lost;
      lost.before = absl::UnavailableError("connection broke");
      return ++puts == 1 ? lost : Status(404);
    });
    absl::Status status =
        Push(client.operator->()).Commit(Repository(), SessionAt(kLocation, 3), base::Digest::Of("abc"), {});
    EXPECT_EQ(status.code(), there ? absl::StatusCode::kOk : absl::StatusCode::kNotFound) << status;
    EXPECT_EQ(puts, 2);
  }
  FakeClient gone([](const Seen&) { return Status(404); });
  EXPECT_EQ(Push(gone.operator->())
                .Commit(Repository(), SessionAt(kLocation, 3), base::Digest::Of("abc"), {})
                .code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(gone.network().log().size(), 1u) << "an answer that came is believed";
}

TEST(Cancel, GoesOutThoughTheCallIsCancelled) {
  FakeClient client([](const Seen&) { return Status(405); });
  CallContext context;
  context.cancel = std::make_shared<base::CancelToken>();
  context.cancel->Cancel();
  Push(client.operator->()).Cancel(Repository(), SessionAt(kLocation), context);
  ASSERT_EQ(client.network().log().size(), 1u);
  EXPECT_EQ(client.network().log()[0].line, absl::StrCat("DELETE ", kLocation));
}

TEST(PutManifest, GoesByTagOrDigestWithItsBytes) {
  std::string raw = "{\"schemaVersion\":2}";
  base::Digest digest = base::Digest::Of(raw);
  FakeClient client([&](const Seen& seen) {
    Reply reply = Status(201, {{"docker-content-digest", digest.ToString()}});
    if (absl::StrContains(seen.line, "sha256:")) reply.headers.emplace_back("oci-subject", digest.ToString());
    return reply;
  });
  Push push(client.operator->());
  absl::StatusOr<Pusher::ManifestPut> put = push.PutManifest(Repository(), "application/x", raw, {});
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_EQ(put->digest, digest);
  EXPECT_FALSE(put->subject_indexed);
  Seen seen = client.network().log()[0];
  EXPECT_EQ(seen.line, "PUT https://reg.example:443/v2/app/manifests/1");
  EXPECT_EQ(seen.Header("Content-Type"), "application/x");
  EXPECT_EQ(seen.body, raw);
  oci::Reference pinned = Repository();
  pinned.digest = digest;
  put = push.PutManifest(pinned, "application/x", raw, {});
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_TRUE(put->subject_indexed);
  EXPECT_EQ(client.network().log()[1].line,
            absl::StrCat("PUT https://reg.example:443/v2/app/manifests/", digest.ToString()));
  EXPECT_EQ(push.PutManifest(pinned, "application/x", raw + " ", {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(client.network().log().size(), 2u);
  EXPECT_EQ(push.PutManifest(Repository(), "application/x", raw + " ", {}).status().code(),
            absl::StatusCode::kDataLoss)
      << "stored as something else";
}

TEST(PutManifest, IsRetriedWithAllItsBytes) {
  std::string raw = Pattern(100'000);
  int tries = 0;
  FakeClient client([&](const Seen&) { return Status(++tries < 3 ? 503 : 201); });
  ASSERT_TRUE(Push(client.operator->()).PutManifest(Repository(), "application/x", raw, {}).ok());
  for (const Seen& seen : client.network().log()) EXPECT_TRUE(seen.body == raw);
  EXPECT_EQ(tries, 3);
}

TEST(Push, AllWaitWhereTheHostAskedToBeLeftAlone) {
  FakeClient client([&](const Seen& seen) {
    if (absl::StartsWith(seen.line, "PATCH")) return Status(429, {{"retry-after", "7"}});
    return Status(202, {{"location", kLocation}});
  });
  Push push(client.operator->());
  UploadSession session = SessionAt(kLocation);
  absl::Status status = push.Patch(Repository(), &session, Bytes("0123"), {});
  EXPECT_EQ(RefusalOf(status)->http_status, 429);
  EXPECT_EQ(client.slept(), absl::ZeroDuration());
  ASSERT_TRUE(push.Start(Repository(), {}).ok());
  EXPECT_EQ(client.slept(), absl::Seconds(7));
}

TEST(Push, GoesToTheFirstHostThatTakesPushes) {
  auto config = std::make_shared<HostConfig>();
  for (const char* url : {"https://mirror.example", "https://first.example", "https://second.example"}) {
    RegistryHost host;
    host.url = url;
    host.path = "/v2";
    host.push = host.url != "https://mirror.example";
    config->hosts.push_back(host);
  }
  ClientOptions options;
  options.host_config = [config](const std::string&) { return config; };
  FakeClient client([](const Seen&) { return Status(403); }, options);
  EXPECT_FALSE(Push(client.operator->()).Start(Repository(), {}).ok());
  ASSERT_EQ(client.network().log().size(), 1u);
  EXPECT_EQ(client.network().log()[0].line,
            "POST https://first.example:443/v2/app/blobs/uploads/?ns=reg.example");
  for (RegistryHost& host : config->hosts) host.push = false;
  absl::Status none = Push(client.operator->()).Start(Repository(), {}).status();
  EXPECT_TRUE(absl::StrContains(none.message(), "the capability \"push\"")) << none;
}

TEST(Push, FollowsRedirectsThatKeepTheMethodOnly) {
  for (int status : {301, 302, 303, 307, 308}) {
    FakeClient client([&](const Seen& seen) {
      if (absl::StrContains(seen.line, "moved.example")) return Status(202, {{"location", "/up"}});
      return Status(status, {{"location", "https://moved.example/v2/app/blobs/uploads/"}});
    });
    absl::StatusOr<UploadSession> session = Push(client.operator->()).Start(Repository(), {});
    EXPECT_EQ(session.ok(), status >= 307) << status << ": " << session.status();
  }
}

}  // namespace
}  // namespace lazyblob::registry
