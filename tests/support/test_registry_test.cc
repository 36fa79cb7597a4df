#include "tests/support/test_registry.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/eventually.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::support {
namespace {

using ::testing::HasSubstr;

// One raw connection to the registry, so that tests see what is on the wire.
class RawClient {
 public:
  struct Reply {
    int status = 0;  // 0: no answer
    std::string head;
    std::string body;
    bool complete = false;  // as many bytes as Content-Length said
    int error = 0;          // errno at the end of an incomplete one; 0: closed
    std::string Header(absl::string_view name) const {
      for (const absl::string_view line : absl::StrSplit(head, "\r\n")) {
        const std::pair<absl::string_view, absl::string_view> parts =
            absl::StrSplit(line, absl::MaxSplits(": ", 1));
        if (absl::EqualsIgnoreCase(parts.first, name)) return std::string(parts.second);
      }
      return {};
    }
  };

  explicit RawClient(const std::string& host) : host_(host) {
    const std::vector<std::string> parts = absl::StrSplit(host, ':');
    fd_ = base::UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in name{};
    name.sin_family = AF_INET;
    int port = 0;
    EXPECT_TRUE(absl::SimpleAtoi(parts[1], &port));
    name.sin_port = htons(static_cast<uint16_t>(port));
    EXPECT_EQ(inet_pton(AF_INET, parts[0].c_str(), &name.sin_addr), 1);
    EXPECT_EQ(connect(fd_.get(), reinterpret_cast<sockaddr*>(&name), sizeof name), 0);
  }

  void Send(const std::string& method, const std::string& target, const HeaderList& headers = {},
            const std::string& body = "") {
    method_ = method;
    std::string request = absl::StrCat(method, " ", target, " HTTP/1.1\r\nHost: ", host_, "\r\n");
    for (const auto& [name, value] : headers) absl::StrAppend(&request, name, ": ", value, "\r\n");
    if (!body.empty()) absl::StrAppend(&request, "Content-Length: ", body.size(), "\r\n");
    absl::StrAppend(&request, "\r\n", body);
    // A broken connection shows when the answer is read.
    if (send(fd_.get(), request.data(), request.size(), MSG_NOSIGNAL) < 0) return;
  }

  Reply Receive() {
    Reply reply;
    size_t end = 0;
    while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
      if (!Fill(&reply)) return reply;
    }
    reply.head = buffer_.substr(0, end);
    buffer_.erase(0, end + 4);
    EXPECT_TRUE(absl::SimpleAtoi(reply.head.substr(9, 3), &reply.status));
    uint64_t length = 0;
    const std::string stated = reply.Header("Content-Length");
    const bool until_close = stated.empty() || !absl::SimpleAtoi(stated, &length);
    if (method_ == "HEAD") length = 0;
    while (until_close || buffer_.size() < length) {
      if (!Fill(&reply)) break;
    }
    reply.body = until_close ? buffer_ : buffer_.substr(0, length);
    reply.complete = !until_close && buffer_.size() >= length;
    buffer_.erase(0, reply.body.size());
    return reply;
  }

  Reply Do(const std::string& method, const std::string& target, const HeaderList& headers = {},
           const std::string& body = "") {
    Send(method, target, headers, body);
    return Receive();
  }
  Reply Get(const std::string& target, const HeaderList& headers = {}) { return Do("GET", target, headers); }

 private:
  bool Fill(Reply* reply) {
    char piece[65536];
    const ssize_t got = recv(fd_.get(), piece, sizeof piece, 0);
    if (got > 0) buffer_.append(piece, static_cast<size_t>(got));
    if (got < 0) reply->error = errno;
    return got > 0;
  }

  const std::string host_;
  base::UniqueFd fd_;
  std::string method_;
  std::string buffer_;
};

