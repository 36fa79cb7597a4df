// A layer's bytes from an https URL, with other people's habits in front of it.

#include <gtest/gtest.h>
#include <signal.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "contentstore/blob_source.h"
#include "tests/support/layer_maker.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"
#include "tests/support/tls_front.h"

namespace lazyblob::contentstore {
namespace {

constexpr char kRepository[] = "test/image";

class KnowsAll final : public registry::CredentialsProvider {
 public:
  absl::StatusOr<std::optional<registry::Credentials>> Lookup(absl::string_view) const override {
    registry::Credentials credentials;
    credentials.username = "me";
    credentials.password = "secret";
    return credentials;
  }
};

class UrlSourceTest : public ::testing::Test {
 protected:
  UrlSourceTest() {
    signal(SIGPIPE, SIG_IGN);
    blob_.digest = server_.PutBlob(kRepository, bytes_);
    blob_.size = bytes_.size();
    blob_.media_type = "application/vnd.oci.image.layer.v1.tar";
    options_.ca_file = front_.ca_file();
    options_.credentials = std::make_shared<KnowsAll>();
    options_.first_backoff = absl::Milliseconds(1);
    options_.plain_http = true;  // of registries; URLs say for themselves
  }

  std::string Path() const { return absl::StrCat("/v2/", kRepository, "/blobs/", blob_.digest.ToString()); }
  std::string Url() const { return absl::StrCat("https://", front_.host(), Path()); }

  absl::StatusOr<std::string> Read(const std::string& url, registry::ByteRange range) {
    registry::Client client(options_);
    std::string got;
    registry::CallContext context;
    context.credentials = options_.credentials;
    const absl::Status status = MakeUrlSource(&client, url)
                                    ->Read(
                                        blob_, range,
                                        [&](absl::Span<const uint8_t> data) {
                                          got.append(reinterpret_cast<const char*>(data.data()), data.size());
                                          return absl::OkStatus();
                                        },
                                        context);
    if (!status.ok()) return status;
    return got;
  }
  void ExpectNoCredentialsWereSent() {
    for (const support::LoggedRequest& request : server_.Log()) {
      EXPECT_EQ(request.authorization, "") << request.path;
      for (const auto& [name, value] : request.headers) {
        EXPECT_FALSE(absl::StrContains(value, "secret")) << name;
      }
    }
  }

  const std::string bytes_ = support::RandomBytes(300'000, 1);
  support::TempDir directory_;
  support::TestRegistry server_;
  support::TlsFront front_{server_.port(), directory_.path()};
  oci::Descriptor blob_;
  registry::ClientOptions options_;
};

TEST_F(UrlSourceTest, IsNamedAfterItsUrl) {
  registry::Client client(options_);
  EXPECT_EQ(MakeUrlSource(&client, "https://cdn.example/layer")->name(), "url:https://cdn.example/layer");
  EXPECT_FALSE(MakeUrlSource(&client, "https://cdn.example/layer")->local());
}

TEST_F(UrlSourceTest, ReadsExactlyTheRange) {
  const absl::StatusOr<std::string> part = Read(Url(), {1000, 5000});
  ASSERT_TRUE(part.ok()) << part.status();
  EXPECT_EQ(*part, bytes_.substr(1000, 5000));
  ASSERT_EQ(server_.Log().size(), 1u);
  EXPECT_EQ(server_.Log()[0].range, "bytes=1000-5999");
  EXPECT_EQ(server_.Log()[0].path, Path());
  EXPECT_EQ(server_.Log()[0].query, "");
  const absl::StatusOr<std::string> whole = Read(Url(), {0, bytes_.size()});
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_TRUE(*whole == bytes_);
}

TEST_F(UrlSourceTest, NeverSendsCredentialsWhoeverAsksForThem) {
  ASSERT_TRUE(Read(Url(), {0, 100}).ok());
  for (auto kind : {support::AuthOptions::Kind::kBasic, support::AuthOptions::Kind::kBearer}) {
    support::AuthOptions auth;
    auth.kind = kind;
    auth.username = "me";
    auth.password = "secret";
    server_.SetAuth(auth);
    server_.ClearLog();
    const absl::Status status = Read(Url(), {0, 100}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), "without credentials")) << status;
    EXPECT_EQ(server_.Log().size(), 1u);
    EXPECT_EQ(server_.token_requests(), 0u);
    ExpectNoCredentialsWereSent();
  }
}

TEST_F(UrlSourceTest, OnlySpeaksTls) {
  for (const std::string& url : {absl::StrCat("http://", server_.host(), Path()),
                                 absl::StrCat("https://me:secret@", front_.host(), Path()),
                                 std::string("ftp://127.0.0.1/x"), std::string("no url")}) {
    const absl::Status status = Read(url, {0, 100}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_FALSE(absl::StrContains(status.message(), "secret")) << status;
  }
  // A host that speaks no TLS is not asked without.
  EXPECT_EQ(Read(absl::StrCat("https://", server_.host(), Path()), {0, 100}).status().code(),
            absl::StatusCode::kUnavailable);
  options_.ca_file.clear();
  options_.local_hosts_may_be_insecure = true;
  EXPECT_EQ(Read(Url(), {0, 100}).status().code(), absl::StatusCode::kUnavailable) << "nobody vouches for it";
  EXPECT_EQ(server_.Count({.method = "GET"}), 0u);
}

TEST_F(UrlSourceTest, IsNotLedAwayFromTls) {
  server_.SetCdn({.enabled = true});  // which is plain http
  const absl::Status status = Read(Url(), {0, 100}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "https to http")) << status;
  for (const support::LoggedRequest& request : server_.Log()) EXPECT_FALSE(request.cdn);
}

TEST_F(UrlSourceTest, IsNotLedToTheLink) {
  server_.AddFault({}, {.status = 307, .headers = {{"Location", "https://169.254.169.254/latest"}}});
  const absl::Status status = Read(Url(), {0, 100}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "link-local")) << status;
}

TEST_F(UrlSourceTest, RefusesAnAnswerToAnotherQuestion) {
  server_.AddFault({}, {.shift_range = 10});
  EXPECT_EQ(Read(Url(), {1000, 5000}).status().code(), absl::StatusCode::kDataLoss);
  server_.ClearFaults();
  server_.AddFault({}, {.ignore_range = true});
  const absl::StatusOr<std::string> cut = Read(Url(), {1000, 5000});
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(*cut, bytes_.substr(1000, 5000));
}

TEST_F(UrlSourceTest, GoesOnAfterABrokenConnection) {
  server_.AddFault({.count = 1}, {.truncate_at = 100'000});
  const absl::StatusOr<std::string> whole = Read(Url(), {0, bytes_.size()});
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_TRUE(*whole == bytes_);
  EXPECT_EQ(server_.Log().size(), 2u);
}

TEST_F(UrlSourceTest, ErrorsNameTheUrlWithoutItsQuery) {
  const absl::Status status =
      Read(absl::StrCat("https://", front_.host(), "/nowhere?sig=abc"), {0, 100}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), absl::StrCat("https://", front_.host(), "/nowhere")))
      << status;
  EXPECT_FALSE(absl::StrContains(status.message(), "abc")) << status;
}

}  // namespace
}  // namespace lazyblob::contentstore
