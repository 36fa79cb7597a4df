#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "registry/credentials.h"
#include "registry/internal/credential_helper.h"
#include "tests/support/gate.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::registry {
namespace {

class DockerConfigTest : public testing::Test {
 protected:
  std::string Write(const std::string& text) {
    std::string path = directory_.File("config.json");
    EXPECT_TRUE(base::WriteFileAtomically(path, text).ok());
    return path;
  }

  // A docker-credential-<name> on the PATH for the rest of the test.
  void Helper(const std::string& name, const std::string& script) {
    std::string path = directory_.File("docker-credential-" + name);
    EXPECT_TRUE(base::WriteFileAtomically(path, "#!/bin/sh\n" + script, 0755).ok());
    EXPECT_EQ(chmod(path.c_str(), 0755), 0);
    setenv("PATH", absl::StrCat(directory_.path(), ":", old_path_).c_str(), 1);
  }

  void TearDown() override { setenv("PATH", old_path_.c_str(), 1); }

  static Credentials Found(const CredentialsProvider& provider, absl::string_view host) {
    absl::StatusOr<std::optional<Credentials>> found = provider.Lookup(host);
    EXPECT_TRUE(found.ok()) << found.status();
    EXPECT_TRUE(found.ok() && found->has_value()) << host;
    return found.ok() ? found->value_or(Credentials()) : Credentials();
  }
  static bool Anonymous(const CredentialsProvider& provider, absl::string_view host) {
    absl::StatusOr<std::optional<Credentials>> found = provider.Lookup(host);
    EXPECT_TRUE(found.ok()) << found.status();
    return found.ok() && !found->has_value();
  }

