#include <algorithm>
#include <cstdlib>
#include <map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "registry/credentials.h"
#include "registry/internal/credential_helper.h"
#include "registry/internal/docker_auth.h"
#include "registry/internal/file_stamp.h"

namespace lazyblob::registry {
namespace {

constexpr uint64_t kMaxConfig = 1 << 20;
constexpr char kDockerHubKey[] = "https://index.docker.io/v1/";

struct Config {
  std::map<std::string, Credentials> auths;  // by key as written
  std::map<std::string, std::string> helpers;
  std::string store;
};

// The names one registry goes by in config files, best first.
std::vector<std::string> KeysOf(absl::string_view host) {
  if (host == "docker.io") return {kDockerHubKey, "index.docker.io", "docker.io", "registry-1.docker.io"};
  return {std::string(host)};
}

// The host of a key: people and tools write "https://host/v1/" as well as "host".
absl::string_view HostOfKey(absl::string_view key) {
  absl::ConsumePrefix(&key, "https://");
  absl::ConsumePrefix(&key, "http://");
  size_t slash = key.find('/');
  absl::string_view path = slash == absl::string_view::npos ? "" : key.substr(slash);
  bool api =
      path.empty() || path == "/" || path == "/v1" || path == "/v1/" || path == "/v2" || path == "/v2/";
  return api ? key.substr(0, slash) : absl::string_view();
}

absl::StatusOr<Config> ParseConfig(const std::string& text) {
  Config config;
  absl::StatusOr<nlohmann::json> json = base::ParseJson(text, kMaxConfig);
  // The parser quotes what it reads, and here that is secrets.
  if (!json.ok() || !json->is_object()) return absl::InvalidArgumentError("not a JSON object");
  ASSIGN_OR_RETURN(std::optional<std::string> store, base::JsonString(*json, "credsStore"));
  config.store = store.value_or("");
  if (auto helpers = json->find("credHelpers"); helpers != json->end() && helpers->is_object()) {
    for (const auto& [host, name] : helpers->items()) {
      if (name.is_string()) config.helpers.emplace(host, name.get<std::string>());
    }
  }
  if (auto auths = json->find("auths"); auths != json->end() && auths->is_object()) {
    ASSIGN_OR_RETURN(config.auths, internal::ParseDockerAuths(*auths));
  }
  return config;
}

class DockerConfig final : public CredentialsProvider {
 public:
  explicit DockerConfig(std::string path) : path_(std::move(path)) {}

  absl::StatusOr<std::optional<Credentials>> Lookup(absl::string_view host) const override {
    ASSIGN_OR_RETURN(std::shared_ptr<const Config> config, Current());
    if (config == nullptr) return std::optional<Credentials>();
    std::string helper = HelperOf(*config, host);
    if (!helper.empty()) {
      ASSIGN_OR_RETURN(std::optional<Credentials> found,
                       internal::RunCredentialHelper(helper, KeysOf(host)[0]));
      if (found && !found->empty()) return found;
    }
    return FromAuths(*config, host);
  }

 private:
  static std::string HelperOf(const Config& config, absl::string_view host) {
    for (const std::string& key : KeysOf(host)) {
      for (const auto& [name, helper] : config.helpers) {
        if (name == key || HostOfKey(name) == key) return helper;
      }
    }
    return config.store;
  }

  static std::optional<Credentials> FromAuths(const Config& config, absl::string_view host) {
    for (const std::string& key : KeysOf(host)) {
      if (auto exact = config.auths.find(key); exact != config.auths.end()) return exact->second;
      for (const auto& [name, credentials] : config.auths) {
        if (HostOfKey(name) == key) return credentials;
      }
    }
    return std::nullopt;
  }

  std::string Path() const {
    if (!path_.empty()) return path_;
    if (const char* directory = std::getenv("DOCKER_CONFIG"); directory != nullptr && *directory != '\0') {
      return absl::StrCat(directory, "/config.json");
    }
    const char* home = std::getenv("HOME");
    return absl::StrCat(home != nullptr && *home != '\0' ? home : "/root", "/.docker/config.json");
  }

  // The file as it is now; null if there is none.
  absl::StatusOr<std::shared_ptr<const Config>> Current() const ABSL_LOCKS_EXCLUDED(mutex_) {
    std::string path = Path();
    ASSIGN_OR_RETURN(std::optional<internal::FileStamp> stamp, internal::StampOf(path));
    if (!stamp) return std::shared_ptr<const Config>();
    absl::MutexLock lock(&mutex_);
    if (config_ != nullptr && *stamp == stamp_) return config_;
    ASSIGN_OR_RETURN(std::string text, base::ReadFile(path, kMaxConfig));
    absl::StatusOr<Config> config = ParseConfig(text);
    if (!config.ok()) return base::Annotate(config.status(), path);
    config_ = std::make_shared<const Config>(*std::move(config));
    stamp_ = *stamp;
    return config_;
  }

  const std::string path_;
  mutable absl::Mutex mutex_;
  // Shared with look-ups that are running a helper while the file is read again.
  mutable std::shared_ptr<const Config> config_ ABSL_GUARDED_BY(mutex_);
  mutable internal::FileStamp stamp_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::shared_ptr<const CredentialsProvider> DockerConfigCredentials(std::string path) {
  return std::make_shared<DockerConfig>(std::move(path));
}

}  // namespace lazyblob::registry
