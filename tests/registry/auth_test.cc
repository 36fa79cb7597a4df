#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/escaping.h"
#include "absl/synchronization/notification.h"
#include "registry/internal/token_request.h"
#include "tests/registry/fake_transport.h"

namespace lazyblob::registry::internal {
namespace {

constexpr char kSecret[] = "hunter2-SECRET";

class FixedCredentials final : public CredentialsProvider {
 public:
  explicit FixedCredentials(std::optional<Credentials> credentials) : credentials_(std::move(credentials)) {}
  absl::StatusOr<std::optional<Credentials>> Lookup(absl::string_view host) const override {
    ++lookups_;
    absl::MutexLock lock(&mutex_);
    hosts_.emplace_back(host);
    return credentials_;
  }
  void Set(Credentials credentials) {
    absl::MutexLock lock(&mutex_);
    credentials_ = std::move(credentials);
  }
  int lookups() const { return lookups_; }

 private:
  mutable std::atomic<int> lookups_{0};
  mutable absl::Mutex mutex_;
  mutable std::vector<std::string> hosts_ ABSL_GUARDED_BY(mutex_);
  std::optional<Credentials> credentials_ ABSL_GUARDED_BY(mutex_);
};

std::shared_ptr<FixedCredentials> User(const std::string& name = "user",
                                       const std::string& password = kSecret) {
  return std::make_shared<FixedCredentials>(Credentials{name, password, "", ""});
}

// A registry whose tokens are "t<N>", each good until revoked, and its token server.
struct TokenRegistry {
  std::string challenge =
      "Bearer realm=\"https://auth.example/token\",service=\"reg\",scope=\"repository:app:pull\"";
  std::string expires = ",\"expires_in\":300";
  std::atomic<int> issued{0};
  std::atomic<int> oldest_valid{1};
  std::string blob = Pattern(1000);
  std::function<Reply(const Seen&)> token_server;