  support::TempDir directory_;
  const std::string old_path_ = getenv("PATH");
};

std::string Auth(const std::string& user_and_password) { return absl::Base64Escape(user_and_password); }

TEST_F(DockerConfigTest, Auths) {
  auto provider = DockerConfigCredentials(Write(absl::StrCat(
      "{\"auths\":{\"reg.example:5000\":{\"auth\":\"", Auth("u:p:w"),
      "\"},\"https://full.example/v2/\":{\"username\":\"a\",",
      "\"password\":\"b\"},\"id.example\":{\"identitytoken\":\"i\"},\"bearer.example\":{\"registrytoken\":"
      "\"r\"},",
      "\"https://index.docker.io/v1/\":{\"auth\":\"", Auth("hub:x"), "\"},\"empty.example\":{}}}")));
  EXPECT_EQ(Found(*provider, "reg.example:5000").username, "u");
  EXPECT_EQ(Found(*provider, "reg.example:5000").password, "p:w");
  EXPECT_EQ(Found(*provider, "full.example").password, "b");
  EXPECT_EQ(Found(*provider, "id.example").identity_token, "i");
  EXPECT_EQ(Found(*provider, "bearer.example").registry_token, "r");
  EXPECT_EQ(Found(*provider, "docker.io").username, "hub");
  EXPECT_TRUE(Anonymous(*provider, "reg.example"));
  EXPECT_TRUE(Anonymous(*provider, "empty.example"));
  EXPECT_TRUE(Anonymous(*provider, "other.example"));
}

TEST_F(DockerConfigTest, KeysOfOneRepositoryAreNotTheHosts) {
  auto provider = DockerConfigCredentials(
      Write(absl::StrCat("{\"auths\":{\"reg.example/private\":{\"auth\":\"", Auth("u:p"), "\"}}}")));
  EXPECT_TRUE(Anonymous(*provider, "reg.example"));
}

TEST_F(DockerConfigTest, MissingFileIsNoCredentialsAndChangesAreSeen) {
  auto provider = DockerConfigCredentials(directory_.File("config.json"));
  EXPECT_TRUE(Anonymous(*provider, "reg.example"));
  Write(absl::StrCat("{\"auths\":{\"reg.example\":{\"auth\":\"", Auth("u:one"), "\"}}}"));
  EXPECT_EQ(Found(*provider, "reg.example").password, "one");
  Write(absl::StrCat("{\"auths\":{\"reg.example\":{\"auth\":\"", Auth("u:two"), "\"}}}"));
  EXPECT_EQ(Found(*provider, "reg.example").password, "two");
  unlink(directory_.File("config.json").c_str());
  EXPECT_TRUE(Anonymous(*provider, "reg.example"));
}

TEST_F(DockerConfigTest, FoundByEnvironment) {
  Write(absl::StrCat("{\"auths\":{\"reg.example\":{\"auth\":\"", Auth("u:p"), "\"}}}"));
  setenv("DOCKER_CONFIG", directory_.path().c_str(), 1);
  EXPECT_EQ(Found(*DockerConfigCredentials(""), "reg.example").username, "u");
  unsetenv("DOCKER_CONFIG");
}

TEST_F(DockerConfigTest, BrokenFilesAreErrorsThatKeepSecrets) {
  for (const char* text : {"{\"auths\":{\"h\":{\"auth\":\"SECRET!\"}}}", "{\"auths\": SECRET}", "[]", "",
                           "{\"auths\":{\"h\":{\"password\":\"SECRET\",\"username\":5}}}"}) {
    auto provider = DockerConfigCredentials(Write(text));
    absl::Status status = provider->Lookup("h").status();
    EXPECT_FALSE(status.ok()) << text;
    EXPECT_EQ(status.message().find("SECRET"), absl::string_view::npos) << status;
    EXPECT_NE(status.message().find("config.json"), absl::string_view::npos) << status;
  }
}

TEST_F(DockerConfigTest, HelperOfTheHostGoesBeforeTheStore) {
  Helper("one",
         "read host; echo "
         "\"{\\\"ServerURL\\\":\\\"$host\\\",\\\"Username\\\":\\\"one\\\",\\\"Secret\\\":\\\"$host\\\"}\"");
  Helper("two", "echo '{\"Username\":\"<token>\",\"Secret\":\"refresh\"}'");
  auto provider = DockerConfigCredentials(
      Write("{\"credsStore\":\"two\",\"credHelpers\":{\"reg.example\":\"one\",\"docker.io\":\"one\"}}"));
  EXPECT_EQ(Found(*provider, "reg.example").username, "one");
  EXPECT_EQ(Found(*provider, "reg.example").password, "reg.example");
  EXPECT_EQ(Found(*provider, "docker.io").password, "https://index.docker.io/v1/");
  EXPECT_EQ(Found(*provider, "other.example").identity_token, "refresh");
  EXPECT_EQ(Found(*provider, "other.example").username, "");
}

TEST_F(DockerConfigTest, HelpersThatKnowNothingLeaveItToTheFile) {
  Helper("none", "echo 'credentials not found in native keychain'; exit 1");
  auto provider = DockerConfigCredentials(Write(absl::StrCat(
      "{\"credsStore\":\"none\",\"auths\":{\"reg.example\":{\"auth\":\"", Auth("u:p"), "\"}}}")));
  EXPECT_EQ(Found(*provider, "reg.example").username, "u");
  EXPECT_TRUE(Anonymous(*provider, "other.example"));
}

TEST_F(DockerConfigTest, FailingHelpersAreNamedAndTheirOutputIsNot) {
  Helper("broken", "echo SECRET; echo SECRET >&2; exit 3");
  Helper("garbage", "echo '{\"Username\": SECRET}'");
  Helper("loud", "while :; do echo SECRETSECRETSECRETSECRET; done");
  for (const char* name : {"broken", "garbage", "loud", "missing-program"}) {
    absl::Status status = internal::RunCredentialHelper(name, "h").status();
    EXPECT_FALSE(status.ok()) << name;
    EXPECT_EQ(status.message().find("SECRET"), absl::string_view::npos) << status;
    EXPECT_NE(status.message().find(absl::StrCat("docker-credential-", name)), absl::string_view::npos)
        << status;
  }
  EXPECT_EQ(internal::RunCredentialHelper("../evil", "h").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(internal::RunCredentialHelper("", "h").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(DockerConfigTest, HungHelpersAreKilledWithTheirChildren) {
  ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  std::string marker = directory_.File("pid");
  Helper("hung", absl::StrCat("sleep 1000 & echo $! > ", marker, "; wait"));
  pid_t child = 0;
  // The helper needs some time to come to its sleep.
  for (absl::Duration limit = absl::Milliseconds(300); child == 0 && limit < support::kPatience; limit *= 3) {
    const absl::Status status = internal::RunCredentialHelper("hung", "h", limit).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
    std::ifstream(marker) >> child;
  }
  ASSERT_GT(child, 0);
  // Inherited by this process, so its end can be waited for.
  int ended = 0;
  ASSERT_EQ(waitpid(child, &ended, 0), child);
  EXPECT_TRUE(WIFSIGNALED(ended) && WTERMSIG(ended) == SIGKILL) << ended;
}

TEST_F(DockerConfigTest, HelpersInheritNoDescriptors) {
  int fd = open("/dev/null", O_RDONLY);
  ASSERT_GE(fd, 3);
  Helper("fds", absl::StrCat("if [ -e /proc/self/fd/", fd,
                             " ]; then echo '{\"Username\":\"leak\",\"Secret\":\"x\"}'; else ",
                             "echo '{\"Username\":\"clean\",\"Secret\":\"x\"}'; fi"));
  EXPECT_EQ((*internal::RunCredentialHelper("fds", "h"))->username, "clean");
  close(fd);
}

}  // namespace
}  // namespace lazyblob::registry
