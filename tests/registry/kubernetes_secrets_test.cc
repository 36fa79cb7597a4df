#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "registry/credentials.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::registry {
namespace {

std::string Entry(const std::string& key, const std::string& user) {
  return absl::StrCat("\"", key, "\":{\"auth\":\"", absl::Base64Escape(user + ":geheim"), "\"}");
}
std::string Config(const std::string& entries) { return absl::StrCat("{\"auths\":{", entries, "}}"); }
std::string Secret(const std::string& config, const std::string& name = ".dockerconfigjson") {
  std::string type = name == ".dockercfg" ? "kubernetes.io/dockercfg" : "kubernetes.io/dockerconfigjson";
  return absl::StrCat("{\"apiVersion\":\"v1\",\"kind\":\"Secret\",\"type\":\"", type, "\",\"data\":{\"", name,
                      "\":\"", absl::Base64Escape(config), "\"}}");
}

class KubernetesSecretsTest : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text, uint32_t mode = 0600) {
    ASSERT_TRUE(base::MakeDirectories(directory_.File("s")).ok());
    ASSERT_TRUE(base::WriteFileAtomically(directory_.File("s/" + name), text, mode).ok());
  }
  std::string User(const std::string& host, const std::string& repository = "") {
    auto found = provider_->LookupFor(host, repository);
    if (!found.ok()) return absl::StrCat("error: ", found.status().message());
    return found->has_value() ? (*found)->username : "none";
  }

  support::TempDir directory_;
  std::vector<std::string> log_;
  std::shared_ptr<const CredentialsProvider> provider_ = KubernetesSecretCredentials(
      directory_.File("s"), [this](absl::string_view line) { log_.emplace_back(line); });
};

TEST_F(KubernetesSecretsTest, EveryFormOfAFile) {
  EXPECT_EQ(User("reg.example"), "none");
  Write("plain", Config(Entry("plain.example", "plain")));
  Write("secret", Secret(Config(Entry("secret.example", "secret"))));
  Write("legacy", Secret(absl::StrCat("{", Entry("legacy.example", "legacy"), "}"), ".dockercfg"));
  Write("list", absl::StrCat("{\"kind\":\"List\",\"items\":[{\"type\":\"Opaque\",\"data\":{}},",
                             Secret(Config(Entry("list.example", "list"))), "]}"));
  Write("text",
        "{\"kind\":\"Secret\",\"stringData\":{\".dockerconfigjson\":\"{\\\"auths\\\":{\\\"text.example\\\":"
        "{\\\"username\\\":\\\"text\\\",\\\"password\\\":\\\"p\\\"}}}\"}}");
  for (const char* name : {"plain", "secret", "legacy", "list", "text"}) {
    EXPECT_EQ(User(absl::StrCat(name, ".example"), "a"), name);
  }
  EXPECT_EQ(User("other.example"), "none");
  EXPECT_TRUE(log_.empty()) << log_[0];
}

TEST_F(KubernetesSecretsTest, KeysMatchAsKubeletMatchesThem) {
  Write("a", Config(absl::StrCat(
                 Entry("reg.example", "host"), ",", Entry("https://reg.example:5000/v2/", "port"), ",",
                 Entry("*.cloud.example", "glob"), ",", Entry("one.cloud.example", "exact"), ",",
                 Entry("ghcr.io/team", "team"), ",", Entry("ghcr.io/team/sub", "sub"), ",",
                 Entry("https://index.docker.io/v1/", "hub"), ",", Entry("docker.io/me", "hub me"))));
  EXPECT_EQ(User("reg.example", "a/b"), "host");
  EXPECT_EQ(User("REG.example", "a/b"), "host");
  EXPECT_EQ(User("reg.example:5000", "a"), "port");
  EXPECT_EQ(User("reg.example:5001", "a"), "none");
  EXPECT_EQ(User("two.cloud.example", "a"), "glob");
  EXPECT_EQ(User("one.cloud.example", "a"), "exact");
  EXPECT_EQ(User("a.b.cloud.example", "a"), "none") << "a star is one label";
  EXPECT_EQ(User("cloud.example", "a"), "none");
  EXPECT_EQ(User("ghcr.io", "team/app"), "team");
  EXPECT_EQ(User("ghcr.io", "team/sub/app"), "sub");
  EXPECT_EQ(User("ghcr.io", "teammate/app"), "none");
  EXPECT_EQ(User("ghcr.io", "other"), "none");
  EXPECT_EQ(User("ghcr.io"), "none");
  EXPECT_EQ(User("docker.io", "library/debian"), "hub");
  EXPECT_EQ(User("docker.io", "me/app"), "hub me");
}

