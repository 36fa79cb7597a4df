#include "daemon/plain_http_hosts.h"

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/json.h"
#include "base/status.h"

namespace lazyblob::daemon {
namespace {
constexpr uint64_t kMaxBytes = 1 << 20;
}

absl::Status PlainHttpHosts::Load(const std::string& path) {
  absl::MutexLock lock(&mutex_);
  path_ = path;
  auto text = base::ReadFile(path, kMaxBytes);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(nlohmann::json hosts, base::ParseJson(*text, kMaxBytes));
  for (const auto& host : hosts) {
    if (!host.is_string()) return absl::DataLossError(absl::StrCat(path, ": not a list of host names"));
    hosts_.insert(host.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status PlainHttpHosts::Add(const std::string& host) {
  absl::MutexLock lock(&mutex_);
  if (!hosts_.insert(host).second) return absl::OkStatus();
  return base::WriteFileAtomically(path_, nlohmann::json(hosts_).dump());
}

bool PlainHttpHosts::Contains(const std::string& host) const {
  absl::MutexLock lock(&mutex_);
  return hosts_.count(host) > 0;
}

}  // namespace lazyblob::daemon