class TestRegistryTest : public ::testing::Test {
 protected:
  TestRegistryTest() {
    blob_ = registry_.PutBlob("a/b", "0123456789");
    path_ = "/v2/a/b/blobs/" + blob_.ToString();
  }
  RawClient::Reply Get(const std::string& target, const HeaderList& headers = {}) {
    return RawClient(registry_.host()).Get(target, headers);
  }

  TestRegistry registry_;
  base::Digest blob_;
  std::string path_;
};

TEST_F(TestRegistryTest, ServesBlobsAndRanges) {
  RawClient client(registry_.host());
  EXPECT_EQ(client.Get("/v2/").status, 200);
  RawClient::Reply reply = client.Get(path_);
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.body, "0123456789");
  EXPECT_EQ(reply.Header("Docker-Content-Digest"), blob_.ToString());
  reply = client.Get(path_, {{"Range", "bytes=2-4"}});
  EXPECT_EQ(reply.status, 206);
  EXPECT_EQ(reply.body, "234");
  EXPECT_EQ(reply.Header("Content-Range"), "bytes 2-4/10");
  EXPECT_EQ(client.Get(path_, {{"Range", "bytes=7-"}}).body, "789");
  EXPECT_EQ(client.Get(path_, {{"Range", "bytes=-2"}}).body, "89");
  EXPECT_EQ(client.Get(path_, {{"Range", "bytes=8-100"}}).body, "89");
  reply = client.Get(path_, {{"Range", "bytes=10-11"}});
  EXPECT_EQ(reply.status, 416);
  EXPECT_EQ(reply.Header("Content-Range"), "bytes */10");
  reply = client.Do("HEAD", path_);
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.Header("Content-Length"), "10");
  EXPECT_EQ(client.Get("/v2/other/blobs/" + blob_.ToString()).status, 404);
  EXPECT_EQ(registry_.connections(), 1U);
  EXPECT_EQ(registry_.Count({.method = "GET", .path_contains = "/blobs/"}), 7U);
  EXPECT_EQ(registry_.Count({.range_contains = "2-4"}), 1U);
  EXPECT_EQ(registry_.TimesFetched(blob_, 8), 4U);
  EXPECT_EQ(registry_.TimesFetched(blob_, 3), 2U);
}

TEST_F(TestRegistryTest, ServesManifestsByTagAndDigest) {
  const Image image = MakeImage({MakeLayer(MakeTar({File("f", "x")}), oci::Compression::kGzip)});
  registry_.PutImage("a/b", "latest", image);
  RawClient client(registry_.host());
  for (const std::string& reference : {std::string("latest"), image.manifest_descriptor.digest.ToString()}) {
    const RawClient::Reply reply = client.Get("/v2/a/b/manifests/" + reference);
    EXPECT_EQ(reply.status, 200);
    EXPECT_EQ(reply.body, image.manifest);
    EXPECT_EQ(reply.Header("Content-Type"), oci::kMediaTypeOciManifest);
    EXPECT_EQ(reply.Header("Docker-Content-Digest"), image.manifest_descriptor.digest.ToString());
  }
  EXPECT_EQ(client.Get("/v2/a/b/manifests/none").status, 404);
  EXPECT_EQ(client.Get("/v2/a/b/tags/list").body, R"({"name":"a/b","tags":["latest"]})");
  EXPECT_EQ(client.Get("/v2/a/b/blobs/" + image.layers[0].descriptor.digest.ToString()).body,
            image.layers[0].blob);
}

