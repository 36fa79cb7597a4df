#include <fcntl.h>
#include <fnmatch.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"
#include "registry/credentials.h"
#include "registry/internal/docker_auth.h"
#include "registry/internal/file_stamp.h"

namespace lazyblob::registry {
namespace {

using Auths = std::map<std::string, Credentials>;
using Stamps = std::map<std::string, std::optional<internal::FileStamp>>;

constexpr uint64_t kMaxSecret = 8 << 20;
constexpr size_t kMaxFiles = 1000;
constexpr char kHub[] = "docker.io";

// "registry.example:5000/team" as host, port and path.
struct Pattern {
  std::string host;
  std::string port;
  std::string path;  // "" or "/team"
};

Pattern Split(absl::string_view text) {
  absl::ConsumePrefix(&text, "https://");
  absl::ConsumePrefix(&text, "http://");
  size_t slash = std::min(text.find('/'), text.size());
  absl::string_view path = text.substr(slash);
  for (absl::string_view api : {"/v1", "/v2"}) {
    if (path == api || absl::StartsWith(path, absl::StrCat(api, "/"))) path.remove_prefix(api.size());
  }
  while (absl::EndsWith(path, "/")) path.remove_suffix(1);
  absl::string_view host = text.substr(0, slash);
  size_t bracket = host.rfind(']');
  size_t colon = host.find(':', bracket == absl::string_view::npos ? 0 : bracket);
  Pattern pattern;
  pattern.host = absl::AsciiStrToLower(host.substr(0, colon));
  if (colon != absl::string_view::npos) pattern.port = std::string(host.substr(colon + 1));
  pattern.path = std::string(path);
  if (pattern.host == "index.docker.io" || pattern.host == "registry-1.docker.io") pattern.host = kHub;
  return pattern;
}

// Label by label: a star stands for no dot.
bool HostMatches(const std::string& pattern, const std::string& host) {
  std::vector<std::string> wanted = absl::StrSplit(pattern, '.');
  std::vector<std::string> labels = absl::StrSplit(host, '.');
  if (pattern == host) return true;
  return wanted.size() == labels.size() &&
         std::equal(wanted.begin(), wanted.end(), labels.begin(), [](const auto& glob, const auto& label) {
           return fnmatch(glob.c_str(), label.c_str(), 0) == 0;
         });
}

bool Matches(const Pattern& pattern, const Pattern& image) {
  return pattern.port == image.port && HostMatches(pattern.host, image.host) &&
         (pattern.path.empty() || pattern.path == image.path ||
          absl::StartsWith(image.path, pattern.path + "/"));
}

// A member that is JSON, in base64 below "data", as text below "stringData"; null: there is none.
absl::StatusOr<nlohmann::json> Payload(const nlohmann::json& secret, const char* name) {
  for (const char* section : {"data", "stringData"}) {
    auto data = secret.find(section);
    if (data == secret.end() || !data->is_object()) continue;
    ASSIGN_OR_RETURN(std::optional<std::string> value, base::JsonString(*data, name));
    if (!value) continue;
    std::string text = *value;
    if (absl::string_view(section) == "data" && !absl::Base64Unescape(*value, &text)) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is not base64"));
    }
    absl::StatusOr<nlohmann::json> json = base::ParseJson(text, kMaxSecret);
    // The parser quotes what it reads, and here that is secrets.
    if (!json.ok() || !json->is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(name, " is not a JSON object"));
    }
    return json;
  }
  return nlohmann::json();
}

absl::Status AddAuths(const nlohmann::json& document, Auths* auths) {
  auto entries = document.find("auths");
  if (entries == document.end() || !entries->is_object()) {
    return absl::InvalidArgumentError("it holds no \"auths\"");
  }
  ASSIGN_OR_RETURN(Auths parsed, internal::ParseDockerAuths(*entries));
  auths->merge(parsed);
  return absl::OkStatus();
}

absl::Status AddSecret(const nlohmann::json& secret, Auths* auths) {
  ASSIGN_OR_RETURN(nlohmann::json config, Payload(secret, ".dockerconfigjson"));
  if (!config.is_null()) return AddAuths(config, auths);
  ASSIGN_OR_RETURN(nlohmann::json legacy, Payload(secret, ".dockercfg"));
  if (legacy.is_null())
    return absl::InvalidArgumentError("it is not a pull secret (kubernetes.io/dockerconfigjson)");
  ASSIGN_OR_RETURN(Auths parsed, internal::ParseDockerAuths(legacy));
  auths->merge(parsed);
  return absl::OkStatus();
}

absl::Status AddDocument(const std::string& text, Auths* auths) {
  absl::StatusOr<nlohmann::json> json = base::ParseJson(text, kMaxSecret);
  if (!json.ok() || !json->is_object()) return absl::InvalidArgumentError("it is not a JSON object");
  auto items = json->find("items");
  if (items != json->end() && items->is_array()) {
    for (const nlohmann::json& item : *items) {
      auto type = item.is_object() ? item.find("type") : item.end();
      // A List may hold secrets of other types.
      bool pull = item.is_object() && (type == item.end() || *type == "kubernetes.io/dockerconfigjson" ||
                                       *type == "kubernetes.io/dockercfg");
      if (pull) RETURN_IF_ERROR(AddSecret(item, auths));
    }
    return absl::OkStatus();
  }
  bool secret = json->contains("data") || json->contains("stringData");
  return secret ? AddSecret(*json, auths) : AddAuths(*json, auths);
}

