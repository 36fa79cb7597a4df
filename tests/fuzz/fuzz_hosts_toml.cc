// hosts.toml: what is accepted names hosts that can be asked, files with absolute names, headers on one line.

#include <cstdint>
#include <cstdlib>

#include "absl/strings/match.h"
#include "registry/hosts_toml.h"
#include "registry/internal/url.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  absl::string_view text(reinterpret_cast<const char*>(data), size);
  auto file = lazyblob::registry::ParseHostsToml(text, "/d/hosts.toml");
  if (!file.ok()) {
    if (absl::StrContains(file.status().message(), "\n")) abort();
    return 0;
  }
  if (file->entries.empty()) abort();
  for (const auto& entry : file->entries) {
    const auto& host = entry.host;
    if (!host.url.empty() && !lazyblob::registry::internal::Url::Parse(host.url).ok()) abort();
    if (!host.path.empty() && (host.path.front() != '/' || host.path.back() == '/')) abort();
    for (const auto& name : entry.ca_files) {
      if (name.front() != '/') abort();
    }
    for (const auto& [certificate, key] : entry.client_files) {
      if (certificate.front() != '/' || (!key.empty() && key.front() != '/')) abort();
    }
    for (const auto& [name, value] : host.headers) {
      if (name.empty() || (name + value).find_first_of("\r\n") != std::string::npos) abort();
    }
  }
  return 0;
}