TEST_F(TestRegistryTest, ListsReferrersUnlessSwitchedOff) {
  const Image image = MakeImage({});
  ImageOptions options;
  options.subject = image.manifest_descriptor;
  options.artifact_type = "application/x-index";
  const Image artifact = MakeImage({}, options);
  registry_.PutImage("a/b", "latest", image);
  registry_.PutImage("a/b", "", artifact);
  const std::string path = "/v2/a/b/referrers/" + image.manifest_descriptor.digest.ToString();
  const auto list = nlohmann::json::parse(Get(path).body);
  ASSERT_EQ(list["manifests"].size(), 1U);
  EXPECT_EQ(list["manifests"][0]["digest"], artifact.manifest_descriptor.digest.ToString());
  EXPECT_EQ(list["manifests"][0]["artifactType"], "application/x-index");
  const RawClient::Reply filtered = Get(path + "?artifactType=other");
  EXPECT_EQ(nlohmann::json::parse(filtered.body)["manifests"].size(), 0U);
  EXPECT_EQ(filtered.Header("OCI-Filters-Applied"), "artifactType");
  registry_.SetReferrersApi(false);
  EXPECT_EQ(Get(path).status, 404);
}

TEST_F(TestRegistryTest, BearerTokensAreScopedAndExpire) {
  AuthOptions auth;
  auth.kind = AuthOptions::Kind::kBearer;
  auth.username = "u";
  auth.password = "p";
  auth.identity_token = "identity";
  registry_.SetAuth(auth);
  RawClient client(registry_.host());
  const RawClient::Reply challenge = client.Get(path_);
  EXPECT_EQ(challenge.status, 401);
  EXPECT_EQ(challenge.Header("WWW-Authenticate"),
            absl::StrCat("Bearer realm=\"http://", registry_.host(),
                         "/token\",service=\"test-registry\",scope=\"repository:a/b:pull\""));
  EXPECT_EQ(client.Get("/token?scope=repository:a/b:pull").status, 401);
  const std::string basic = "Basic " + absl::Base64Escape("u:p");
  const auto token_for = [&](const std::string& scope) {
    const RawClient::Reply reply = client.Get("/token?service=x&scope=" + scope, {{"Authorization", basic}});
    return "Bearer " + nlohmann::json::parse(reply.body)["token"].get<std::string>();
  };
  const std::string token = token_for("repository:a/b:pull,push");
  EXPECT_EQ(client.Get(path_, {{"Authorization", token}}).status, 200);
  const RawClient::Reply other = client.Get(path_, {{"Authorization", token_for("repository:c:pull")}});
  EXPECT_EQ(other.status, 401);
  EXPECT_THAT(other.Header("WWW-Authenticate"), HasSubstr("insufficient_scope"));
  registry_.RevokeTokens();
  EXPECT_THAT(client.Get(path_, {{"Authorization", token}}).Header("WWW-Authenticate"),
              HasSubstr("invalid_token"));
  const RawClient::Reply posted =
      client.Do("POST", "/token", {},
                "grant_type=refresh_token&refresh_token=identity&scope=repository%3Aa%2Fb%3Apull");
  EXPECT_EQ(posted.status, 200);
  EXPECT_EQ(registry_.token_requests(), 4U);
  auth.token_ttl = absl::ZeroDuration();
  registry_.SetAuth(auth);
  EXPECT_EQ(client.Get(path_, {{"Authorization", token_for("repository:a/b:pull")}}).status, 401);
}

TEST_F(TestRegistryTest, BasicAuthentication) {
  AuthOptions auth;
  auth.kind = AuthOptions::Kind::kBasic;
  auth.username = "u";
  auth.password = "p:q";
  registry_.SetAuth(auth);
  EXPECT_EQ(Get(path_).Header("WWW-Authenticate"), "Basic realm=\"test-registry\"");
  EXPECT_EQ(Get(path_, {{"Authorization", "Basic " + absl::Base64Escape("u:p:q")}}).status, 200);
  EXPECT_EQ(Get(path_, {{"Authorization", "Basic " + absl::Base64Escape("u:p")}}).status, 401);
}

