#include <gtest/gtest.h>

#include "oci/manifest.h"
#include "tests/registry/fake_transport.h"

namespace lazyblob::registry::internal {
namespace {

std::string SmallManifest(const std::string& note = "") {
  return absl::StrCat("{\"schemaVersion\":2,\"mediaType\":\"", oci::kMediaTypeOciManifest,
                      "\",\"config\":{\"mediaType\":\"c\",\"size\":2,\"digest\":\"",
                      base::Digest::Of("{}").ToString(), "\"},\"layers\":[],\"annotations\":{\"note\":\"",
                      note, "\"}}");
}

Headers ManifestHeaders(const std::string& raw) {
  return {{"content-type", oci::kMediaTypeOciManifest},
          {"content-length", absl::StrCat(raw.size())},
          {"docker-content-digest", base::Digest::Of(raw).ToString()}};
}

oci::Reference ByDigest(const std::string& raw) {
  oci::Reference reference = Repository();
  reference.tag.reset();
  reference.digest = base::Digest::Of(raw);
  return reference;
}

ClientOptions WithMirrors() {
  ClientOptions options;
  options.host_config = Mirrors({"https://m1.example", "https://m2.example"});
  return options;
}

TEST(GetManifest, ByTag) {
  std::string raw = SmallManifest();
  FakeClient client([&](const Seen&) { return Status(200, ManifestHeaders(raw), raw); });
  absl::StatusOr<FetchedManifest> manifest = client->GetManifest(Repository(), {});
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->raw, raw);
  EXPECT_EQ(manifest->content_type, oci::kMediaTypeOciManifest);
  EXPECT_EQ(manifest->descriptor.digest, base::Digest::Of(raw));
  EXPECT_EQ(manifest->descriptor.size, raw.size());
  EXPECT_EQ(manifest->descriptor.media_type, oci::kMediaTypeOciManifest);
  auto log = client.network().log();
  EXPECT_EQ(log[0].line, "GET https://reg.example:443/v2/app/manifests/1");
  for (const char* type : {oci::kMediaTypeOciManifest, oci::kMediaTypeOciIndex, oci::kMediaTypeDockerManifest,
                           oci::kMediaTypeDockerIndex}) {
    EXPECT_NE(log[0].Header("Accept").find(type), std::string::npos) << type;
  }
}

TEST(GetManifest, BytesThatDoNotMatchTheDigestAreNeverReturned) {
  std::string raw = SmallManifest();
  std::string other = SmallManifest("x");
  FakeClient client([&](const Seen&) { return Status(200, ManifestHeaders(other), other); });
  EXPECT_EQ(client->GetManifest(ByDigest(raw), {}).status().code(), absl::StatusCode::kDataLoss);
  FakeClient liar([&](const Seen&) { return Status(200, ManifestHeaders(raw), other); });
  EXPECT_EQ(liar->GetManifest(Repository(), {}).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(liar.network().log().size(), 2u);
}

TEST(GetManifest, DigestWinsOverTag) {
  std::string raw = SmallManifest();
  FakeClient client([&](const Seen&) { return Status(200, ManifestHeaders(raw), raw); });
  oci::Reference both = ByDigest(raw);
  both.tag = "1";
  ASSERT_TRUE(client->GetManifest(both, {}).ok());
  EXPECT_EQ(client.network().Count("/manifests/" + base::Digest::Of(raw).ToString()), 1u);
}

TEST(GetManifest, TypelessServersLetTheDocumentSpeak) {
  std::string raw = SmallManifest();
  FakeClient client(
      [&](const Seen&) { return Status(200, {{"content-type", "application/json; charset=utf-8"}}, raw); });
  absl::StatusOr<FetchedManifest> manifest = client->GetManifest(Repository(), {});
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->content_type, "");
  EXPECT_EQ(manifest->descriptor.media_type, oci::kMediaTypeOciManifest);
}

TEST(GetManifest, IsBounded) {
  std::string huge(oci::kMaxManifestBytes + 1, ' ');
  FakeClient announced(
      [&](const Seen&) { return Status(200, {{"content-length", absl::StrCat(huge.size())}}, huge); });
  EXPECT_EQ(announced->GetManifest(Repository(), {}).status().code(), absl::StatusCode::kResourceExhausted);
  FakeClient silent([&](const Seen&) { return Status(200, {}, huge); });
  EXPECT_EQ(silent->GetManifest(Repository(), {}).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(GetManifest, NotFoundNamesImageAndRegistrysCode) {
  FakeClient client([](const Seen&) {
    return Status(404, {},
                  "{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"secret \\u001b[31m\"}]}");
  });
  absl::Status status = client->GetManifest(Repository(), {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "GET manifest reg.example/app:1: HTTP 404 MANIFEST_UNKNOWN from reg.example");
}

TEST(HeadManifest, SavesTheBody) {
  std::string raw = SmallManifest();
  FakeClient client([&](const Seen&) { return Status(200, ManifestHeaders(raw), raw); });
  absl::StatusOr<oci::Descriptor> descriptor = client->HeadManifest(Repository(), {});
  ASSERT_TRUE(descriptor.ok()) << descriptor.status();
  EXPECT_EQ(descriptor->digest, base::Digest::Of(raw));
  EXPECT_EQ(descriptor->size, raw.size());
  EXPECT_EQ(client.network().Count("GET"), 0u);
}

TEST(HeadManifest, FallsBackToGet) {
  std::string raw = SmallManifest();
  for (int status : {200, 405, 400, 501}) {
    FakeClient client([&](const Seen& seen) {
      if (absl::StrContains(seen.line, "HEAD")) return Status(status);
      return Status(200, ManifestHeaders(raw), raw);
    });
    absl::StatusOr<oci::Descriptor> descriptor = client->HeadManifest(Repository(), {});
    ASSERT_TRUE(descriptor.ok()) << status << descriptor.status();
    EXPECT_EQ(descriptor->digest, base::Digest::Of(raw));
  }
  FakeClient missing([](const Seen&) { return Status(404); });
  EXPECT_EQ(missing->HeadManifest(Repository(), {}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(missing.network().log().size(), 1u);
}

TEST(HeadManifest, AnotherDigestIsRefused) {
  std::string raw = SmallManifest();
  FakeClient client([&](const Seen&) { return Status(200, ManifestHeaders(SmallManifest("x"))); });
  EXPECT_EQ(client->HeadManifest(ByDigest(raw), {}).status().code(), absl::StatusCode::kDataLoss);
}

TEST(HeadBlob, SizeOrNotFound) {
  FakeClient client([](const Seen&) { return Status(200, {{"content-length", "123"}}); });
  EXPECT_EQ(*client->HeadBlob(Repository(), base::Digest::Of("x"), {}), 123u);
  FakeClient missing([](const Seen&) { return Status(404); });
  EXPECT_EQ(missing->HeadBlob(Repository(), base::Digest::Of("x"), {}).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(Mirrors, AreAskedFirstAndTheHostLast) {
  std::string raw = SmallManifest();
  FakeClient client(
      [&](const Seen& seen) {
        return absl::StrContains(seen.line, "m2.example") ? Status(200, ManifestHeaders(raw), raw)
                                                          : Status(404);
      },
      WithMirrors());
  ASSERT_TRUE(client->GetManifest(Repository(), {}).ok());
  auto log = client.network().log();
  ASSERT_EQ(log.size(), 2u);
  EXPECT_EQ(log[0].line, "GET https://m1.example:443/v2/app/manifests/1?ns=reg.example");
  EXPECT_EQ(log[1].line, "GET https://m2.example:443/v2/app/manifests/1?ns=reg.example");
}

TEST(Mirrors, ThatAreDownAreLeftAloneForAWhile) {
  std::string raw = SmallManifest();
  FakeClient client(
      [&](const Seen& seen) {
        if (absl::StrContains(seen.line, "reg.example:443")) return Status(200, ManifestHeaders(raw), raw);
        Reply reply;
        reply.before = absl::UnavailableError("connection refused");
        return reply;
      },
      WithMirrors());
  ASSERT_TRUE(client->GetManifest(Repository(), {}).ok());
  EXPECT_EQ(client.network().Count("//m1.example"), 2u);
  ASSERT_TRUE(client->GetManifest(Repository(), {}).ok());
  EXPECT_EQ(client.network().Count("//m1.example"), 2u);
  client.clock().Advance(absl::Seconds(31));
  ASSERT_TRUE(client->GetManifest(Repository(), {}).ok());
  EXPECT_EQ(client.network().Count("//m1.example"), 4u);
}

TEST(Mirrors, ABrokenReadGoesOnAtTheNextEndpoint) {
  std::string blob = Pattern(200'000);
  FakeClient client(
      [&](const Seen& seen) {
        Reply reply = Serve(seen, blob);
        if (absl::StrContains(seen.line, "m1.example") || absl::StrContains(seen.line, "m2.example")) {
          reply.body.resize(1000);
          reply.after = absl::UnavailableError("reset");
        }
        return reply;
      },
      WithMirrors());
  std::string bytes;
  auto sink = [&](absl::Span<const uint8_t> data) {
    bytes.append(reinterpret_cast<const char*>(data.data()), data.size());
    return absl::OkStatus();
  };
  ASSERT_TRUE(client->ReadBlob(Repository(), DescriptorOf(blob), {0, blob.size()}, sink, {}).ok());
  EXPECT_EQ(bytes, blob);
  EXPECT_EQ(client.network().log().back().Header("Range"), "bytes=4000-199999");
}

TEST(Mirrors, AWrongManifestFromAMirrorIsNotTheEnd) {
  std::string raw = SmallManifest();
  FakeClient client(
      [&](const Seen& seen) {
        bool host = absl::StrContains(seen.line, "reg.example:443");
        std::string body = host ? raw : SmallManifest("evil");
        return Status(200, ManifestHeaders(body), body);
      },
      WithMirrors());
  absl::StatusOr<FetchedManifest> manifest = client->GetManifest(ByDigest(raw), {});
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->raw, raw);
}

std::string ReferrersIndex(const std::vector<std::string>& types) {
  std::string list;
  for (const std::string& type : types) {
    absl::StrAppend(&list, list.empty() ? "" : ",", "{\"mediaType\":\"", oci::kMediaTypeOciManifest,
                    "\",\"size\":1,\"digest\":\"", base::Digest::Of(type).ToString(),
                    "\",\"artifactType\":\"", type, "\"}");
  }
  return absl::StrCat("{\"schemaVersion\":2,\"mediaType\":\"", oci::kMediaTypeOciIndex, "\",\"manifests\":[",
                      list, "]}");
}

TEST(Referrers, AreFilteredHereToo) {
  FakeClient client([](const Seen&) {
    return Status(200, {{"content-type", oci::kMediaTypeOciIndex}}, ReferrersIndex({"a/b", "c/d"}));
  });
  auto found = client->Referrers(Repository(), base::Digest::Of("s"), "a/b", {});
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->size(), 1u);
  EXPECT_EQ((*found)[0].artifact_type, "a/b");
  EXPECT_EQ(client.network().log()[0].line, "GET https://reg.example:443/v2/app/referrers/" +
                                                base::Digest::Of("s").ToString() + "?artifactType=a%2Fb");
  EXPECT_EQ(client->Referrers(Repository(), base::Digest::Of("s"), "", {})->size(), 2u);
}

TEST(Referrers, PagesAreFollowedInsideTheRepositoryOnly) {
  std::string path = "/v2/app/referrers/" + base::Digest::Of("s").ToString();
  FakeClient client([&](const Seen& seen) {
    if (absl::StrContains(seen.line, "page=2")) return Status(200, {}, ReferrersIndex({"b"}));
    return Status(200, {{"link", "<" + path + "?page=2>; rel=\"next\""}}, ReferrersIndex({"a"}));
  });
  EXPECT_EQ(client->Referrers(Repository(), base::Digest::Of("s"), "", {})->size(), 2u);
  FakeClient evil([](const Seen&) {
    return Status(200, {{"link", "<https://evil.example/v2/app/referrers/x>; rel=next"}},
                  ReferrersIndex({"a"}));
  });
  EXPECT_EQ(evil->Referrers(Repository(), base::Digest::Of("s"), "", {}).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(evil.network().log().size(), 1u);
  FakeClient endless([&](const Seen&) {
    return Status(200, {{"link", "<" + path + "?page=n>; rel=next"}}, ReferrersIndex({"a"}));
  });
  EXPECT_FALSE(endless->Referrers(Repository(), base::Digest::Of("s"), "", {}).ok());
  EXPECT_EQ(endless.network().log().size(), 16u);
}

TEST(Referrers, FallBackToTheTag) {
  base::Digest subject = base::Digest::Of("s");
  std::string tag = "/manifests/sha256-" + subject.hex();
  FakeClient client([&](const Seen& seen) {
    if (!absl::StrContains(seen.line, tag)) return Status(404);
    std::string raw = ReferrersIndex({"a", "b"});
    return Status(200, {{"content-type", oci::kMediaTypeOciIndex}}, raw);
  });
  auto found = client->Referrers(Repository(), subject, "b", {});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->size(), 1u);
  ASSERT_TRUE(client->Referrers(Repository(), subject, "b", {}).ok());
  EXPECT_EQ(client.network().Count("/referrers/"), 1u) << "that there is no API is remembered";
}

TEST(Referrers, NoneIsEmpty) {
  FakeClient client([](const Seen&) { return Status(404); });
  auto found = client->Referrers(Repository(), base::Digest::Of("s"), "", {});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(found->empty());
  FakeClient broken([](const Seen&) { return Status(500); });
  EXPECT_EQ(broken->Referrers(Repository(), base::Digest::Of("s"), "", {}).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(Referrers, ServersThatAnswerEverythingWithAPageHaveNoApi) {
  FakeClient client([](const Seen& seen) {
    if (absl::StrContains(seen.line, "/referrers/"))
      return Status(200, {{"content-type", "text/html"}}, "<html>");
    return Status(404);
  });
  auto found = client->Referrers(Repository(), base::Digest::Of("s"), "", {});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(found->empty());
}

}  // namespace
}  // namespace lazyblob::registry::internal
