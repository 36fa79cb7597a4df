#include "registry/internal/url.h"

#include <gtest/gtest.h>

#include "registry/internal/endpoint.h"
#include "tests/registry/fake_transport.h"

namespace lazyblob::registry::internal {
namespace {

Url Must(absl::string_view text) {
  absl::StatusOr<Url> url = Url::Parse(text);
  EXPECT_TRUE(url.ok()) << url.status();
  return url.value_or(Url());
}

TEST(UrlTest, Parts) {
  Url url = Must("HTTPS://Reg.Example/v2/a?x=1&y=2#z");
  EXPECT_EQ(url.Origin(), "https://reg.example:443");
  EXPECT_EQ(url.path_and_query, "/v2/a?x=1&y=2");
  EXPECT_EQ(url.HostForMessages(), "reg.example");
  EXPECT_EQ(Must("http://[::1]:5000").ToString(), "http://[::1]:5000/");
  EXPECT_EQ(Must("http://h:5000/").HostForMessages(), "h:5000");
}

TEST(UrlTest, Refuses) {
  for (const char* bad :
       {"", "h", "ftp://h/", "file:///etc/passwd", "https://u:p@h/", "https://u@h/", "https://h:0/",
        "https://h:99999/", "https://h\x01/", "https://h%00/", "https://h ost/"}) {
    EXPECT_FALSE(Url::Parse(bad).ok()) << bad;
  }
  EXPECT_FALSE(Url::Parse("https://h/" + std::string(20000, 'a')).ok());
}

TEST(UrlTest, ErrorsRepeatNeitherQueryNorUser) {
  EXPECT_EQ(Url::Parse("ftp://h/p?sig=SECRET").status().message().find("SECRET"), absl::string_view::npos);
  EXPECT_EQ(Url::Parse("https://u:SECRET@h/").status().message().find("SECRET"), absl::string_view::npos);
}

TEST(UrlTest, Resolves) {
  Url base = Must("https://h/v2/a/b?q=1");
  EXPECT_EQ(base.Resolve("/x?y=1")->ToString(), "https://h:443/x?y=1");
  EXPECT_EQ(base.Resolve("c")->ToString(), "https://h:443/v2/a/c");
  EXPECT_EQ(base.Resolve("//other:1/z")->ToString(), "https://other:1/z");
  EXPECT_EQ(base.Resolve("http://other/z")->ToString(), "http://other:80/z");
  EXPECT_FALSE(base.Resolve("").ok());
  EXPECT_FALSE(base.Resolve("gopher://x/").ok());
  EXPECT_FALSE(base.Resolve("https://u:p@x/").ok());
}

TEST(HostClassTest, Literals) {
  struct Case {
    const char* host;
    HostClass expected;
  };
  for (const Case& c : std::initializer_list<Case>{{"reg.example", HostClass::kPublic},
                                                   {"8.8.8.8", HostClass::kPublic},
                                                   {"172.15.0.1", HostClass::kPublic},
                                                   {"172.32.0.1", HostClass::kPublic},
                                                   {"[2001:db8::1]", HostClass::kPublic},
                                                   {"127.0.0.1", HostClass::kLoopback},
                                                   {"127.9.9.9", HostClass::kLoopback},
                                                   {"0.0.0.0", HostClass::kLoopback},
                                                   {"localhost", HostClass::kLoopback},
                                                   {"a.LocalHost.", HostClass::kLoopback},
                                                   {"[::1]", HostClass::kLoopback},
                                                   {"[::]", HostClass::kLoopback},
                                                   {"[::ffff:127.0.0.1]", HostClass::kLoopback},
                                                   {"10.0.0.1", HostClass::kPrivate},
                                                   {"172.16.0.1", HostClass::kPrivate},
                                                   {"192.168.1.1", HostClass::kPrivate},
                                                   {"100.64.0.1", HostClass::kPrivate},
                                                   {"[fd00::1]", HostClass::kPrivate},
                                                   {"169.254.169.254", HostClass::kLinkLocal},
                                                   {"[fe80::1%eth0]", HostClass::kLinkLocal},
                                                   {"[::ffff:169.254.169.254]", HostClass::kLinkLocal},
                                                   {"224.0.0.1", HostClass::kLinkLocal},
                                                   {"[64:ff9b::a9fe:a9fe]", HostClass::kLinkLocal},
                                                   {"[ff02::1]", HostClass::kLinkLocal}}) {
    EXPECT_EQ(ClassifyHost(c.host), c.expected) << c.host;
  }
  // Odd spellings of addresses are normalised by the parser before they are judged.
  EXPECT_EQ(ClassifyHost(Must("http://0x7f000001/").host), HostClass::kLoopback);
  EXPECT_EQ(ClassifyHost(Must("http://2852039166/").host), HostClass::kLinkLocal);
}

TEST(TargetPolicy, DowngradeAndLocalTargets) {
  Url registry = Must("https://reg.example/");
  EXPECT_TRUE(CheckTarget(registry, Must("https://cdn.example/x"), false).ok());
  EXPECT_FALSE(CheckTarget(registry, Must("http://cdn.example/x"), false).ok());
  EXPECT_FALSE(CheckTarget(registry, Must("http://cdn.example/x"), true).ok());
  for (const char* target :
       {"https://127.0.0.1/", "https://169.254.169.254/latest", "https://10.1.2.3/", "https://localhost/"}) {
    EXPECT_EQ(CheckTarget(registry, Must(target), false).code(), absl::StatusCode::kPermissionDenied)
        << target;
    EXPECT_TRUE(CheckTarget(registry, Must(target), true).ok()) << target;
  }
  Url local = Must("http://127.0.0.1:5000/");
  EXPECT_TRUE(CheckTarget(local, Must("http://127.0.0.2:6000/"), false).ok());
  EXPECT_TRUE(CheckTarget(local, Must("http://10.0.0.1/"), false).ok());
  EXPECT_FALSE(CheckTarget(local, Must("http://169.254.169.254/"), false).ok());
  EXPECT_FALSE(CheckTarget(Must("http://10.0.0.1/"), Must("http://127.0.0.1/"), false).ok());
  EXPECT_FALSE(MayConnectLocally(registry, Must("https://cdn.example/"), false));
  EXPECT_TRUE(MayConnectLocally(registry, registry, false));
  EXPECT_TRUE(MayConnectLocally(local, Must("https://cdn.example/"), false));
}

TEST(Endpoints, DockerHubPlainHttpAndMirrors) {
  oci::Reference hub;
  hub.host = "docker.io";
  hub.repository = "library/debian";
  ClientOptions options;
  options.host_config = Mirrors({"http://mirror.example:8080"});
  auto endpoints = EndpointsOf(hub, options);
  ASSERT_TRUE(endpoints.ok()) << endpoints.status();
  ASSERT_EQ(endpoints->size(), 2u);
  EXPECT_EQ((*endpoints)[0].ApiUrl("library/debian", "/manifests/12")->ToString(),
            "http://mirror.example:8080/v2/library/debian/manifests/12?ns=docker.io");
  EXPECT_EQ((*endpoints)[1].ApiUrl("library/debian", "/manifests/12")->ToString(),
            "https://registry-1.docker.io:443/v2/library/debian/manifests/12");
  EXPECT_EQ((*endpoints)[1].credential_host, "docker.io");
}

TEST(Endpoints, PlainHttpIsExplicit) {
  oci::Reference reference;
  reference.repository = "a";
  ClientOptions options;
  auto scheme = [&](const std::string& host) {
    reference.host = host;
    auto endpoints = EndpointsOf(reference, options);
    return endpoints.ok() ? endpoints->back().base.scheme : endpoints.status().ToString();
  };
  EXPECT_EQ(scheme("localhost:5000"), "https");
  EXPECT_EQ(scheme("127.0.0.1:5000"), "https");
  options.plain_http_hosts = {"localhost:5000", "[::1]"};
  EXPECT_EQ(scheme("localhost:5000"), "http");
  EXPECT_EQ(scheme("localhost:5001"), "https");
  EXPECT_EQ(scheme("[::1]:7"), "http");
  options.plain_http = true;
  EXPECT_EQ(scheme("reg.example"), "http");
}

TEST(Endpoints, NothingLeadsOutOfTheApi) {
  oci::Reference reference;
  reference.repository = "a";
  for (const char* host : {"evil/x", "u@h", "h?x", "h#x", "", "h:99999"}) {
    reference.host = host;
    EXPECT_FALSE(EndpointsOf(reference, {}).ok()) << host;
  }
  reference.host = "h";
  auto endpoints = EndpointsOf(reference, {});
  ASSERT_TRUE(endpoints.ok());
  EXPECT_FALSE(endpoints->back().ApiUrl("../../admin", "/x").ok());
  EXPECT_EQ(endpoints->back().ApiUrl("a?b#c", "/x")->path_and_query, "/v2/a%3Fb%23c/x");
}

TEST(PercentEncodeTest, KeepsUnreservedOnly) {
  EXPECT_EQ(PercentEncode("aZ0-._~/: \n\xff"), "aZ0-._~%2F%3A%20%0A%FF");
  EXPECT_EQ(PercentEncode("a/b:c", "/:"), "a/b:c");
}

}  // namespace
}  // namespace lazyblob::registry::internal