TEST_F(TestRegistryTest, RedirectsToSignedUrlsThatExpire) {
  registry_.SetCdn({.enabled = true});
  const std::string location = Get(path_).Header("Location");
  const std::string prefix = "http://" + registry_.cdn_host();
  ASSERT_TRUE(absl::StartsWith(location, prefix)) << location;
  const std::string target = location.substr(prefix.size());
  RawClient cdn(registry_.cdn_host());
  EXPECT_EQ(cdn.Get(target, {{"Range", "bytes=1-2"}}).body, "12");
  EXPECT_EQ(cdn.Get(target, {{"Authorization", "Bearer x"}}).status, 400);
  EXPECT_EQ(registry_.TimesFetched(blob_, 1), 1U);
  registry_.ExpireCdnUrls();
  EXPECT_EQ(cdn.Get(target).status, 403);
  EXPECT_TRUE(registry_.Log().back().cdn);
  registry_.SetCdn({.enabled = true, .ttl = absl::ZeroDuration()});
  EXPECT_EQ(cdn.Get(Get(path_).Header("Location").substr(prefix.size())).status, 403);
}

TEST_F(TestRegistryTest, RulesCountTheirRequests) {
  registry_.AddFault({.method = "GET", .path_regex = "/blobs/sha256:[0-9a-f]{64}$", .skip = 1, .count = 2},
                     {.status = 503, .body = "busy", .headers = {{"Retry-After", "7"}}});
  RawClient client(registry_.host());
  EXPECT_EQ(client.Get(path_).status, 200);
  const RawClient::Reply busy = client.Get(path_);
  EXPECT_EQ(busy.status, 503);
  EXPECT_EQ(busy.body, "busy");
  EXPECT_EQ(busy.Header("Retry-After"), "7");
  EXPECT_EQ(client.Do("HEAD", path_).status, 200);
  EXPECT_EQ(client.Get(path_).status, 503);
  EXPECT_EQ(client.Get(path_).status, 200);
  registry_.AddFault({}, {.status = 500});
  EXPECT_EQ(client.Get(path_).status, 500);
  registry_.ClearFaults();
  EXPECT_EQ(client.Get(path_).status, 200);
}

TEST_F(TestRegistryTest, LiesAboutRanges) {
  const auto with = [&](FaultAction action) {
    registry_.ClearFaults();
    registry_.AddFault({}, std::move(action));
    return Get(path_, {{"Range", "bytes=2-5"}});
  };
  RawClient::Reply reply = with({.ignore_range = true});
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.body, "0123456789");
  reply = with({.shift_range = 1});
  EXPECT_EQ(reply.body, "3456");
  EXPECT_EQ(reply.Header("Content-Range"), "bytes 3-6/10");
  reply = with({.content_range = "bytes 0-3/10"});
  EXPECT_EQ(reply.body, "2345");
  EXPECT_EQ(reply.Header("Content-Range"), "bytes 0-3/10");
  reply = with({.cut_range_to = 2});
  EXPECT_EQ(reply.status, 206);
  EXPECT_EQ(reply.body, "23");
  EXPECT_EQ(reply.Header("Content-Range"), "bytes 2-3/10");
  EXPECT_EQ(with({.flip_bit_of_byte = 4}).body, "2355");
  reply = with({.huge_header_bytes = 5000, .claim_gzip = true});
  EXPECT_EQ(reply.Header("X-Huge").size(), 5000U);
  EXPECT_EQ(reply.Header("Content-Encoding"), "gzip");
  EXPECT_EQ(with({.no_content_length = true}).body, "2345");
  EXPECT_EQ(with({.chunked = true, .close_after = true}).body, "4\r\n2345\r\n0\r\n\r\n");
  EXPECT_EQ(with({.headers = {{"docker-content-digest", ""}}}).Header("Docker-Content-Digest"), "");
}

