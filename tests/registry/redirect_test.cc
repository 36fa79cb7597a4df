#include <gtest/gtest.h>

#include "tests/registry/fake_transport.h"

namespace lazyblob::registry::internal {
namespace {

const std::string& Blob() {
  static const std::string blob = Pattern(5000);
  return blob;
}

// A registry that sends blob requests to signed URLs "https://cdn.example/b?sig=<n>"; a signature works until
// it is expired.
struct SigningRegistry {
  std::string target = "https://cdn.example/b?sig=";
  std::atomic<int> signatures{0};
  std::atomic<int> oldest_valid{1};
  int refusal = 403;

  Reply operator()(const Seen& seen) {
    if (absl::StrContains(seen.line, "//cdn.example")) {
      int signature = 0;
      sscanf(seen.line.substr(seen.line.find("sig=")).c_str(), "sig=%d", &signature);
      return signature >= oldest_valid ? Serve(seen, Blob()) : Status(refusal);
    }
    if (seen.Header("Authorization").empty()) return Status(401, {{"www-authenticate", "Basic realm=\"x\""}});
    return Status(307, {{"location", absl::StrCat(target, ++signatures)}});
  }
};

class Someone final : public CredentialsProvider {
 public:
  absl::StatusOr<std::optional<Credentials>> Lookup(absl::string_view) const override {
    return std::optional<Credentials>(Credentials{"u", "p", "", ""});
  }
};

ClientOptions Options() {
  ClientOptions options;
  options.credentials = std::make_shared<Someone>();
  return options;
}

absl::StatusOr<std::string> Read(FakeClient& client, ByteRange range = {10, 20}) {
  std::string bytes;
  auto sink = [&](absl::Span<const uint8_t> data) {
    bytes.append(reinterpret_cast<const char*>(data.data()), data.size());
    return absl::OkStatus();
  };
  absl::Status status = client->ReadBlob(Repository(), DescriptorOf(Blob()), range, sink, {});
  if (!status.ok()) return status;
  return bytes;
}

TEST(Redirect, TargetIsRememberedAndNeverSeesOurCredentials) {
  SigningRegistry registry;
  FakeClient client(std::ref(registry), Options());
  for (int i = 0; i < 4; ++i) ASSERT_EQ(*Read(client), Blob().substr(10, 20));
  EXPECT_EQ(registry.signatures, 1);
  EXPECT_EQ(client.network().Count("cdn.example"), 4u);
  for (const Seen& seen : client.network().log()) {
    if (!absl::StrContains(seen.line, "cdn.example")) continue;
    EXPECT_EQ(seen.Header("Authorization"), "");
    EXPECT_EQ(seen.Header("Range"), "bytes=10-29");
    EXPECT_FALSE(seen.allow_local_address);
  }
}

TEST(Redirect, ExpiredTargetsAreResolvedAgainOnce) {
  for (int refusal : {400, 401, 403}) {
    SigningRegistry registry;
    registry.refusal = refusal;
    FakeClient client(std::ref(registry), Options());
    ASSERT_TRUE(Read(client).ok());
    registry.oldest_valid = 2;
    ASSERT_TRUE(Read(client).ok()) << refusal;
    EXPECT_EQ(registry.signatures, 2);
    registry.oldest_valid = 1000;
    EXPECT_FALSE(Read(client).ok());
    EXPECT_EQ(registry.signatures, 3) << "once per call";
  }
}

TEST(Redirect, ATargetThatBreaksIsForgotten) {
  SigningRegistry registry;
  std::atomic<bool> broken{false};
  FakeClient client(
      [&](const Seen& seen) {
        if (broken && absl::StrContains(seen.line, "sig=1")) {
          Reply reply;
          reply.before = absl::UnavailableError("connection refused");
          return reply;
        }
        return registry(seen);
      },
      Options());
  ASSERT_TRUE(Read(client).ok());
  broken = true;
  EXPECT_TRUE(Read(client).ok());
}

TEST(Redirect, AtMostFiveHops) {
  for (int hops : {5, 6}) {
    FakeClient client([&](const Seen& seen) {
      int at = 0;
      size_t mark = seen.line.find("hop=");
      if (mark != std::string::npos) sscanf(seen.line.c_str() + mark, "hop=%d", &at);
      if (at == hops) return Serve(seen, Blob());
      return Status(302, {{"location", absl::StrCat("https://h", at + 1, ".example/?hop=", at + 1)}});
    });
    EXPECT_EQ(Read(client).ok(), hops == 5) << hops;
  }
  FakeClient loop([](const Seen&) { return Status(302, {{"location", "https://a.example/"}}); });
  EXPECT_EQ(Read(loop).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(loop.network().log().size(), 6u);
}

TEST(Redirect, DowngradesLocalTargetsAndOtherSchemesAreRefused) {
  for (const char* location :
       {"http://cdn.example/b", "https://169.254.169.254/latest/meta-data", "https://127.0.0.1:1/",
        "https://192.168.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]/", "https://0x7f.1/",
        "file:///etc/shadow", "gopher://x/", "https://u:p@cdn.example/"}) {
    FakeClient client([&](const Seen&) { return Status(302, {{"location", location}}); });
    absl::StatusOr<std::string> read = Read(client);
    EXPECT_FALSE(read.ok()) << location;
    EXPECT_EQ(client.network().log().size(), 1u) << location << " was contacted";
  }
}

TEST(Redirect, ADowngradeAfterASafeHopIsRefusedToo) {
  FakeClient client([](const Seen& seen) {
    bool first = absl::StrContains(seen.line, "reg.example");
    return Status(302, {{"location", first ? "https://cdn.example/" : "http://cdn.example/"}});
  });
  EXPECT_EQ(Read(client).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(client.network().log().size(), 2u);
}

TEST(Redirect, PrivateTargetsWhereTheRegistryIsPrivateOrItIsAllowed) {
  auto script = [](const Seen& seen) {
    if (absl::StrContains(seen.line, "/v2/")) return Status(302, {{"location", "https://10.0.0.9/b"}});
    return Serve(seen, Blob());
  };
  ClientOptions allowed;
  allowed.allow_private_redirects = true;
  FakeClient client(script, allowed);
  EXPECT_TRUE(Read(client).ok());
}

TEST(Redirect, ToTheSameOriginKeepsTheCredentialsToAnotherPortDoesNot) {
  FakeClient client(
      [](const Seen& seen) {
        if (seen.Header("Authorization").empty() && absl::StrContains(seen.line, ":443/")) {
          return Status(401, {{"www-authenticate", "Basic realm=\"x\""}});
        }
        if (absl::StrContains(seen.line, "/v2/")) return Status(302, {{"location", "/same"}});
        if (absl::StrContains(seen.line, "/same"))
          return Status(302, {{"location", "https://reg.example:8443/port"}});
        return Serve(seen, Blob());
      },
      Options());
  ASSERT_TRUE(Read(client).ok());
  for (const Seen& seen : client.network().log()) {
    if (absl::StrContains(seen.line, "/same")) {
      EXPECT_NE(seen.Header("Authorization"), "");
    }
    if (absl::StrContains(seen.line, "/port")) {
      EXPECT_EQ(seen.Header("Authorization"), "");
    }
  }
  EXPECT_EQ(client.network().Count("/port"), 1u);
}

TEST(Redirect, QueriesStayOutOfMessages) {
  SigningRegistry registry;
  registry.target = "https://cdn.example/b?X-Amz-Signature=SECRET&sig=";
  registry.oldest_valid = 1000;
  FakeClient client(std::ref(registry), Options());
  absl::Status status = Read(client).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(status.message().find("SECRET"), absl::string_view::npos) << status;
  EXPECT_NE(status.message().find("cdn.example"), absl::string_view::npos) << status;
}

TEST(TargetCacheTest, ForgetsTheLeastRecentlyUsed) {
  TargetCache cache;
  Url url = *Url::Parse("https://h/");
  for (int i = 0; i < 4096; ++i) cache.Set(absl::StrCat(i), url);
  EXPECT_TRUE(cache.Find("0").has_value());
  cache.Set("one more", url);
  EXPECT_TRUE(cache.Find("0").has_value());
  EXPECT_FALSE(cache.Find("1").has_value());
  cache.Forget("0");
  EXPECT_FALSE(cache.Find("0").has_value());
}

}  // namespace
}  // namespace lazyblob::registry::internal
