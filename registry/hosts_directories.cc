#include <algorithm>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/status.h"
#include "registry/hosts_toml.h"
#include "registry/internal/file_stamp.h"

namespace lazyblob::registry {
namespace {

constexpr uint64_t kMaxToml = 1 << 20;
constexpr uint64_t kMaxPem = 4 << 20;
constexpr size_t kMaxHosts = 4096;

std::vector<std::string> Roots(absl::string_view config_path) {
  std::vector<std::string> roots = absl::StrSplit(config_path, ':', absl::SkipEmpty());
  for (std::string& root : roots) {
    while (root.size() > 1 && root.back() == '/') root.pop_back();
  }
  return roots;
}

// A host that is the name of a directory and nothing else.
bool IsName(const std::string& host) {
  return !host.empty() && host.size() <= 255 && host.front() != '.' && host.front() != '_' &&
         host.find_first_of(std::string("/\0", 2)) == std::string::npos;
}

std::vector<std::string> NamesOf(const std::string& host) {
  std::vector<std::string> names;
  size_t colon = host.rfind(':');
  if (colon != std::string::npos && colon > 0) {
    names.push_back(absl::StrCat(host.substr(0, colon), "_", host.substr(colon + 1), "_"));
  }
  names.push_back(host);
  names.emplace_back("_default");
  return names;
}

}  // namespace

TlsPtr MakeTls(TlsSettings settings) {
  if (settings.empty()) return nullptr;
  std::string text = settings.skip_verify ? "skip " : "verify ";
  for (const std::string* part : {&settings.ca_pem, &settings.client_cert_pem, &settings.client_key_pem}) {
    absl::StrAppend(&text, part->size(), ":", *part);
  }
  settings.id = base::Digest::Of(text).hex();
  TlsSettings authorities;
  authorities.ca_pem = settings.ca_pem;
  settings.elsewhere = nullptr;
  if (settings.skip_verify || !settings.client_cert_pem.empty()) {
    settings.elsewhere = MakeTls(std::move(authorities));
  } else {
    authorities.id = settings.id;
    settings.elsewhere = std::make_shared<const TlsSettings>(std::move(authorities));
  }
  return std::make_shared<const TlsSettings>(std::move(settings));
}

// One host as it was read, and what it was read from.
struct HostsDirectories::Loaded {
  std::string directory;
  std::map<std::string, std::optional<internal::FileStamp>> stamps;
  absl::StatusOr<std::shared_ptr<const HostConfig>> config = std::shared_ptr<const HostConfig>();

  // Notes the version of a file before it is read.
  absl::Status Stamp(const std::string& path) {
    ASSIGN_OR_RETURN(stamps[path], internal::StampOf(path));
    return absl::OkStatus();
  }
  bool Current() const {
    return std::all_of(stamps.begin(), stamps.end(), [](const auto& entry) {
      absl::StatusOr<std::optional<internal::FileStamp>> now = internal::StampOf(entry.first);
      return now.ok() && *now == entry.second;
    });
  }
  absl::StatusOr<std::string> Pem(const std::string& path, absl::string_view what, absl::string_view marker) {
    RETURN_IF_ERROR(Stamp(path));
    ASSIGN_OR_RETURN(std::string text, base::ReadFile(path, kMaxPem));
    if (absl::StrContains(text, marker)) return text;
    return absl::InvalidArgumentError(
        absl::StrCat(base::Printable(path), " holds no ", what, " in PEM form"));
  }
  absl::StatusOr<TlsPtr> Tls(const HostsFile::Entry& entry) {
    TlsSettings tls;
    tls.skip_verify = entry.skip_verify;
    for (const std::string& file : entry.ca_files) {
      ASSIGN_OR_RETURN(std::string pem, Pem(file, "certificate", "-----BEGIN CERTIFICATE-----"));
      absl::StrAppend(&tls.ca_pem, pem, "\n");
    }
    if (!entry.client_files.empty()) {
      const auto& [certificate, key] = entry.client_files.front();
      ASSIGN_OR_RETURN(tls.client_cert_pem, Pem(certificate, "certificate", "-----BEGIN CERTIFICATE-----"));
      ASSIGN_OR_RETURN(tls.client_key_pem,
                       Pem(key.empty() ? certificate : key, "private key", "PRIVATE KEY-----"));
    }
    return MakeTls(std::move(tls));
  }
};

namespace {

// Certificates as Docker lays them out: NAME.crt, and NAME.cert with NAME.key.
absl::StatusOr<HostsFile> CertificatesIn(const std::string& directory) {
  HostsFile file;
  HostsFile::Entry entry;
  ASSIGN_OR_RETURN(std::vector<std::string> names, base::ListDirectory(directory));
  for (const std::string& name : names) {
    std::string path = absl::StrCat(directory, "/", name);
    if (absl::EndsWith(name, ".crt")) entry.ca_files.push_back(path);
    if (!absl::EndsWith(name, ".cert")) continue;
    std::string key = absl::StrCat(name.substr(0, name.size() - 5), ".key");
    if (std::find(names.begin(), names.end(), key) == names.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(base::Printable(path), ": there is no ", base::Printable(key), " beside it"));
    }
    entry.client_files.emplace_back(path, absl::StrCat(directory, "/", key));
  }
  file.entries.push_back(std::move(entry));
  return file;
}

}  // namespace

