// The client against Debian's docker-registry, filled by skopeo: a registry and a pusher we did not write,
// judged from the registry's own log.

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "oci/manifest.h"
#include "registry/client.h"
#include "registry/hosts_toml.h"
#include "tests/registry/real_registry.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::registry {
namespace {

// "secret", as htpasswd -B writes it.
constexpr char kHtpasswd[] = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

class FixedCredentials final : public CredentialsProvider {
 public:
  explicit FixedCredentials(std::string password) : password_(std::move(password)) {}
  absl::StatusOr<std::optional<Credentials>> Lookup(absl::string_view) const override {
    return std::optional<Credentials>(Credentials{"user", password_, "", ""});
  }

 private:
  const std::string password_;
};

void MustRun(const std::string& command) { ASSERT_EQ(system(command.c_str()), 0) << command; }

class DockerRegistryTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* program : {"docker-registry", "skopeo", "openssl"}) {
      if (!RealRegistry::Installed(program))
        GTEST_SKIP() << program << " is not installed (see deploy/install-deps.sh)";
    }
    MakeLayout();
  }

  // An image of one gzip layer of 3 MB, in an image layout.
  void MakeLayout() {
    std::string dir = directory_.File("layout");
    MustRun(absl::StrCat(
        "mkdir -p ", dir, "/blobs/sha256 && cd ", dir,
        " && head -c 3000000 /dev/urandom > f && tar cf layer.tar f && gzip -1 -n < layer.tar > layer.gz"));
    layer_ = *base::ReadFile(dir + "/layer.gz", 10 << 20);
    std::string tar = *base::ReadFile(dir + "/layer.tar", 10 << 20);
    config_ = absl::StrCat(
        "{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"",
        base::Digest::Of(tar).ToString(), "\"]}}");
    manifest_ =
        absl::StrCat("{\"schemaVersion\":2,\"mediaType\":\"", oci::kMediaTypeOciManifest,
                     "\",\"config\":", Describe("application/vnd.oci.image.config.v1+json", config_),
                     ",\"layers\":[", Describe("application/vnd.oci.image.layer.v1.tar+gzip", layer_), "]}");
    for (const std::string* blob : {&layer_, &config_, &manifest_}) {
      ASSERT_TRUE(
          base::WriteFileAtomically(absl::StrCat(dir, "/blobs/sha256/", base::Digest::Of(*blob).hex()), *blob)
              .ok());
    }
    ASSERT_TRUE(base::WriteFileAtomically(dir + "/oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}").ok());
    ASSERT_TRUE(base::WriteFileAtomically(
                    dir + "/index.json", absl::StrCat("{\"schemaVersion\":2,\"manifests\":[",
                                                      Describe(oci::kMediaTypeOciManifest, manifest_,
                                                               ",\"annotations\":{\"org.opencontainers.image."
                                                               "ref.name\":\"1\"}"),
                                                      "]}"))
                    .ok());
  }

  static std::string Describe(absl::string_view type, const std::string& bytes, absl::string_view more = "") {
    return absl::StrCat("{\"mediaType\":\"", type, "\",\"size\":", bytes.size(), ",\"digest\":\"",
                        base::Digest::Of(bytes).ToString(), "\"", more, "}");
  }

  // Starts the registry and pushes the image as app:1.
  void Start(const std::string& http_more = "", const std::string& more = "",
             const std::string& skopeo_more = "") {
    ASSERT_TRUE(registry_.Start(http_more, more)) << registry_.Log();
    MustRun(absl::StrCat("skopeo --insecure-policy copy -q --preserve-digests --dest-tls-verify=false ",
                         skopeo_more, " oci:", directory_.File("layout"), ":1 docker://", registry_.host(),
                         "/app:1"));
    log_start_ = registry_.Log().size();
    options_.max_attempts = 2;
  }

  // Stops the registry and counts the lines of its log since the push that hold `part`.
  size_t Logged(absl::string_view part) {
    registry_.Stop();
    std::istringstream log(registry_.Log().substr(log_start_));
    size_t count = 0;
    for (std::string line; std::getline(log, line);) count += absl::StrContains(line, part) ? 1 : 0;
    return count;
  }
  // Connections that made requests, told apart by their remote ports.
  size_t Connections() {
    registry_.Stop();
    std::istringstream log(registry_.Log().substr(log_start_));
    std::set<std::string> peers;
    for (std::string line; std::getline(log, line);) {
      size_t at = line.find("http.request.remoteaddr=");
      if (at != std::string::npos) peers.insert(line.substr(at, line.find(' ', at) - at));
    }
    return peers.size();
  }

  oci::Reference Repository() const {
    oci::Reference reference;
    reference.host = registry_.host();
    reference.repository = "app";
    return reference;
  }
  oci::Descriptor Layer() const {
    oci::Descriptor descriptor;
    descriptor.digest = base::Digest::Of(layer_);
    descriptor.size = layer_.size();
    return descriptor;
  }
  absl::StatusOr<std::string> Read(Client& client, ByteRange range) const {
    std::string bytes;
    auto sink = [&](absl::Span<const uint8_t> data) {
      bytes.append(reinterpret_cast<const char*>(data.data()), data.size());
      return absl::OkStatus();
    };
    absl::Status status = client.ReadBlob(Repository(), Layer(), range, sink, {});
    if (!status.ok()) return status;
    return bytes;
  }

  support::TempDir directory_;
  std::string layer_;
  std::string config_;
  std::string manifest_;
  RealRegistry registry_;
  size_t log_start_ = 0;
  ClientOptions options_;
};