// A file that nobody but its owner, root or the caller, may have read or written.
absl::StatusOr<std::string> ReadSecret(const std::string& path) {
  ASSIGN_OR_RETURN(base::UniqueFd fd, base::OpenFile(path, O_RDONLY | O_NONBLOCK));
  struct stat st{};
  if (fstat(fd.get(), &st) != 0) return base::ErrnoStatus(errno, path);
  if (!S_ISREG(st.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(base::Printable(path), " is not a regular file"));
  }
  if (st.st_uid != 0 && st.st_uid != geteuid()) {
    return absl::FailedPreconditionError(absl::StrFormat("%s belongs to user %u; refused: chown it to root",
                                                         base::Printable(path), st.st_uid));
  }
  if ((st.st_mode & 0077) != 0) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%s has mode %04o; refused: others may read or write it (chmod 600)",
                        base::Printable(path), st.st_mode & 07777));
  }
  if (st.st_size < 0 || static_cast<uint64_t>(st.st_size) > kMaxSecret) {
    return absl::ResourceExhaustedError(
        absl::StrCat(base::Printable(path), " is over ", kMaxSecret, " bytes"));
  }
  std::string text(static_cast<size_t>(st.st_size), '\0');
  RETURN_IF_ERROR(
      base::PreadFull(fd.get(), 0, absl::MakeSpan(reinterpret_cast<uint8_t*>(text.data()), text.size())));
  return text;
}

class KubernetesSecrets final : public CredentialsProvider {
 public:
  KubernetesSecrets(std::string path, std::function<void(absl::string_view)> log)
      : path_(std::move(path)), log_(std::move(log)) {}

  absl::StatusOr<std::optional<Credentials>> Lookup(absl::string_view host) const override {
    return LookupFor(host, "");
  }

  absl::StatusOr<std::optional<Credentials>> LookupFor(absl::string_view host,
                                                       absl::string_view repository) const override {
    ASSIGN_OR_RETURN(std::shared_ptr<const Loaded> loaded, Current());
    Pattern image = Split(host);
    image.path = repository.empty() ? "" : absl::StrCat("/", repository);
    const Credentials* best = nullptr;
    std::pair<size_t, bool> best_rank;
    for (const auto& [key, credentials] : loaded->auths) {
      Pattern pattern = Split(key);
      if (!Matches(pattern, image)) continue;
      std::pair<size_t, bool> rank(pattern.path.size(), pattern.host == image.host);
      if (best == nullptr || rank > best_rank) {
        best = &credentials;
        best_rank = rank;
      }
    }
    if (best != nullptr) return *best;
    if (!loaded->error.ok()) return loaded->error;
    return std::optional<Credentials>();
  }

 private:
  struct Loaded {
    Stamps stamps;
    Auths auths;
    absl::Status error;  // of the first file that is wrong
  };

  // The files there are now, with their versions.
  absl::StatusOr<Stamps> Files() const {
    Stamps stamps;
    ASSIGN_OR_RETURN(stamps[path_], internal::StampOf(path_));
    struct stat st{};
    if (!stamps[path_] || stat(path_.c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) return stamps;
    ASSIGN_OR_RETURN(std::vector<std::string> names, base::ListDirectory(path_));
    for (const std::string& name : names) {
      // A mounted Secret has its files in "..data" and links to them; the links are read.
      if (absl::StartsWith(name, "..")) continue;
      std::string file = absl::StrCat(path_, "/", name);
      ASSIGN_OR_RETURN(stamps[file], internal::StampOf(file));
      if (stamps.size() > kMaxFiles) {
        return absl::ResourceExhaustedError(
            absl::StrCat(base::Printable(path_), " holds more than ", kMaxFiles, " files"));
      }
    }
    return stamps;
  }

  absl::StatusOr<std::shared_ptr<const Loaded>> Current() const ABSL_LOCKS_EXCLUDED(mutex_) {
    ASSIGN_OR_RETURN(Stamps stamps, Files());
    {
      absl::MutexLock lock(&mutex_);
      if (loaded_ != nullptr && loaded_->stamps == stamps) return loaded_;
    }
    auto loaded = std::make_shared<Loaded>();
    bool directory = stamps.size() > 1;
    struct stat st{};
    directory = directory || (stat(path_.c_str(), &st) == 0 && S_ISDIR(st.st_mode));
    for (const auto& [file, stamp] : stamps) {
      if (!stamp || (directory && file == path_)) continue;
      absl::StatusOr<std::string> text = ReadSecret(file);
      absl::Status status = text.status();
      if (text.ok()) status = base::Annotate(AddDocument(*text, &loaded->auths), base::Printable(file));
      if (status.ok()) continue;
      loaded->error.Update(status);
      if (log_ != nullptr) log_(absl::StrCat("pull secret: ", status.message()));
    }
    loaded->stamps = std::move(stamps);
    absl::MutexLock lock(&mutex_);
    loaded_ = loaded;
    return loaded;
  }

  const std::string path_;
  const std::function<void(absl::string_view)> log_;
  mutable absl::Mutex mutex_;
  // Shared with look-ups that go on while the files are read again.
  mutable std::shared_ptr<const Loaded> loaded_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::shared_ptr<const CredentialsProvider> KubernetesSecretCredentials(
    std::string path, std::function<void(absl::string_view line)> log) {
  return std::make_shared<KubernetesSecrets>(std::move(path), std::move(log));
}

}  // namespace lazyblob::registry
