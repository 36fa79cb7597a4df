#include "registry/hosts_toml.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <set>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "registry/client.h"
#include "registry/internal/endpoint.h"
#include "tests/registry/fake_transport.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::registry {
namespace {

using internal::FakeClient;
using internal::Seen;

constexpr char kPath[] = "/etc/certs.d/reg.example/hosts.toml";

HostsFile Parse(const std::string& text) {
  absl::StatusOr<HostsFile> file = ParseHostsToml(text, kPath);
  EXPECT_TRUE(file.ok()) << file.status();
  return file.ok() ? *std::move(file) : HostsFile();
}

TEST(HostsToml, HostsComeInTheOrderOfTheFileAndTheServerLast) {
  HostsFile file = Parse(R"(
server = "https://reg.example"
[host."https://z.example"]
[host."http://a.example:8080/"]
  capabilities = ["Pull", "resolve"]
[host."m.example"]
  capabilities = []
)");
  ASSERT_EQ(file.entries.size(), 4u);
  EXPECT_EQ(file.entries[0].host.url, "https://z.example:443");
  EXPECT_EQ(file.entries[0].host.path, "/v2");
  EXPECT_TRUE(file.entries[0].host.push);
  EXPECT_EQ(file.entries[1].host.url, "http://a.example:8080");
  EXPECT_TRUE(file.entries[1].host.pull && file.entries[1].host.resolve);
  EXPECT_FALSE(file.entries[1].host.push);
  EXPECT_EQ(file.entries[2].host.url, "https://m.example:443");
  EXPECT_TRUE(file.entries[2].host.push);
  EXPECT_EQ(file.entries[3].host.url, "https://reg.example:443");
  EXPECT_TRUE(file.warnings.empty());
}

TEST(HostsToml, PathsAndFiles) {
  HostsFile file = Parse(R"(
ca = "/abs/ca.pem"
skip_verify = true
[host."https://a.example/v2/hub/"]
  override_path = true
  ca = ["one.pem", "/two.pem"]
  client = "both.pem"
[host."https://b.example/x"]
  client = ["both.pem", ["c.pem", "/k.pem"]]
[host."https://c.example"]
  override_path = true
  client = [["c.pem", "k.pem"]]
[host."https://d.example/x/v2"]
[host."https://a.example".header]
  x-one = "1"
  X-Many = ["2", "3"]
  Host = "evil"
)");
  ASSERT_EQ(file.entries.size(), 6u);
  using Pairs = std::vector<std::pair<std::string, std::string>>;
  std::string dir = "/etc/certs.d/reg.example/";
  EXPECT_EQ(file.entries[0].host.path, "/v2/hub");
  EXPECT_EQ(file.entries[0].ca_files, (std::vector<std::string>{dir + "one.pem", "/two.pem"}));
  EXPECT_EQ(file.entries[0].client_files, (Pairs{{dir + "both.pem", ""}}));
  EXPECT_EQ(file.entries[1].host.path, "/x/v2");
  EXPECT_EQ(file.entries[1].client_files, (Pairs{{dir + "both.pem", ""}, {dir + "c.pem", "/k.pem"}}));
  EXPECT_EQ(file.entries[2].host.path, "");
  EXPECT_EQ(file.entries[2].client_files, (Pairs{{dir + "c.pem", dir + "k.pem"}}));
  EXPECT_EQ(file.entries[3].host.path, "/x/v2");
  Pairs headers = file.entries[4].host.headers;
  EXPECT_EQ(headers, (Pairs{{"x-one", "1"}, {"X-Many", "2"}, {"X-Many", "3"}}));
  EXPECT_EQ(file.entries[5].host.url, "");
  EXPECT_TRUE(file.entries[5].skip_verify);
  EXPECT_EQ(file.entries[5].ca_files, std::vector<std::string>{"/abs/ca.pem"});
  ASSERT_EQ(file.warnings.size(), 2u) << "one of two client certificates, and Host";
}

TEST(HostsToml, UnknownKeysAreIgnoredWithALine) {
  HostsFile file =
      Parse("dial_timeout = '1s'\n[host.'https://a']\nnew = {a = 1}\ncapabilities = 'referrers'");
  ASSERT_EQ(file.warnings.size(), 3u);
  EXPECT_EQ(file.warnings[0], absl::StrCat(kPath, ":3: unknown key \"new\" is ignored"));
  EXPECT_EQ(file.warnings[2], absl::StrCat(kPath, ":1: unknown key \"dial_timeout\" is ignored"));
}

TEST(HostsToml, WhatIsWrongIsNamedWithItsLineAndWithoutValuesOfHeaders) {
  struct Case {
    const char* text;
    const char* message;
  };
  for (const Case& c : std::vector<Case>{
           {"\nserver = 1", "2: server is an integer; it must be a string"},
           {"server = 'ftp://x'", "1: URL \"ftp://x\": "},
           {"server = 'https://u:geheim@x'", "1: URL \"(hidden)\": "},
           {"server = 'https://x/?a=b'", "1: URL of x has a query"},
           {"server = 'https://x:99999'", "1: URL "},
           {"server = \"https://x\\u0000y\"", "1: a URL holds control characters"},
           {"host = 'a'", "1: host is not a table"},
           {"[host]\na = 1", "2: host.\"a\" is not a table"},
           {"[host.'https://a']\ncapabilities = ['fly']", "2: unknown capability \"fly\""},
           {"[host.'https://a']\ncapabilities = [1]", "2: an entry of capabilities is an integer"},
           {"[host.'https://a']\nskip_verify = 'yes'",
            "2: skip_verify is a string; it must be true or false"},
           {"[host.'https://a']\noverride_path = 1", "2: override_path is an integer"},
           {"[host.'https://a']\nca = 1", "2: ca is an integer"},
           {"[host.'https://a']\nca = ''", "2: ca names no file"},
           {"[host.'https://a']\nclient = [['a']]", "2: client is a file, a list"},
           {"[host.'https://a']\nclient = true", "2: client is a file, a list"},
           {"[host.'https://a'.header]\n'a b' = 'geheim'", "2: \"a b\" is not a header's name"},
           {"[host.'https://a'.header]\na = 'geheim\\u000d'\nb = {geheim = 1}", "3: header b is a table"},
           {"[host.'https://a'.header]\na = \"geheim\\r\\nx\"", "2: header a holds control characters"},
           {"header = 'geheim'", "1: header is not a table"},
           {"[host.'https://a'\n", "1: "},
       }) {
    absl::Status status = ParseHostsToml(c.text, kPath).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_TRUE(absl::StartsWith(status.message(), absl::StrCat(kPath, ":", c.message))) << status;
    EXPECT_FALSE(absl::StrContains(status.message(), "geheim")) << status;
    EXPECT_FALSE(absl::StrContains(status.message(), "\n")) << status;
  }
}

// A config_path of its own, and what a client that reads it does.
class HostsDirectoriesTest : public testing::Test {
 protected:
  void Write(const std::string& host, const std::string& text, const std::string& name = "hosts.toml") {
    ASSERT_TRUE(base::MakeDirectories(Root(host)).ok());
    ASSERT_TRUE(base::WriteFileAtomically(absl::StrCat(Root(host), "/", name), text).ok());
  }
  std::string Root(const std::string& host) { return absl::StrCat(dir_.path(), "/", host); }
  std::string FirstUrl(const std::string& host) {
    auto config = directories_.Find(host);
    if (!config.ok()) return std::string(config.status().message());
    return *config == nullptr ? "nothing" : (*config)->hosts.front().url;
  }
  ClientOptions Options() {
    ClientOptions options;
    options.host_config = [this](const std::string& host) { return directories_.Find(host); };
    return options;
  }