HostsDirectories::HostsDirectories(absl::string_view config_path, Log log)
    : roots_(Roots(config_path)), log_(std::move(log)) {}

std::string HostsDirectories::DirectoryOf(const std::string& host, absl::Status* error) const {
  if (!IsName(host)) return "";
  for (const std::string& root : roots_) {
    for (const std::string& name : NamesOf(host)) {
      std::string path = absl::StrCat(root, "/", name);
      absl::StatusOr<std::optional<internal::FileStamp>> found = internal::StampOf(path);
      if (!found.ok()) *error = found.status();
      if (!found.ok()) return "";
      if (*found) return path;
    }
  }
  return "";
}

absl::StatusOr<std::shared_ptr<const HostConfig>> HostsDirectories::Load(
    const std::string& host, const std::string& directory, Loaded* loaded,
    std::vector<std::string>* lines) const {
  std::string path = absl::StrCat(directory, "/hosts.toml");
  loaded->directory = directory;
  RETURN_IF_ERROR(loaded->Stamp(directory));
  RETURN_IF_ERROR(loaded->Stamp(path));
  bool written = loaded->stamps[path].has_value();
  HostsFile file;
  if (written) {
    ASSIGN_OR_RETURN(std::string text, base::ReadFile(path, kMaxToml));
    ASSIGN_OR_RETURN(file, ParseHostsToml(text, path));
  } else {
    ASSIGN_OR_RETURN(file, CertificatesIn(directory));
  }
  auto config = std::make_shared<HostConfig>();
  config->name = written ? path : directory;
  for (HostsFile::Entry& entry : file.entries) {
    absl::StatusOr<TlsPtr> tls = loaded->Tls(entry);
    if (!tls.ok()) {
      absl::string_view where = entry.host.url.empty() ? absl::string_view(host) : entry.host.url;
      std::string place = written ? absl::StrCat(base::Printable(path), ":", entry.line) : directory;
      return base::Annotate(tls.status(), absl::StrCat(place, ": ", where));
    }
    entry.host.tls = *std::move(tls);
    if (entry.skip_verify) {
      lines->push_back(absl::StrCat("certificates of ", entry.host.url.empty() ? host : entry.host.url,
                                    " are not verified: skip_verify in ", base::Printable(path)));
    }
    config->hosts.push_back(std::move(entry.host));
  }
  lines->insert(lines->end(), file.warnings.begin(), file.warnings.end());
  return config;
}

absl::StatusOr<std::shared_ptr<const HostConfig>> HostsDirectories::Find(const std::string& host) {
  absl::Status error;
  std::string directory = DirectoryOf(host, &error);
  if (!error.ok()) return error;
  if (directory.empty()) return std::shared_ptr<const HostConfig>();
  std::shared_ptr<const Loaded> known;
  {
    absl::MutexLock lock(&mutex_);
    if (auto found = loaded_.find(host); found != loaded_.end()) known = found->second;
  }
  if (known != nullptr && known->directory == directory && known->Current()) return known->config;
  auto loaded = std::make_shared<Loaded>();
  std::vector<std::string> lines;
  loaded->config = Load(host, directory, loaded.get(), &lines);
  absl::StatusOr<std::shared_ptr<const HostConfig>> config = loaded->config;
  {
    absl::MutexLock lock(&mutex_);
    if (loaded_.size() >= kMaxHosts) loaded_.erase(loaded_.begin());
    loaded_[host] = std::move(loaded);
    // Once per host and line; with very many hosts again.
    if (logged_.size() >= kMaxHosts) logged_.clear();
    std::erase_if(lines, [&](const std::string& line) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return !logged_.insert(absl::StrCat(host, " ", line)).second;
    });
  }
  if (log_ != nullptr) {
    for (const std::string& line : lines) log_(line);
  }
  return config;
}

}  // namespace lazyblob::registry
