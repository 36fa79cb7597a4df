#include <gtest/gtest.h>
#include <sys/stat.h>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "daemon/credential_chain.h"
#include "daemon/cri_credentials.h"
#include "daemon/living_requesters.h"
#include "daemon/registry_access.h"
#include "registry/client.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::daemon {
namespace {

using registry::Credentials;

std::string Show(const absl::StatusOr<std::optional<Credentials>>& found) {
  if (!found.ok()) return absl::StrCat("error: ", found.status().message());
  if (!found->has_value()) return "none";
  const Credentials& known = **found;
  if (!known.registry_token.empty()) return "bearer " + known.registry_token;
  if (!known.identity_token.empty()) return "identity " + known.identity_token;
  return absl::StrCat(known.username, ":", known.password);
}

CriAuth User(const std::string& name) { return {name, "pw", "", "", "", ""}; }

TEST(CriCredentials, EveryFormOfAuthConfig) {
  struct Case {
    CriAuth auth;
    std::string expected;
  };
  for (const Case& c : std::vector<Case>{
           {{"u", "p", "", "", "", ""}, "u:p"},
           {{"", "", absl::Base64Escape("u:p:q"), "", "", ""}, "u:p:q"},
           {{"", "", absl::Base64Escape(absl::string_view("u:p\0\0", 5)), "", "", ""}, "u:p"},
           {{"", "", "", "", "tok", ""}, "identity tok"},
           {{"", "", "", "", "", "tok"}, "bearer tok"},
           {{"u", "p", "not base64", "", "", ""}, "u:p"},
           {{"u", "p", "", "reg.example", "", ""}, "u:p"},
           {{"u", "p", "", "https://reg.example/v2/", "", ""}, "u:p"},
           {{"u", "p", "", "https://other.example", "", ""}, "none"},
           {{"", "", "%%%", "", "", ""}, "none"},
           {{"", "", "", "", "", ""}, "none"},
       }) {
    CriCredentials credentials;
    credentials.Remember("reg.example/team/app:1", c.auth);
    EXPECT_EQ(Show(credentials.LookupFor("reg.example", "team/app")), c.expected);
    EXPECT_EQ(Show(credentials.LookupFor("reg.example", "team/other")), "none");
    EXPECT_EQ(Show(credentials.LookupFor("reg.example:5000", "team/app")), "none");
  }
}

TEST(CriCredentials, DockerHubHasManyNames) {
  CriCredentials credentials;
  credentials.Remember("nginx", {"u", "p", "", "https://index.docker.io/v1/", "", ""});
  EXPECT_EQ(Show(credentials.LookupFor("docker.io", "library/nginx")), "u:p");
  EXPECT_EQ(Show(credentials.Lookup("docker.io")), "u:p");
  EXPECT_EQ(credentials.Remember("not//a reference", User("u")), 0u);
}

TEST(CriCredentials, TheLatestPullCountsUnlessItFails) {
  CriCredentials credentials;
  credentials.Remember("reg.example/app", User("first"));
  uint64_t second = credentials.Remember("reg.example/app:2", User("second"));
  EXPECT_EQ(Show(credentials.LookupFor("reg.example", "app")), "second:pw");
  credentials.Undo(second);
  EXPECT_EQ(Show(credentials.LookupFor("reg.example", "app")), "first:pw");
  uint64_t same = credentials.Remember("reg.example/app", User("first"));
  credentials.Undo(same);
  EXPECT_EQ(Show(credentials.LookupFor("reg.example", "app")), "first:pw") << "a pull before had these";
  uint64_t anonymous = credentials.Remember("reg.example/app", CriAuth());
  EXPECT_EQ(Show(credentials.LookupFor("reg.example", "app")), "none");
  credentials.Undo(anonymous);
  credentials.Undo(credentials.Remember("reg.example/new", User("wrong")));
  EXPECT_EQ(Show(credentials.LookupFor("reg.example", "new")), "none");
  EXPECT_EQ(Show(credentials.Lookup("reg.example")), "first:pw");
}

TEST(CriCredentials, AreBoundedAndTheUsedStay) {
  CriCredentials credentials;
  credentials.Remember("reg.example/used", User("used"));
  credentials.Remember("reg.example/unused", User("unused"));
  for (size_t i = 0; i < CriCredentials::kMaxRepositories - 1; ++i) {
    credentials.Remember(absl::StrCat("reg.example/r", i), User("u"));
    EXPECT_EQ(Show(credentials.LookupFor("reg.example", "used")), "used:pw");
  }
  EXPECT_EQ(Show(credentials.LookupFor("reg.example", "unused")), "none");
  for (int i = 0; i < 100; ++i) credentials.Remember("reg.example/used", User(absl::StrCat("u", i)));
  EXPECT_EQ(Show(credentials.LookupFor("reg.example", "used")), "u99:pw");
}

class Fixed final : public registry::CredentialsProvider {
 public:
  explicit Fixed(absl::StatusOr<std::optional<Credentials>> answer) : answer_(std::move(answer)) {}
  absl::StatusOr<std::optional<Credentials>> Lookup(absl::string_view) const override { return answer_; }

