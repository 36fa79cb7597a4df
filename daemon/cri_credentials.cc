#include "daemon/cri_credentials.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "oci/reference.h"

namespace lazyblob::daemon {
namespace {

constexpr size_t kMaxVersions = 4;

// "https://index.docker.io/v1/" and "docker.io" are one host.
std::string HostOf(absl::string_view address) {
  absl::ConsumePrefix(&address, "https://");
  absl::ConsumePrefix(&address, "http://");
  std::string host = absl::AsciiStrToLower(address.substr(0, address.find('/')));
  return host == "index.docker.io" || host == "registry-1.docker.io" ? "docker.io" : host;
}

bool Same(const registry::Credentials& a, const registry::Credentials& b) {
  return a.username == b.username && a.password == b.password && a.identity_token == b.identity_token &&
         a.registry_token == b.registry_token;
}

std::optional<registry::Credentials> NoneIfEmpty(const registry::Credentials& credentials) {
  return credentials.empty() ? std::optional<registry::Credentials>() : credentials;
}

}  // namespace

uint64_t CriCredentials::Remember(absl::string_view image, const CriAuth& auth) {
  absl::StatusOr<oci::Reference> reference = oci::ParseReference(image);
  if (!reference.ok()) return 0;  // containerd will say what is wrong with it
  registry::Credentials credentials;
  credentials.username = auth.username;
  credentials.password = auth.password;
  credentials.identity_token = auth.identity_token;
  credentials.registry_token = auth.registry_token;
  bool basic = credentials.empty() && !auth.auth.empty();
  if (basic && !registry::ParseBasicAuth(auth.auth, &credentials).ok()) return 0;
  std::string host = HostOf(auth.server_address.empty() ? reference->host : auth.server_address);
  absl::MutexLock lock(&mutex_);
  Key key(std::move(host), reference->repository);
  auto found = by_key_.find(key);
  if (found == by_key_.end()) {
    entries_.push_front({key, {}});
    found = by_key_.emplace(key, entries_.begin()).first;
    if (entries_.size() > kMaxRepositories) {
      by_key_.erase(entries_.back().key);
      entries_.pop_back();
    }
  }
  Entry& entry = *found->second;
  entries_.splice(entries_.begin(), entries_, found->second);
  if (!entry.learnt.empty() && Same(entry.learnt.back().credentials, credentials)) return 0;
  entry.learnt.push_back({next_, std::move(credentials)});
  if (entry.learnt.size() > kMaxVersions) entry.learnt.erase(entry.learnt.begin());
  return next_++;
}

void CriCredentials::Undo(uint64_t number) {
  if (number == 0) return;
  absl::MutexLock lock(&mutex_);
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    size_t erased = std::erase_if(entry->learnt, [&](const Learnt& one) { return one.number == number; });
    if (erased == 0) continue;
    if (entry->learnt.empty()) {
      by_key_.erase(entry->key);
      entries_.erase(entry);
    }
    return;
  }
}

absl::StatusOr<std::optional<registry::Credentials>> CriCredentials::Lookup(absl::string_view host) const {
  std::string wanted = HostOf(host);
  absl::MutexLock lock(&mutex_);
  for (const Entry& entry : entries_) {
    if (entry.key.first == wanted && !entry.learnt.back().credentials.empty())
      return NoneIfEmpty(entry.learnt.back().credentials);
  }
  return std::optional<registry::Credentials>();
}

absl::StatusOr<std::optional<registry::Credentials>> CriCredentials::LookupFor(
    absl::string_view host, absl::string_view repository) const {
  absl::MutexLock lock(&mutex_);
  auto found = by_key_.find(Key(HostOf(host), std::string(repository)));
  if (found == by_key_.end()) return std::optional<registry::Credentials>();
  entries_.splice(entries_.begin(), entries_, found->second);
  return NoneIfEmpty(found->second->learnt.back().credentials);
}

}  // namespace lazyblob::daemon