TEST_F(DockerRegistryTest, ManifestsBlobsRangesAndNoReferrersApi) {
  Start();
  options_.plain_http_hosts = {Repository().host};
  Client client(options_);
  oci::Reference reference = Repository();
  reference.tag = "1";
  absl::StatusOr<FetchedManifest> manifest = client.GetManifest(reference, {});
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->raw, manifest_);
  EXPECT_EQ(manifest->content_type, oci::kMediaTypeOciManifest);
  absl::StatusOr<oci::Descriptor> head = client.HeadManifest(reference, {});
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_EQ(head->digest, base::Digest::Of(manifest_));
  EXPECT_EQ(head->size, manifest_.size());
  EXPECT_EQ(head->media_type, oci::kMediaTypeOciManifest);
  reference.digest = base::Digest::Of(manifest_);
  EXPECT_TRUE(client.GetManifest(reference, {}).ok());
  EXPECT_EQ(*client.HeadBlob(reference, Layer().digest, {}), layer_.size());
  EXPECT_TRUE(*Read(client, {0, layer_.size()}) == layer_);
  EXPECT_TRUE(*Read(client, {layer_.size() - 1, 1}) == layer_.substr(layer_.size() - 1));
  oci::Descriptor config;
  config.digest = base::Digest::Of(config_);
  config.size = config_.size();
  EXPECT_EQ(*client.GetSmallBlob(reference, config, 1 << 20, {}), config_);
  absl::StatusOr<std::vector<oci::Descriptor>> referrers =
      client.Referrers(reference, *reference.digest, "", {});
  ASSERT_TRUE(referrers.ok()) << referrers.status();
  EXPECT_TRUE(referrers->empty());
  EXPECT_EQ(Connections(), 1u);
}