  Reply operator()(const Seen& seen) {
    if (absl::StrContains(seen.line, "https://auth.example")) {
      if (token_server) return token_server(seen);
      return Status(200, {}, absl::StrCat("{\"token\":\"t", ++issued, "\"", expires, "}"));
    }
    int number = 0;
    std::string header = seen.Header("Authorization");
    bool good = sscanf(header.c_str(), "Bearer t%d", &number) == 1 && number >= oldest_valid;
    return good ? Serve(seen, blob) : Status(401, {{"www-authenticate", challenge}});
  }
};

absl::Status ReadSome(FakeClient& client, const std::string& blob, CallContext context = {}) {
  auto sink = [](absl::Span<const uint8_t>) { return absl::OkStatus(); };
  return client->ReadBlob(Repository(), DescriptorOf(blob), {0, 10}, sink, context);
}

ClientOptions With(std::shared_ptr<const CredentialsProvider> credentials) {
  ClientOptions options;
  options.credentials = std::move(credentials);
  return options;
}

TEST(Bearer, OneChallengeOneTokenForManyReads) {
  TokenRegistry registry;
  FakeClient client(std::ref(registry), With(User()));
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  EXPECT_EQ(registry.issued, 1);
  auto log = client.network().log();
  ASSERT_EQ(log.size(), 7u);
  EXPECT_EQ(log[0].Header("Authorization"), "");
  EXPECT_EQ(log[1].line,
            "GET https://auth.example:443/token?service=reg&scope=repository%3Aapp%3Apull&account=user");
  EXPECT_EQ(log[1].Header("Authorization"), "Basic " + absl::Base64Escape(absl::StrCat("user:", kSecret)));
  EXPECT_EQ(log[2].Header("Authorization"), "Bearer t1");
}

TEST(Bearer, APushHasATokenOfItsOwnThatAllowsBoth) {
  TokenRegistry registry;
  FakeClient client(std::ref(registry), With(User()));
  CallContext push;
  push.access = Access::kPush;
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  ASSERT_TRUE(ReadSome(client, registry.blob, push).ok());
  ASSERT_TRUE(ReadSome(client, registry.blob, push).ok());
  EXPECT_EQ(registry.issued, 2);
  std::vector<std::string> asked;
  for (const auto& seen : client.network().log()) {
    if (absl::StrContains(seen.line, "/token?")) asked.push_back(seen.line);
  }
  ASSERT_EQ(asked.size(), 2u);
  EXPECT_TRUE(absl::StrContains(asked[0], "scope=repository%3Aapp%3Apull&")) << asked[0];
  EXPECT_TRUE(absl::StrContains(asked[1], "scope=repository%3Aapp%3Apull%2Cpush&")) << asked[1];
}

TEST(Bearer, AnonymousTokensCarryNoCredentials) {
  TokenRegistry registry;
  FakeClient client(std::ref(registry));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  EXPECT_EQ(client.network().log()[1].Header("Authorization"), "");
}

TEST(Bearer, TenConcurrentCallersCauseOneTokenRequest) {
  TokenRegistry registry;
  absl::Mutex mutex;
  int refused = 0;
  auto credentials = User();
  FakeClient client(
      [&](const Seen& seen) {
        Reply reply = registry(seen);
        if (reply.status == 401) {
          // Held until every caller was refused, so that all of them come for a token at once.
          auto all = [&] { return refused == 10; };
          absl::MutexLock lock(&mutex);
          ++refused;
          mutex.Await(absl::Condition(&all));
        }
        return reply;
      },
      With(credentials));
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  for (int i = 0; i < 10; ++i) {
    threads.emplace_back([&] { good += ReadSome(client, registry.blob).ok() ? 1 : 0; });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(good, 10);
  EXPECT_EQ(registry.issued, 1);
  EXPECT_EQ(client.network().Count("auth.example"), 1u);
  EXPECT_EQ(credentials->lookups(), 1);
}

TEST(Bearer, ACancelledLeaderIsReplaced) {
  TokenRegistry registry;
  absl::Notification leader_in;
  absl::Notification leader_out;
  std::atomic<int> requests{0};
  registry.token_server = [&](const Seen&) {
    if (requests++ == 0) {
      leader_in.Notify();
      leader_out.WaitForNotification();
      Reply reply;
      reply.before = absl::CancelledError("cancelled");
      return reply;
    }
    return Status(200, {}, "{\"token\":\"t1\"}");
  };
  FakeClient client(std::ref(registry));
  CallContext cancelled;
  cancelled.cancel = std::make_shared<base::CancelToken>();
  absl::Status first;
  absl::Status second;
  std::thread leader([&] { first = ReadSome(client, registry.blob, cancelled); });
  leader_in.WaitForNotification();
  std::thread follower([&] { second = ReadSome(client, registry.blob); });
  cancelled.cancel->Cancel();
  leader_out.Notify();
  leader.join();
  follower.join();
  EXPECT_EQ(first.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(second.ok()) << second;
}

TEST(Bearer, IsRenewedAheadOfItsExpiry) {
  TokenRegistry registry;
  FakeClient client(std::ref(registry));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  client.clock().Advance(absl::Seconds(269));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  EXPECT_EQ(registry.issued, 1);
  client.clock().Advance(absl::Seconds(2));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  EXPECT_EQ(registry.issued, 2);
  EXPECT_EQ(client.network().log().back().Header("Authorization"), "Bearer t2");
}

TEST(Bearer, AFailedEarlyRenewalIsNoFailure) {
  TokenRegistry registry;
  FakeClient client(std::ref(registry));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  registry.token_server = [](const Seen&) { return Status(500); };
  client.clock().Advance(absl::Seconds(280));
  EXPECT_TRUE(ReadSome(client, registry.blob).ok());
  client.clock().Advance(absl::Seconds(30));
  EXPECT_EQ(ReadSome(client, registry.blob).code(), absl::StatusCode::kUnavailable);
}

TEST(Bearer, LivesSixtySecondsUnlessSaidOtherwise) {
  TokenRegistry registry;
  registry.expires = "";
  FakeClient client(std::ref(registry));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  client.clock().Advance(absl::Seconds(61));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  EXPECT_EQ(registry.issued, 2);
  EXPECT_EQ(client.network().Count("/v2/"), 3u) << "an expired token is not even tried";
}

TEST(Bearer, RevokedTokensAreReplacedOnce) {
  TokenRegistry registry;
  auto credentials = User();
  FakeClient client(std::ref(registry), With(credentials));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  registry.oldest_valid = 2;
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  EXPECT_EQ(registry.issued, 2);
  EXPECT_EQ(credentials->lookups(), 2) << "changed credentials must be picked up";
  registry.oldest_valid = 1000;
  EXPECT_EQ(ReadSome(client, registry.blob).code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(registry.issued, 3) << "one renewal per call";
}

TEST(Bearer, TokensAreNotSharedBetweenIdentities) {
  TokenRegistry registry;
  FakeClient client(std::ref(registry));
  CallContext alice;
  alice.credentials = User("alice");
  CallContext bob;
  bob.credentials = User("bob");
  CallContext alice_again;
  alice_again.credentials = User("alice");
  ASSERT_TRUE(ReadSome(client, registry.blob, alice).ok());
  ASSERT_TRUE(ReadSome(client, registry.blob, bob).ok());
  EXPECT_EQ(registry.issued, 2);
  EXPECT_EQ(client.network().log().back().Header("Authorization"), "Bearer t2");
  ASSERT_TRUE(ReadSome(client, registry.blob, alice_again).ok());
  EXPECT_EQ(registry.issued, 2) << "the same credentials from elsewhere share a token";
  EXPECT_EQ(client.network().log().back().Header("Authorization"), "Bearer t1");
}

TEST(Bearer, IdentityTokensArePosted) {
  TokenRegistry registry;
  std::string body;
  registry.token_server = [&](const Seen& seen) {
    body = seen.body;
    return Status(200, {}, "{\"access_token\":\"t1\"}");
  };
  FakeClient client(std::ref(registry),
                    With(std::make_shared<FixedCredentials>(Credentials{"", "", "re/fresh", ""})));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  EXPECT_EQ(client.network().log()[1].line, "POST https://auth.example:443/token");
  EXPECT_EQ(client.network().log()[1].Header("Authorization"), "");
  EXPECT_EQ(body,
            "grant_type=refresh_token&client_id=lazyblob&service=reg&scope=repository%3Aapp%3Apull&refresh_"
            "token=re%2Ffresh");
}

TEST(Bearer, RegistryTokensAreUsedAsTheyAre) {
  TokenRegistry registry;
  FakeClient client(std::ref(registry),
                    With(std::make_shared<FixedCredentials>(Credentials{"", "", "", "t1"})));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  EXPECT_EQ(client.network().Count("auth.example"), 0u);
}

TEST(Bearer, RefusalsSayWhatToDoAndHideSecrets) {
  TokenRegistry registry;
  registry.token_server = [](const Seen& seen) {
    return Status(401, {},
                  absl::StrCat("{\"errors\":[{\"code\":\"DENIED\",\"message\":\"",
                               seen.Header("Authorization"), "\"}]}"));
  };
  FakeClient client(std::ref(registry), With(User()));
  absl::Status status = ReadSome(client, registry.blob);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  std::string text(status.message());
  EXPECT_EQ(text.find(kSecret), std::string::npos);
  EXPECT_EQ(text.find(absl::Base64Escape(absl::StrCat("user:", kSecret))), std::string::npos);
  EXPECT_NE(text.find("auth.example"), std::string::npos) << text;
  FakeClient anonymous(std::ref(registry));
  EXPECT_NE(ReadSome(anonymous, registry.blob).message().find("log in"), absl::string_view::npos);
}

TEST(Bearer, TokenServerTroubleIsRetried) {
  TokenRegistry registry;
  std::atomic<int> calls{0};
  registry.token_server = [&](const Seen&) {
    return calls++ < 2 ? Status(503) : Status(200, {}, "{\"token\":\"t1\"}");
  };
  FakeClient client(std::ref(registry));
  EXPECT_TRUE(ReadSome(client, registry.blob).ok());
}

TEST(Bearer, TokenServersMayAskForAPauseToo) {
  TokenRegistry registry;
  std::atomic<int> calls{0};
  registry.token_server = [&](const Seen&) {
    return calls++ == 0 ? Status(429, {{"retry-after", "30"}}) : Status(200, {}, "{\"token\":\"t1\"}");
  };
  FakeClient client(std::ref(registry));
  EXPECT_TRUE(ReadSome(client, registry.blob).ok());
  EXPECT_EQ(calls, 2);
  EXPECT_GE(client.slept(), absl::Seconds(29));
}

TEST(Realm, MayNotLieSomewhereLocalOrUnencrypted) {
  for (const char* realm : {"http://auth.example/token", "https://169.254.169.254/token",
                            "https://127.0.0.1/token", "https://10.0.0.7/token", "https://localhost/token",
                            "file:///etc/passwd", "https://u:p@auth.example/", "token", ""}) {
    TokenRegistry registry;
    registry.challenge = absl::StrCat("Bearer realm=\"", realm, "\",service=reg");
    FakeClient client(std::ref(registry), With(User()));
    absl::Status status = ReadSome(client, registry.blob);
    EXPECT_FALSE(status.ok()) << realm;
    EXPECT_EQ(client.network().log().size(), 1u) << realm << " was contacted";
  }
}

TEST(Realm, NamesArePinnedToPublicAddressesUnlessTheRegistryIsLocal) {
  TokenRegistry registry;
  FakeClient client(std::ref(registry));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  EXPECT_FALSE(client.network().log()[1].allow_local_address);
  EXPECT_TRUE(client.network().log()[0].allow_local_address);
}

TEST(Realm, RedirectsLoseTheCredentialsAtAnotherOrigin) {
  TokenRegistry registry;
  registry.token_server = [](const Seen& seen) {
    if (absl::StrContains(seen.line, "/token?")) return Status(302, {{"location", "/moved"}});
    return Status(302, {{"location", "https://evil.example/steal"}});
  };
  FakeClient client(
      [&](const Seen& seen) {
        if (absl::StrContains(seen.line, "evil.example")) return Status(200, {}, "{\"token\":\"t1\"}");
        return registry(seen);
      },
      With(User()));
  ASSERT_TRUE(ReadSome(client, registry.blob).ok());
  auto log = client.network().log();
  EXPECT_NE(log[2].Header("Authorization"), "") << log[2].line;
  EXPECT_EQ(log[3].Header("Authorization"), "") << log[3].line;
}

TEST(Basic, IsSentToTheRegistryOnly) {
  std::string blob = Pattern(100);
  std::string expected = "Basic " + absl::Base64Escape(absl::StrCat("user:", kSecret));
  auto credentials = User();
  FakeClient client(
      [&](const Seen& seen) {
        if (seen.Header("Authorization") != expected)
          return Status(401, {{"www-authenticate", "Basic realm=\"x\""}});
        return Serve(seen, blob);
      },
      With(credentials));
  ASSERT_TRUE(ReadSome(client, blob).ok());
  ASSERT_TRUE(ReadSome(client, blob).ok());
  EXPECT_EQ(client.network().log().size(), 3u);
  EXPECT_EQ(credentials->lookups(), 1);
  FakeClient anonymous([](const Seen&) { return Status(401, {{"www-authenticate", "Basic realm=\"x\""}}); });
  EXPECT_EQ(ReadSome(anonymous, blob).code(), absl::StatusCode::kUnauthenticated);
}

TEST(Basic, RotatedPasswordsArePickedUp) {
  std::string blob = Pattern(100);
  std::string accepted = "old";
  auto credentials = User("user", "old");
  FakeClient client(
      [&](const Seen& seen) {
        bool good = seen.Header("Authorization") == "Basic " + absl::Base64Escape("user:" + accepted);
        return good ? Serve(seen, blob) : Status(401, {{"www-authenticate", "Basic realm=\"x\""}});
      },
      With(credentials));
  ASSERT_TRUE(ReadSome(client, blob).ok());
  accepted = "new";
  credentials->Set({"user", "new", "", ""});
  EXPECT_TRUE(ReadSome(client, blob).ok());
}

TEST(Challenge, BearerIsPreferredAndUnknownSchemesAreRefused) {
  TokenRegistry registry;
  registry.challenge = "Negotiate, Basic realm=\"x\", Bearer realm=\"https://auth.example/token\"";
  FakeClient client(std::ref(registry), With(User()));
  EXPECT_TRUE(ReadSome(client, registry.blob).ok());
  registry.challenge = "Negotiate";
  registry.oldest_valid = 1000;
  FakeClient other(std::ref(registry), With(User()));
  EXPECT_EQ(ReadSome(other, registry.blob).code(), absl::StatusCode::kUnauthenticated);
}

TEST(Challenge, OneThatCannotBeMetIsAskedForAfreshByTheNextRequest) {
  std::string blob = Pattern(100);
  bool wants_password = true;
  FakeClient client([&](const Seen& seen) {
    if (wants_password) return Status(401, {{"www-authenticate", "Basic realm=\"x\""}});
    return Serve(seen, blob);
  });
  EXPECT_EQ(ReadSome(client, blob).code(), absl::StatusCode::kUnauthenticated);
  wants_password = false;
  EXPECT_EQ(ReadSome(client, blob), absl::OkStatus());
}

TEST(Challenge, ATokenServerThatMovedIsFollowed) {
  TokenRegistry registry;
  FakeClient client(
      [&](const Seen& seen) {
        if (absl::StrContains(seen.line, "https://gone.example")) return Status(404);
        return registry(seen);
      },
      With(User()));
  registry.challenge = "Bearer realm=\"https://gone.example/token\",service=\"reg\"";
  EXPECT_NE(ReadSome(client, registry.blob), absl::OkStatus());
  registry.challenge = "Bearer realm=\"https://auth.example/token\",service=\"reg\"";
  EXPECT_EQ(ReadSome(client, registry.blob), absl::OkStatus());
}

TEST(TokenAnswerTest, Parsing) {
  EXPECT_EQ(ParseTokenAnswer("{\"token\":\"a\"}")->lifetime, absl::Seconds(60));
  EXPECT_EQ(ParseTokenAnswer("{\"access_token\":\"a\",\"expires_in\":5}")->lifetime, absl::Seconds(5));
  EXPECT_EQ(ParseTokenAnswer("{\"token\":\"a\",\"expires_in\":\"x\"}")->lifetime, absl::Seconds(60));
  EXPECT_EQ(ParseTokenAnswer("{\"token\":\"a\",\"expires_in\":99999999999}")->lifetime, absl::Hours(24 * 7));
  for (const char* bad : {"", "[]", "{}", "{\"token\":\"\"}", "{\"token\":\"a b\"}",
                          "{\"token\":\"a\\r\\nX: y\"}", "{\"token\":5}"}) {
    absl::StatusOr<TokenAnswer> answer = ParseTokenAnswer(bad);
    EXPECT_FALSE(answer.ok()) << bad;
  }
  EXPECT_FALSE(ParseTokenAnswer("{\"token\":\"" + std::string(40'000, 'a') + "\"}").ok());
}

}  // namespace
}  // namespace lazyblob::registry::internal