TEST_F(TestRegistryTest, BreaksBodiesWhereTold) {
  const std::string bytes = RandomBytes(3 << 20, 1);
  const std::string path = "/v2/a/b/blobs/" + registry_.PutBlob("a/b", bytes).ToString();
  registry_.AddFault({.count = 1}, {.reset_at = 1'000'001});
  registry_.AddFault({.count = 1}, {.truncate_at = 2'000'001});
  registry_.AddFault({.count = 1}, {.drop = true});
  RawClient::Reply reply = Get(path);
  EXPECT_FALSE(reply.complete);
  EXPECT_EQ(reply.error, ECONNRESET);
  EXPECT_TRUE(reply.body == bytes.substr(0, reply.body.size()));
  EXPECT_LE(reply.body.size(), 1'000'001U);
  reply = Get(path);
  EXPECT_FALSE(reply.complete);
  EXPECT_EQ(reply.error, 0);
  EXPECT_TRUE(reply.body == bytes.substr(0, 2'000'001));
  EXPECT_EQ(Get(path).status, 0);
  EXPECT_TRUE(Get(path).body == bytes);
  EXPECT_TRUE(Eventually([&] { return registry_.Log().back().finished; }));
  const std::vector<LoggedRequest> log = registry_.Log();
  EXPECT_EQ(log[0].body_bytes, 1'000'001U);
  EXPECT_FALSE(log[1].complete);
  EXPECT_EQ(log[2].status, 0);
  EXPECT_TRUE(log[3].complete);
}

TEST_F(TestRegistryTest, GatesHoldTheHeadAndTheBody) {
  auto gate = std::make_shared<Gate>();
  auto body_gate = std::make_shared<Gate>();
  registry_.AddFault({}, {.gate = gate, .body_gate = body_gate, .body_gate_at = 4});
  RawClient client(registry_.host());
  client.Send("GET", path_);
  ASSERT_TRUE(gate->AwaitWaiting(1));
  EXPECT_EQ(registry_.Log()[0].status, 0);
  gate->Open();
  ASSERT_TRUE(body_gate->AwaitWaiting(1));
  EXPECT_EQ(registry_.Log()[0].body_bytes, 4U);
  body_gate->Open();
  EXPECT_EQ(client.Receive().body, "0123456789");
  EXPECT_TRUE(registry_.AwaitRequests({.path_contains = "/blobs/"}, 1));
}