TEST_F(DockerRegistryTest, ErrorsAreWhatTheyShouldBe) {
  Start();
  options_.plain_http = true;
  Client client(options_);
  oci::Reference reference = Repository();
  reference.tag = "absent";
  absl::Status status = client.GetManifest(reference, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  EXPECT_NE(status.message().find("MANIFEST_UNKNOWN"), absl::string_view::npos) << status;
  oci::Descriptor absent = Layer();
  absent.digest = base::Digest::Of("absent");
  auto sink = [](absl::Span<const uint8_t>) { return absl::OkStatus(); };
  EXPECT_EQ(client.ReadBlob(reference, absent, {0, 10}, sink, {}).code(), absl::StatusCode::kNotFound);
  // A descriptor that promises more than there is.
  oci::Descriptor longer = Layer();
  longer.size += 1000;
  status = client.ReadBlob(reference, longer, {longer.size - 10, 10}, sink, {});
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
}

TEST_F(DockerRegistryTest, ManySmallReadsAreManyRequestsOnOneConnection) {
  Start();
  options_.plain_http = true;
  Client client(options_);
  for (uint64_t i = 0; i < 300; ++i) {
    absl::StatusOr<std::string> read = Read(client, {i * 9000, 512});
    ASSERT_TRUE(read.ok()) << read.status();
    ASSERT_TRUE(*read == layer_.substr(i * 9000, 512)) << i;
  }
  EXPECT_EQ(Connections(), 1u);
  EXPECT_EQ(Logged("\"GET /v2/app/blobs/"), 300u);
}

TEST_F(DockerRegistryTest, BasicAuthentication) {
  ASSERT_TRUE(base::WriteFileAtomically(directory_.File("htpasswd"), kHtpasswd).ok());
  Start("", absl::StrCat("auth: {htpasswd: {realm: r, path: ", directory_.File("htpasswd"), "}}\n"),
        "--dest-creds user:secret");
  options_.plain_http = true;
  Client anonymous(options_);
  EXPECT_EQ(Read(anonymous, {0, 10}).status().code(), absl::StatusCode::kUnauthenticated);
  options_.credentials = std::make_shared<FixedCredentials>("wrong");
  Client wrong(options_);
  absl::Status status = Read(wrong, {0, 10}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(status.message().find("wrong"), absl::string_view::npos);
  options_.credentials = std::make_shared<FixedCredentials>("secret");
  Client right(options_);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(Read(right, {0, 10}).ok());
  // One refusal of each client's first request, one of the wrong password, none afterwards.
  EXPECT_EQ(Logged("HTTP/1.1\" 401"), 4u);
}

TEST_F(DockerRegistryTest, TlsIsVerifiedAndSpeaksHttp2) {
  MustRun(absl::StrCat(
      "cd ", directory_.path(),
      " && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 ",
      "-subj /CN=test -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem 2>/dev/null"));
  Start(absl::StrCat("  tls: {certificate: ", directory_.File("cert.pem"),
                     ", key: ", directory_.File("key.pem"), "}\n"));
  Client distrusting(options_);
  absl::Status status = Read(distrusting, {0, 10}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_NE(status.message().find("TLS"), absl::string_view::npos) << status;
  options_.ca_file = directory_.File("cert.pem");
  Client trusting(options_);
  for (uint64_t i = 0; i < 20; ++i) {
    absl::StatusOr<std::string> read = Read(trusting, {i * 100'000, 50'000});
    ASSERT_TRUE(read.ok()) << read.status();
    ASSERT_TRUE(*read == layer_.substr(i * 100'000, 50'000));
  }
  oci::Reference elsewhere = Repository();
  elsewhere.host = absl::StrCat("localhost:", registry_.port());
  elsewhere.tag = "1";
  EXPECT_EQ(trusting.GetManifest(elsewhere, {}).status().code(), absl::StatusCode::kUnavailable)
      << "the name is not in it";
  EXPECT_EQ(Connections(), 1u);
  EXPECT_EQ(Logged("HTTP/2.0\" 206"), 20u);
}

// Everything a hosts.toml says of TLS: an authority of one's own, a certificate to show, and neither.
TEST_F(DockerRegistryTest, HostsTomlSaysWhomToTrustAndWhatToShow) {
  MustRun(absl::StrCat(
      "cd ", directory_.path(),
      " && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 ",
      "-subj /CN=test -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem 2>/dev/null"
      " && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 ",
      "-subj /CN=me -keyout me.key -out me.pem 2>/dev/null && mkdir -p certs && cp cert.pem certs/me.crt && "
      "cp me.pem certs/me.cert && cp me.key certs/"));
  Start(absl::StrCat("  tls: {certificate: ", directory_.File("cert.pem"), ", key: ",
                     directory_.File("key.pem"), ", clientcas: [", directory_.File("me.pem"), "]}\n"),
        "", absl::StrCat("--dest-cert-dir ", directory_.File("certs")));
  std::string dir = directory_.File(absl::StrCat("certs.d/127.0.0.1_", registry_.port(), "_"));
  ASSERT_TRUE(base::MakeDirectories(dir).ok());
  HostsDirectories directories(directory_.File("certs.d"), nullptr);
  options_.host_config = [&](const std::string& host) { return directories.Find(host); };
  Client client(options_);
  auto read = [&](const std::string& toml) {
    EXPECT_TRUE(base::WriteFileAtomically(dir + "/hosts.toml", toml).ok());
    absl::StatusOr<std::string> bytes = Read(client, {5, 50});
    return bytes.ok() ? std::string(*bytes == layer_.substr(5, 50) ? "right" : "wrong")
                      : std::string(bytes.status().message());
  };
  std::string ca = absl::StrCat("ca = '", directory_.File("cert.pem"), "'\n");
  std::string me =
      absl::StrCat("client = [['", directory_.File("me.pem"), "', '", directory_.File("me.key"), "']]\n");
  EXPECT_TRUE(absl::StrContains(read(me), "TLS: ")) << "nobody vouches for the server";
  EXPECT_EQ(read(ca + me), "right");
  EXPECT_NE(read(ca), "right") << "the connection made with a certificate is not used without";
  EXPECT_EQ(read("skip_verify = true\n" + me), "right");
  EXPECT_TRUE(absl::StrContains(read(me), "TLS: ")) << "nor the unverified one";
  std::string url = absl::StrCat("https://127.0.0.1:", registry_.port());
  EXPECT_EQ(read(absl::StrCat("server = 'https://127.0.0.1:1'\n[host.'", url, "']\n", ca, me)), "right");
  MustRun(absl::StrCat("cat ", directory_.File("me.pem"), " ", directory_.File("me.key"), " > ", dir,
                       "/both.pem"));
  EXPECT_EQ(read(ca + "client = 'both.pem'"), "right");
}

TEST_F(DockerRegistryTest, LocalHostsAreAskedInTheirOwnScheme) {
  Start();
  options_.local_hosts_may_be_insecure = true;
  Client client(options_);
  for (int i = 0; i < 3; ++i) {
    absl::StatusOr<std::string> read = Read(client, {5, 50});
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(*read == layer_.substr(5, 50));
  }
}

}  // namespace
}  // namespace lazyblob::registry
