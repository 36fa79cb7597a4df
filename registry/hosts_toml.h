#pragma once

// containerd's hosts.toml and the directories it lies in (docs/CONFIG.md; containerd's docs/hosts.md).

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "registry/hosts.h"

namespace lazyblob::registry {

// A hosts.toml as written: certificates are still names of files, made absolute.
struct HostsFile {
  struct Entry {
    RegistryHost host;  // without tls
    std::vector<std::string> ca_files;
    // Certificate and key; no key: it is in the certificate's file.
    std::vector<std::pair<std::string, std::string>> client_files;
    bool skip_verify = false;
    uint32_t line = 1;
  };
  std::vector<Entry> entries;         // hosts in the order of the file, then the server
  std::vector<std::string> warnings;  // what was ignored
};

// `path` names the file in errors, InvalidArgument "PATH:LINE: …", and is where relative names start from.
absl::StatusOr<HostsFile> ParseHostsToml(absl::string_view text, const std::string& path);

// The hosts.toml directories of a configuration. Files are read when a host is first asked for and again when
// one of them changed. Thread-safe.
class HostsDirectories {
 public:
  using Log = std::function<void(absl::string_view line)>;

  // `config_path`: directories with ':' between them. `log` may be null; it is called under no lock.
  HostsDirectories(absl::string_view config_path, Log log);

  // See HostLookup. InvalidArgument names file and line; other errors are of files that cannot be read.
  absl::StatusOr<std::shared_ptr<const HostConfig>> Find(const std::string& host) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Loaded;
  std::string DirectoryOf(const std::string& host, absl::Status* error) const;
  absl::StatusOr<std::shared_ptr<const HostConfig>> Load(const std::string& host,
                                                         const std::string& directory, Loaded* loaded,
                                                         std::vector<std::string>* lines) const;

  const std::vector<std::string> roots_;
  const Log log_;
  absl::Mutex mutex_;
  std::map<std::string, std::shared_ptr<const Loaded>> loaded_ ABSL_GUARDED_BY(mutex_);  // by host
  std::set<std::string> logged_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace lazyblob::registry