TEST_F(TestRegistryTest, DelayAndBandwidthTakeTheirTime) {
  const std::string path = "/v2/a/b/blobs/" + registry_.PutBlob("a/b", std::string(10'000, 'x')).ToString();
  registry_.AddFault({.count = 1}, {.delay = absl::Milliseconds(50)});
  registry_.AddFault({.count = 1}, {.bytes_per_second = 100'000});
  absl::Time start = absl::Now();
  EXPECT_EQ(Get(path).status, 200);
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(50));
  start = absl::Now();
  EXPECT_EQ(Get(path).body.size(), 10'000U);
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(100));
}

TEST_F(TestRegistryTest, DestructionEndsEveryWait) {
  auto registry = std::make_unique<TestRegistry>();
  registry->AddFault({.path_contains = "held"}, {.gate = std::make_shared<Gate>()});
  registry->AddFault({.path_contains = "late"}, {.delay = absl::Hours(1)});
  registry->AddFault({.path_contains = "slow"}, {.bytes_per_second = 1});
  RawClient held(registry->host()), late(registry->host()), slow(registry->host()), idle(registry->host());
  held.Send("GET", "/v2/held");
  late.Send("GET", "/v2/late");
  slow.Send("GET", "/v2/slow");
  ASSERT_TRUE(registry->AwaitRequests({}, 3));
  registry.reset();  // else in an hour
  EXPECT_FALSE(late.Receive().complete);
}

TEST_F(TestRegistryTest, ConnectionsAreCountedAndBroken) {
  RawClient first(registry_.host()), second(registry_.host());
  EXPECT_EQ(first.Get("/v2/").status, 200);
  EXPECT_EQ(second.Get("/v2/").status, 200);
  EXPECT_EQ(registry_.open_connections(), 2U);
  EXPECT_NE(registry_.Log()[0].connection, registry_.Log()[1].connection);
  registry_.BreakConnections();
  first.Send("GET", "/v2/");
  EXPECT_EQ(first.Receive().status, 0);
  registry_.ClearLog();
  EXPECT_EQ(Get("/v2/").status, 200);
  EXPECT_EQ(registry_.Log().size(), 1U);
}

TEST_F(TestRegistryTest, ObeysRemoteControl) {
  TestRegistryOptions options;
  options.control = true;
  TestRegistry registry(options);
  const std::string path = "/v2/a/blobs/" + registry.PutBlob("a", "0123456789").ToString();
  RawClient client(registry.host());
  const auto post = [&](const std::string& what, const std::string& body) {
    return client.Do("POST", "/_test/" + what, {}, body).status;
  };
  EXPECT_EQ(
      post("faults", R"([{"path_contains":"/blobs/","count":1,"status":503,"headers":{"Retry-After":"1"}},
                               {"method":"GET","count":1,"flip_bit_of_byte":4,"delay_ms":1}])"),
      200);
  EXPECT_EQ(client.Get(path).Header("Retry-After"), "1");
  EXPECT_EQ(client.Get(path).body, "0123556789");
  EXPECT_EQ(client.Get(path).body, "0123456789");
  EXPECT_EQ(post("faults", R"({"statsu":503})"), 400);
  EXPECT_EQ(post("faults", R"({"status":"503"})"), 400);
  EXPECT_EQ(post("nothing", "{}"), 404);
  const auto log = nlohmann::json::parse(client.Get("/_test/log").body);
  ASSERT_EQ(log.size(), 3U);
  EXPECT_EQ(log[0]["status"], 503);
  EXPECT_EQ(log[2]["body_bytes"], 10);
  EXPECT_EQ(nlohmann::json::parse(client.Get("/_test/stats").body)["requests"], 3);
  EXPECT_EQ(client.Do("DELETE", "/_test/log").status, 200);
  EXPECT_EQ(client.Get("/_test/log").body, "[]\n");
  EXPECT_EQ(post("auth", R"({"kind":"bearer","token_ttl_ms":500})"), 200);
  EXPECT_EQ(client.Get(path).status, 401);
  EXPECT_EQ(post("auth", R"({"kind":"none"})"), 200);
  EXPECT_EQ(post("cdn", R"({"enabled":true,"status":302})"), 200);
  EXPECT_EQ(client.Get(path).status, 302);
  EXPECT_EQ(post("cdn", R"({"enabled":false})"), 200);
  EXPECT_EQ(post("faults", R"({"gate":"g"})"), 200);
  RawClient held(registry.host());
  held.Send("GET", path);
  ASSERT_TRUE(registry.AwaitRequests({}, 3));
  EXPECT_EQ(post("gates/g/open", ""), 200);
  EXPECT_EQ(held.Receive().status, 200);
  EXPECT_EQ(nlohmann::json::parse(client.Get("/_test/gates/g").body)["arrived"], 1);
}

TEST_F(TestRegistryTest, ServesALayoutToSkopeo) {
  TempDir dir;
  const Image image = MakeImage({MakeLayer(MakeTar({File("f", "x")}), oci::Compression::kGzip)});
  ASSERT_TRUE(WriteLayout(dir.File("layout"), "v1", image).ok());
  ASSERT_TRUE(registry_.PutLayout("from/layout", dir.File("layout")).ok());
  const std::string command =
      absl::StrCat("skopeo copy -q --src-tls-verify=false --preserve-digests docker://", registry_.host(),
                   "/from/layout:v1 oci:", dir.File("copy"), ":v1");
  EXPECT_EQ(std::system(command.c_str()), 0);
  auto copied =
      base::ReadFile(dir.File("copy/blobs/sha256/" + image.layers[0].descriptor.digest.hex()), 1 << 20);
  ASSERT_TRUE(copied.ok()) << copied.status();
  EXPECT_EQ(*copied, image.layers[0].blob);
}

}  // namespace
}  // namespace lazyblob::support