TEST_F(KubernetesSecretsTest, FilesOthersCouldReadAreRefusedAndHideNoOthers) {
  Write("a", Config(Entry("a.example", "a")), 0640);
  Write("b", Config(Entry("b.example", "b")));
  EXPECT_EQ(User("b.example"), "b");
  EXPECT_EQ(User("a.example"),
            absl::StrCat("error: ", directory_.File("s/a"),
                         " has mode 0640; refused: others may read or write it (chmod 600)"));
  ASSERT_EQ(log_.size(), 1u) << "once";
  ASSERT_EQ(chmod(directory_.File("s/a").c_str(), 0400), 0);
  EXPECT_EQ(User("a.example"), "a");
  if (geteuid() == 0) {
    ASSERT_EQ(chown(directory_.File("s/a").c_str(), 12345, 0), 0);
    EXPECT_TRUE(absl::StrContains(User("a.example"), "belongs to user 12345; refused"));
  }
}

TEST_F(KubernetesSecretsTest, ChangesAreSeenAndRemovalToo) {
  Write("a", Config(Entry("a.example", "one")));
  EXPECT_EQ(User("a.example"), "one");
  Write("a", Config(Entry("a.example", "two")));
  EXPECT_EQ(User("a.example"), "two");
  ASSERT_EQ(unlink(directory_.File("s/a").c_str()), 0);
  EXPECT_EQ(User("a.example"), "none");
}

TEST_F(KubernetesSecretsTest, AMountedVolumeAndASingleFile) {
  // As kubelet lays a Secret out.
  ASSERT_TRUE(base::MakeDirectories(directory_.File("s/..2026")).ok());
  ASSERT_TRUE(base::WriteFileAtomically(directory_.File("s/..2026/.dockerconfigjson"),
                                        Config(Entry("a.example", "mounted")))
                  .ok());
  ASSERT_EQ(symlink("..2026", directory_.File("s/..data").c_str()), 0);
  ASSERT_EQ(symlink("..data/.dockerconfigjson", directory_.File("s/.dockerconfigjson").c_str()), 0);
  EXPECT_EQ(User("a.example"), "mounted");
  EXPECT_TRUE(log_.empty());
  auto single = KubernetesSecretCredentials(directory_.File("s/.dockerconfigjson"), nullptr);
  EXPECT_EQ((*single->Lookup("a.example"))->username, "mounted");
}

TEST_F(KubernetesSecretsTest, WhatIsWrongIsSaidWithoutSecrets) {
  for (const std::string& text : {std::string("geheim"), std::string("{\"geheim\":1}"),
                                  std::string("{\"auths\":{\"a\":{\"auth\":\"geheim!\"}}}"),
                                  std::string("{\"auths\":{\"a\":{\"auth\":[\"geheim\"]}}}"),
                                  std::string("{\"data\":{\"geheim\":\"x\"}}"),
                                  std::string("{\"data\":{\".dockerconfigjson\":\"geheim!\"}}"),
                                  Secret("geheim"), Secret("[\"geheim\"]"), Secret("{\"a\":1}")}) {
    log_.clear();
    Write("bad", text);
    std::string answer = User("a");
    EXPECT_TRUE(absl::StartsWith(answer, absl::StrCat("error: ", directory_.File("s/bad: ")))) << answer;
    EXPECT_FALSE(absl::StrContains(answer, "geheim")) << answer;
    ASSERT_EQ(log_.size(), 1u);
    EXPECT_FALSE(absl::StrContains(log_[0], "geheim")) << log_[0];
  }
}

}  // namespace
}  // namespace lazyblob::registry