 private:
  absl::StatusOr<std::optional<Credentials>> answer_;
};

TEST(CredentialChain, TheFirstThatHasAnyWinsAndErrorsHideNothing) {
  auto failing = std::make_shared<Fixed>(absl::UnavailableError("helper failed"));
  auto none = std::make_shared<Fixed>(std::optional<Credentials>());
  auto a = std::make_shared<Fixed>(std::optional<Credentials>(Credentials{"a", "", "", ""}));
  auto b = std::make_shared<Fixed>(std::optional<Credentials>(Credentials{"b", "", "", ""}));
  EXPECT_EQ(Show(CredentialChain({failing, none, a, b}).Lookup("h")), "a:");
  EXPECT_EQ(Show(CredentialChain({failing, none}).LookupFor("h", "r")), "error: helper failed");
  EXPECT_EQ(Show(CredentialChain({none}).Lookup("h")), "none");
  EXPECT_EQ(Show(CredentialChain({}).Lookup("h")), "none");
}

TEST(CredentialChain, TheDaemonsOrder) {
  support::TempDir dir;
  auto config_of = [](const std::string& user) {
    return absl::StrCat("{\"auths\":{\"reg.example\":{\"auth\":\"", absl::Base64Escape(user + ":p"), "\"}}}");
  };
  Config::Credentials config;
  config.docker_config = dir.File("docker.json");
  config.kubernetes_secrets = dir.File("secret.json");
  auto requesters = std::make_shared<LivingRequesters>();
  auto cri = std::make_shared<CriCredentials>();
  std::vector<std::string> log;
  auto chain =
      MakeCredentialChain(config, requesters, cri, [&](absl::string_view line) { log.emplace_back(line); });
  auto ask = [&] { return Show(chain->LookupFor("reg.example", "team/app")); };
  EXPECT_EQ(ask(), "none");
  ASSERT_TRUE(base::WriteFileAtomically(config.docker_config, config_of("docker")).ok());
  EXPECT_EQ(ask(), "docker:p");
  ASSERT_TRUE(base::WriteFileAtomically(config.kubernetes_secrets, config_of("kube"), 0644).ok());
  EXPECT_EQ(ask(), "docker:p");
  ASSERT_EQ(log.size(), 1u);
  EXPECT_TRUE(absl::StrContains(log[0], "has mode 0644; refused")) << log[0];
  ASSERT_EQ(chmod(config.kubernetes_secrets.c_str(), 0600), 0);
  EXPECT_EQ(ask(), "kube:p");
  cri->Remember("reg.example/team/app", User("cri"));
  EXPECT_EQ(ask(), "cri:pw");
  uint64_t number =
      requesters->Add(std::make_shared<Fixed>(std::optional<Credentials>(Credentials{"living", "", "", ""})));
  EXPECT_EQ(ask(), "living:");
  requesters->Remove(number);
  EXPECT_EQ(ask(), "cri:pw");
  config.docker_config.clear();
  config.kubernetes_secrets.clear();
  EXPECT_EQ(Show(MakeCredentialChain(config, nullptr, nullptr, nullptr)->Lookup("reg.example")), "none");
}

TEST(RegistryAccess, AClientFollowsTheConfiguration) {
  support::TestRegistryOptions options;
  options.auth.kind = support::AuthOptions::Kind::kBearer;
  options.auth.username = "user";
  options.auth.password = "geheim";
  support::TestRegistry server(options);
  server.PutBlob("app", "the blob");
  support::TempDir dir;
  ASSERT_TRUE(base::MakeDirectories(dir.File("certs.d/reg.example")).ok());
  ASSERT_TRUE(base::WriteFileAtomically(dir.File("certs.d/reg.example/hosts.toml"),
                                        absl::StrCat("[host.'http://", server.host(), "']\nnew = 1"))
                  .ok());
  ASSERT_TRUE(
      base::WriteFileAtomically(
          dir.File("docker.json"),
          absl::StrCat("{\"auths\":{\"", server.host(), "\":{\"auth\":\"", absl::Base64Escape("user:geheim"),
                       "\"},\"reg.example\":{\"auth\":\"", absl::Base64Escape("other:geheim"), "\"}}}"))
          .ok());
  Config config;
  config.registry.config_path = dir.File("certs.d");
  config.credentials.docker_config = dir.File("docker.json");
  std::vector<std::string> log;
  RegistryAccess access(config, [&](absl::string_view line) { log.emplace_back(line); });
  EXPECT_EQ(access.cri(), nullptr);
  registry::Client client(access.Options());
  oci::Reference reference;
  reference.host = "reg.example";
  reference.repository = "app";
  absl::StatusOr<uint64_t> size = client.HeadBlob(reference, base::Digest::Of("the blob"), {});
  ASSERT_TRUE(size.ok()) << size.status();
  EXPECT_EQ(*size, 8u);
  ASSERT_EQ(log.size(), 1u);
  EXPECT_TRUE(absl::StrContains(log[0], "hosts.toml:2: unknown key \"new\" is ignored")) << log[0];
  config.credentials.cri = true;
  EXPECT_NE(RegistryAccess(config, nullptr).cri(), nullptr);
}

}  // namespace
}  // namespace lazyblob::daemon
