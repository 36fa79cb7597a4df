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

absl::StatusOr<Credentials> ParseAuth(const nlohmann::json& entry) {
  Credentials credentials;
  if (!entry.is_object()) return absl::InvalidArgumentError("entry is not an object");
  ASSIGN_OR_RETURN(std::optional<std::string> auth, base::JsonString(entry, "auth"));
  ASSIGN_OR_RETURN(std::optional<std::string> username, base::JsonString(entry, "username"));
  ASSIGN_OR_RETURN(std::optional<std::string> password, base::JsonString(entry, "password"));
  ASSIGN_OR_RETURN(std::optional<std::string> identity, base::JsonString(entry, "identitytoken"));
  ASSIGN_OR_RETURN(std::optional<std::string> bearer, base::JsonString(entry, "registrytoken"));
  credentials.username = username.value_or("");
  credentials.password = password.value_or("");
  credentials.identity_token = identity.value_or("");
  credentials.registry_token = bearer.value_or("");
  if (auth && !auth->empty()) {
    std::string plain;
    if (!absl::Base64Unescape(*auth, &plain)) return absl::InvalidArgumentError("\"auth\" is not base64");
    size_t colon = plain.find(':');
    if (colon == std::string::npos) return absl::InvalidArgumentError("\"auth\" is not user:password");
    credentials.username = plain.substr(0, colon);
    credentials.password = plain.substr(colon + 1);
    // Some writers pad with NUL bytes.
    while (!credentials.password.empty() && credentials.password.back() == '\0')
      credentials.password.pop_back();
  }
  return credentials;
}

bool Empty(const Credentials& credentials) {
  return credentials.username.empty() && credentials.identity_token.empty() &&
         credentials.registry_token.empty();
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
    for (const auto& [key, entry] : auths->items()) {
      absl::StatusOr<Credentials> credentials = ParseAuth(entry);
      if (!credentials.ok()) {
        return base::Annotate(credentials.status(),
                              absl::StrCat("auths of ", base::Printable(key.substr(0, 100))));
      }
      if (!Empty(*credentials)) config.auths.emplace(key, *std::move(credentials));
    }
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
      if (found && !Empty(*found)) return found;
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