  support::TempDir dir_;
  std::vector<std::string> log_;
  HostsDirectories directories_{absl::StrCat("/nowhere:", dir_.path(), "/"),
                                [this](absl::string_view line) { log_.emplace_back(line); }};
};

TEST_F(HostsDirectoriesTest, SpellingsOfTheDirectory) {
  EXPECT_EQ(FirstUrl("reg.example:5000"), "nothing");
  Write("_default", "[host.'https://default.example']");
  EXPECT_EQ(FirstUrl("reg.example:5000"), "https://default.example:443");
  Write("reg.example:5000", "[host.'https://colon.example']");
  EXPECT_EQ(FirstUrl("reg.example:5000"), "https://colon.example:443");
  Write("reg.example_5000_", "[host.'https://under.example']");
  EXPECT_EQ(FirstUrl("reg.example:5000"), "https://under.example:443");
  EXPECT_EQ(FirstUrl("reg.example"), "https://default.example:443");
  for (const char* host : {"..", ".", "", "a/b", "_default"}) EXPECT_EQ(FirstUrl(host), "nothing") << host;
}

TEST_F(HostsDirectoriesTest, AChangedFileIsReadAgainAndABadOneIsAnErrorOfItsHostAlone) {
  Write("reg.example", "[host.'https://one.example']");
  EXPECT_EQ(FirstUrl("reg.example"), "https://one.example:443");
  Write("reg.example", "[host.'https://two.example']");
  EXPECT_EQ(FirstUrl("reg.example"), "https://two.example:443");
  Write("reg.example", "[host.'https://two.example']\nskip_verify = 3");
  EXPECT_EQ(FirstUrl("reg.example"),
            absl::StrCat(Root("reg.example"),
                         "/hosts.toml:2: skip_verify is an integer; it must be true or false"));
  EXPECT_EQ(FirstUrl("other.example"), "nothing");
  FakeClient client([](const Seen&) { return internal::Status(404); }, Options());
  absl::Status status = client->HeadBlob(internal::Repository(), base::Digest::Of("x"), {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_TRUE(client.network().log().empty());
  ASSERT_EQ(unlink((Root("reg.example") + "/hosts.toml").c_str()), 0);
  EXPECT_EQ(FirstUrl("reg.example"), "");
}

TEST_F(HostsDirectoriesTest, CertificatesAreReadCheckedAndWatched) {
  Write("reg.example", "[host.'https://a.example']\nca = 'ca.pem'");
  EXPECT_TRUE(absl::StrContains(FirstUrl("reg.example"), "hosts.toml:1: https://a.example:443: open "))
      << FirstUrl("reg.example");
  Write("reg.example", "nothing", "ca.pem");
  EXPECT_TRUE(absl::StrContains(FirstUrl("reg.example"), "holds no certificate in PEM form"));
  Write("reg.example", "-----BEGIN CERTIFICATE-----", "ca.pem");
  auto first = directories_.Find("reg.example");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(*directories_.Find("reg.example"), *first) << "not read again while nothing changed";
  Write("reg.example", "-----BEGIN CERTIFICATE-----2", "ca.pem");
  auto second = directories_.Find("reg.example");
  ASSERT_TRUE(second.ok());
  EXPECT_NE((*first)->hosts[0].tls->id, (*second)->hosts[0].tls->id);
}

TEST_F(HostsDirectoriesTest, CertificatesAsDockerLaysThemOut) {
  Write("reg.example", "-----BEGIN CERTIFICATE-----ca", "ca.crt");
  Write("reg.example", "-----BEGIN CERTIFICATE-----me", "client.cert");
  EXPECT_TRUE(absl::StrContains(FirstUrl("reg.example"), "there is no client.key beside it"));
  Write("reg.example", "-----BEGIN PRIVATE KEY-----", "client.key");
  auto config = directories_.Find("reg.example");
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ((*config)->hosts.size(), 1u);
  const TlsSettings& tls = *(*config)->hosts[0].tls;
  EXPECT_TRUE(absl::StrContains(tls.ca_pem, "ca"));
  EXPECT_TRUE(absl::StrContains(tls.client_cert_pem, "me"));
  EXPECT_TRUE(tls.elsewhere->client_cert_pem.empty());
  EXPECT_EQ(tls.elsewhere->ca_pem, tls.ca_pem);
}

TEST_F(HostsDirectoriesTest, SkipVerifyIsLoggedOncePerHost) {
  Write("_default", "skip_verify = true\nheader = {x = 'geheim'}\nnew = 1");
  for (int i = 0; i < 3; ++i) {
    FirstUrl("a.example");
    FirstUrl("b.example");
    Write("_default", absl::StrCat("skip_verify = true\nheader = {x = 'geheim'}\nnew = 1\n#", i));
  }
  ASSERT_EQ(log_.size(), 4u);
  EXPECT_TRUE(absl::StartsWith(log_[0], "certificates of a.example are not verified: skip_verify in "));
  EXPECT_TRUE(absl::StrContains(log_[1], "unknown key"));
  EXPECT_TRUE(absl::StartsWith(log_[2], "certificates of b.example are not verified"));
}

// Wants a password of everybody, and finds out who was asked for whom.
class PerHost final : public CredentialsProvider {
 public:
  absl::StatusOr<std::optional<Credentials>> Lookup(absl::string_view host) const override {
    Credentials credentials;
    credentials.username = "user";
    credentials.password = absl::StrCat("of ", host);
    return std::optional<Credentials>(credentials);
  }
};

std::string Basic(const std::string& host) {
  return absl::StrCat("Basic ", absl::Base64Escape(absl::StrCat("user:of ", host)));
}

TEST_F(HostsDirectoriesTest, HeadersAndCredentialsStayWithTheirHost) {
  Write("reg.example", R"(
[host."https://mirror.example/v2/hub"]
  override_path = true
  skip_verify = true
  header = {x-secret = "mirror's", accept = "nothing"}
)");
  std::string bytes = internal::Pattern(100);
  auto script = [&](const Seen& seen) {
    if (absl::StrContains(seen.line, "cdn.example")) return internal::Status(404);
    if (seen.Header("Authorization").empty())
      return internal::Status(401, {{"www-authenticate", "Basic realm=\"x\""}});
    if (absl::StrContains(seen.line, "mirror.example"))
      return internal::Status(307, {{"location", "https://cdn.example/x"}});
    return internal::Serve(seen, bytes);
  };
  ClientOptions options = Options();
  options.credentials = std::make_shared<PerHost>();
  FakeClient client(script, options);
  auto sink = [](absl::Span<const uint8_t>) { return absl::OkStatus(); };
  absl::Status status =
      client->ReadBlob(internal::Repository(), internal::DescriptorOf(bytes), {0, 10}, sink, {});
  ASSERT_TRUE(status.ok()) << status;
  std::set<std::string> asked;
  for (const Seen& seen : client.network().log()) {
    bool mirror = absl::StrContains(seen.line, "//mirror.example");
    bool cdn = absl::StrContains(seen.line, "//cdn.example");
    asked.insert(seen.line.substr(0, seen.line.find("sha256")));
    EXPECT_EQ(seen.Header("x-secret"), mirror ? "mirror's" : "") << seen.line;
    EXPECT_EQ(seen.tls != nullptr && seen.tls->skip_verify, mirror) << seen.line;
    std::string authorization = seen.Header("Authorization");
    EXPECT_TRUE(!cdn || authorization.empty());
    if (!cdn && !authorization.empty()) {
      EXPECT_EQ(authorization, Basic(mirror ? "mirror.example" : "reg.example"));
    }
    EXPECT_EQ(absl::StrContains(seen.line, "?ns=reg.example"), mirror);
  }
  EXPECT_EQ(asked, (std::set<std::string>{"GET https://mirror.example:443/v2/hub/app/blobs/",
                                          "GET https://cdn.example:443/x",
                                          "GET https://reg.example:443/v2/app/blobs/"}));
}

TEST_F(HostsDirectoriesTest, CapabilitiesDecideWhoIsAskedWhat) {
  Write("reg.example", R"(
server = "https://reg.example"
capabilities = ["push"]
[host."https://pull.example"]
  capabilities = ["pull"]
[host."https://resolve.example"]
  capabilities = ["resolve"]
)");
  FakeClient client([](const Seen&) { return internal::Status(404); }, Options());
  oci::Reference tagged = internal::Repository();
  oci::Reference pinned = tagged;
  pinned.digest = base::Digest::Of("x");
  EXPECT_FALSE(client->GetManifest(tagged, {}).ok());
  EXPECT_FALSE(client->GetManifest(pinned, {}).ok());
  EXPECT_FALSE(client->HeadBlob(tagged, base::Digest::Of("x"), {}).ok());
  CallContext push;
  push.access = Access::kPush;
  EXPECT_FALSE(client->HeadBlob(tagged, base::Digest::Of("x"), push).ok());
  std::vector<std::string> hosts;
  for (const Seen& seen : client.network().log()) {
    size_t start = seen.line.find("//") + 2;
    hosts.push_back(seen.line.substr(start, seen.line.find(':', start) - start));
  }
  EXPECT_EQ(hosts,
            (std::vector<std::string>{"resolve.example", "pull.example", "pull.example", "reg.example"}));
  Write("reg.example", "server = 'https://reg.example'\ncapabilities = ['push']");
  absl::Status status = client->HeadBlob(tagged, base::Digest::Of("x"), {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(absl::StrContains(status.message(), "gives no host of reg.example the capability \"pull\""))
      << status;
}

TEST_F(HostsDirectoriesTest, DockerHubsServerHasDockerHubsCredentials) {
  Write("docker.io", "server = 'https://registry-1.docker.io'\n[host.'https://mirror.example']");
  FakeClient client(
      [](const Seen& seen) {
        return seen.Header("Authorization").empty()
                   ? internal::Status(401, {{"www-authenticate", "Basic realm=\"x\""}})
                   : internal::Status(404);
      },
      [&] {
        ClientOptions options = Options();
        options.credentials = std::make_shared<PerHost>();
        return options;
      }());
  EXPECT_FALSE(client->GetManifest(internal::Repository("docker.io", "library/a"), {}).ok());
  auto log = client.network().log();
  ASSERT_EQ(log.size(), 4u);
  EXPECT_EQ(log[1].Header("Authorization"), Basic("mirror.example"));
  EXPECT_EQ(log[3].line, "GET https://registry-1.docker.io:443/v2/library/a/manifests/1");
  EXPECT_EQ(log[3].Header("Authorization"), Basic("docker.io"));
}

TEST_F(HostsDirectoriesTest, TokenServersElsewhereSeeNoClientCertificate) {
  Write("reg.example", "skip_verify = true\nca = 'ca.pem'");
  Write("reg.example", "-----BEGIN CERTIFICATE-----", "ca.pem");
  FakeClient client(
      [](const Seen& seen) {
        if (absl::StrContains(seen.line, "//auth.example"))
          return internal::Status(200, {}, "{\"token\":\"t\"}");
        if (!seen.Header("Authorization").empty()) return internal::Status(404);
        return internal::Status(401, {{"www-authenticate", "Bearer realm=\"https://auth.example/t\""}});
      },
      Options());
  EXPECT_FALSE(client->GetManifest(internal::Repository(), {}).ok());
  auto log = client.network().log();
  ASSERT_EQ(log.size(), 3u);
  EXPECT_TRUE(log[0].tls->skip_verify);
  EXPECT_FALSE(log[1].tls->skip_verify);
  EXPECT_FALSE(log[1].tls->ca_pem.empty());
}

TEST(LocalHosts, SchemesAreContainerds) {
  auto schemes = [](const std::string& host, bool plain_http = false) {
    ClientOptions options;
    options.local_hosts_may_be_insecure = true;
    options.plain_http = plain_http;
    oci::Reference reference = internal::Repository(host);
    std::string text;
    auto endpoints = internal::EndpointsOf(reference, options);
    for (const internal::Endpoint& endpoint : *endpoints) {
      absl::StrAppend(&text, endpoint.base.scheme, endpoint.tls == nullptr ? " " : "* ");
    }
    return text;
  };
  EXPECT_EQ(schemes("localhost:5000"), "https* http ");
  EXPECT_EQ(schemes("127.9.0.1:5000"), "https* http ");
  EXPECT_EQ(schemes("[::1]:5000"), "https* http ");
  EXPECT_EQ(schemes("localhost"), "https* ");
  EXPECT_EQ(schemes("localhost:443"), "https* ");
  EXPECT_EQ(schemes("localhost:80"), "http ");
  EXPECT_EQ(schemes("localhost:5000", true), "http ");
  EXPECT_EQ(schemes("10.0.0.1:5000"), "https ");
  EXPECT_EQ(schemes("localhost.example:5000"), "https ");
}

TEST(LocalHosts, PlainHttpIsTriedOnlyWhereTlsIsNotSpoken) {
  absl::Status tls_answer = absl::FailedPreconditionError("TLS: wrong version number");
  auto script = [&](const Seen& seen) {
    internal::Reply reply = internal::Status(404);
    if (absl::StrContains(seen.line, "https://")) reply.before = tls_answer;
    return reply;
  };
  ClientOptions options;
  options.local_hosts_may_be_insecure = true;
  FakeClient plain(script, options);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(plain->GetManifest(internal::Repository("localhost:5000"), {}).status().code(),
              absl::StatusCode::kNotFound);
  }
  EXPECT_EQ(plain.network().Count("https://"), 1u) << "remembered";
  tls_answer = absl::UnavailableError("connection refused");
  FakeClient down(script, options);
  EXPECT_EQ(down->GetManifest(internal::Repository("localhost:5000"), {}).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(down.network().Count("http://"), 0u);
}

// The real client: a mirror that lacks a blob, and the host that has it.
TEST_F(HostsDirectoriesTest, MirrorAndServerOverHttp) {
  support::TestRegistry server;
  support::TestRegistry mirror;
  std::string first = internal::Pattern(5000);
  std::string second = internal::Pattern(7000);
  server.PutBlob("app", first);
  server.PutBlob("app", second);
  mirror.PutBlob("app", first);
  Write("reg.example", absl::StrCat("server = 'http://", server.host(), "'\n[host.'http://", mirror.host(),
                                    "']\nheader = {x-for = 'mirror'}"));
  Client client(Options());
  for (const std::string* blob : {&first, &second}) {
    auto read = client.GetSmallBlob(internal::Repository(), internal::DescriptorOf(*blob), 1 << 20, {});
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, *blob);
  }
  ASSERT_EQ(mirror.Log().size(), 2u);
  ASSERT_EQ(server.Log().size(), 1u);
  EXPECT_EQ(mirror.Log()[0].query, "ns=reg.example");
  auto sent = [](const support::LoggedRequest& request) {
    for (const auto& [name, value] : request.headers) {
      if (name == "x-for") return value;
    }
    return std::string();
  };
  EXPECT_EQ(sent(mirror.Log()[0]), "mirror");
  EXPECT_EQ(sent(server.Log()[0]), "");
}

TEST_F(HostsDirectoriesTest, AfterWrongBytesTheMirrorIsAskedLast) {
  support::TestRegistry server;
  support::TestRegistry mirror;
  const std::string blob = internal::Pattern(5000);
  server.PutBlob("app", blob);
  mirror.PutBlob("app", blob);
  mirror.AddFault({.path_contains = "/blobs/"}, {.flip_bit_of_byte = 17});
  Write("reg.example",
        absl::StrCat("server = 'http://", server.host(), "'\n[host.'http://", mirror.host(), "']"));
  Client client(Options());
  auto read = client.GetSmallBlob(internal::Repository(), internal::DescriptorOf(blob), 1 << 20, {});
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, blob);
  EXPECT_EQ(mirror.Log().size(), 1u);
  EXPECT_EQ(server.Log().size(), 1u);
}

}  // namespace
}  // namespace lazyblob::registry
