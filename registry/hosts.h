#pragma once

// Where a registry host is asked, and how: what hosts.toml files say, as values. hosts_toml.h reads them.
// Thread-safe as such.

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "base/digest.h"

namespace lazyblob::registry {

// How to speak TLS with one host. Connections made with other settings are not used again.
struct TlsSettings {
  std::string ca_pem;           // authorities in addition to the system's; empty: none
  std::string client_cert_pem;  // shown to the host; empty: none
  std::string client_key_pem;
  bool skip_verify = false;
  // Set by MakeTls.
  std::string id;                                // names these settings among all
  std::shared_ptr<const TlsSettings> elsewhere;  // its authorities alone

  bool empty() const { return ca_pem.empty() && client_cert_pem.empty() && !skip_verify; }
};
using TlsPtr = std::shared_ptr<const TlsSettings>;

// null for settings that are empty.
TlsPtr MakeTls(TlsSettings settings);

// One place that answers for a host.
struct RegistryHost {
  std::string url;      // "https://mirror.example:5000"; empty: where the host itself is by default
  std::string path;     // in front of "/<repository>/blobs/…": "/v2"
  bool pull = true;     // blobs and manifests by digest
  bool resolve = true;  // tags
  bool push = true;
  std::vector<std::pair<std::string, std::string>> headers;  // for this URL only
  // null: the system's authorities. Where a redirect or a token server leads to another host, only its
  // authorities go along.
  TlsPtr tls;
};

struct HostConfig {
  std::string name;                 // of the file it is from, for messages
  std::vector<RegistryHost> hosts;  // in the order to be asked; the last one's error is the one reported
};

// What is configured for "host[:port]" of a reference; null: nothing. Called at every request, by any thread.
using HostLookup = std::function<absl::StatusOr<std::shared_ptr<const HostConfig>>(const std::string& host)>;

}  // namespace lazyblob::registry
