#include "registry/internal/endpoint.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::registry::internal {
namespace {

constexpr absl::string_view kHub = "docker.io";
// Docker Hub's API lives under another name than its images.
constexpr absl::string_view kHubApi = "registry-1.docker.io";

absl::StatusOr<Endpoint> MakeEndpoint(const std::string& host, bool plain_http) {
  std::string api_host = host == kHub ? std::string(kHubApi) : absl::AsciiStrToLower(host);
  absl::string_view scheme = plain_http ? "http" : "https";
  ASSIGN_OR_RETURN(Url base, Url::Parse(absl::StrCat(scheme, "://", api_host, "/")));
  bool same = base.host == api_host || absl::StrCat(base.host, ":", base.port) == api_host;
  if (!same || base.path_and_query != "/") {
    return absl::InvalidArgumentError(absl::StrCat("\"", base::Printable(host), "\" is not host[:port]"));
  }
  Endpoint endpoint;
  endpoint.base = std::move(base);
  endpoint.credential_host = host;
  return endpoint;
}

bool PlainHttp(const std::string& host, const ClientOptions& options) {
  if (options.plain_http || (options.is_plain_http && options.is_plain_http(host))) return true;
  std::string bare =
      host.substr(0, host.find(':', host.rfind(']') == std::string::npos ? 0 : host.rfind(']')));
  const auto& hosts = options.plain_http_hosts;
  return std::any_of(hosts.begin(), hosts.end(), [&](const std::string& plain) {
    return absl::EqualsIgnoreCase(plain, host) || absl::EqualsIgnoreCase(plain, bare);
  });
}

bool Has(const RegistryHost& host, Capability wanted) {
  switch (wanted) {
    case Capability::kPull:
      return host.pull;
    case Capability::kResolve:
      return host.resolve;
    case Capability::kPush:
      return host.push;
  }
  return false;
}

absl::string_view Name(Capability capability) {
  switch (capability) {
    case Capability::kPull:
      return "pull";
    case Capability::kResolve:
      return "resolve";
    case Capability::kPush:
      return "push";
  }
  return "";
}

// The host itself where no URL is configured for it: one endpoint, or two where its scheme has to be found
// out.
absl::Status AddDefault(const std::string& host, const RegistryHost& settings, const ClientOptions& options,
                        std::vector<Endpoint>* endpoints) {
  ASSIGN_OR_RETURN(Endpoint endpoint, MakeEndpoint(host, PlainHttp(host, options)));
  endpoint.headers = settings.headers;
  endpoint.tls = settings.tls;
  bool insecure = options.local_hosts_may_be_insecure && endpoint.base.scheme == "https" &&
                  settings.tls == nullptr && ClassifyHost(endpoint.base.host) == HostClass::kLoopback;
  if (!insecure) {
    endpoints->push_back(std::move(endpoint));
    return absl::OkStatus();
  }
  Endpoint plain = endpoint;
  plain.base.scheme = "http";
  if (endpoint.base.port != 80) {
    static const TlsPtr unverified = MakeTls({"", "", "", true, "", nullptr});
    endpoint.tls = unverified;
    endpoint.guessed_tls = endpoint.base.port != 443;
    endpoints->push_back(endpoint);
  }
  if (endpoint.base.port != 443) endpoints->push_back(std::move(plain));
  return absl::OkStatus();
}

absl::StatusOr<Endpoint> FromConfig(const std::string& host, const RegistryHost& settings) {
  ASSIGN_OR_RETURN(Endpoint own, MakeEndpoint(host, false));
  Endpoint endpoint;
  ASSIGN_OR_RETURN(endpoint.base, Url::Parse(settings.url));
  endpoint.path = settings.path;
  endpoint.headers = settings.headers;
  endpoint.tls = settings.tls;
  std::string name = endpoint.base.HostForMessages();
  bool same = name == absl::AsciiStrToLower(host) ||
              (endpoint.base.host == own.base.host && endpoint.base.port == own.base.port);
  endpoint.credential_host = same ? host : name == kHubApi ? std::string(kHub) : name;
  if (!same) endpoint.ns = host;
  return endpoint;
}

}  // namespace

absl::StatusOr<Url> Endpoint::ApiUrl(const std::string& repository, const std::string& rest) const {
  Url url = base;
  url.path_and_query = absl::StrCat(path, "/", PercentEncode(repository, "/"), rest);
  if (!ns.empty()) {
    absl::StrAppend(&url.path_and_query, absl::StrContains(rest, "?") ? "&" : "?", "ns=", PercentEncode(ns));
  }
  // Read back: nothing in a repository or tag may lead out of the API.
  ASSIGN_OR_RETURN(Url parsed, Url::Parse(url.ToString()));
  if (parsed.Origin() != base.Origin() || !absl::StartsWith(parsed.path_and_query, path + "/")) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", base::Printable(repository), "\" is not a repository"));
  }
  return parsed;
}

absl::StatusOr<std::vector<Endpoint>> EndpointsOf(const oci::Reference& reference,
                                                  const ClientOptions& options, Capability wanted) {
  std::shared_ptr<const HostConfig> config;
  if (options.host_config != nullptr) {
    ASSIGN_OR_RETURN(config, options.host_config(reference.host));
  }
  std::vector<Endpoint> endpoints;
  if (config == nullptr) {
    RETURN_IF_ERROR(AddDefault(reference.host, RegistryHost(), options, &endpoints));
  } else {
    for (const RegistryHost& host : config->hosts) {
      if (!Has(host, wanted)) continue;
      if (host.url.empty()) {
        RETURN_IF_ERROR(AddDefault(reference.host, host, options, &endpoints));
      } else {
        ASSIGN_OR_RETURN(Endpoint endpoint, FromConfig(reference.host, host));
        endpoints.push_back(std::move(endpoint));
      }
      // What is pushed has to be found again: everything goes to one place, as containerd does it.
      if (wanted == Capability::kPush) break;
    }
  }
  if (endpoints.empty()) {
    return absl::UnavailableError(absl::StrCat(base::Printable(config->name), " gives no host of ",
                                               reference.host, " the capability \"", Name(wanted), "\""));
  }
  for (Endpoint& endpoint : endpoints) {
    endpoint.host = reference.host;
    endpoint.repository = reference.repository;
  }
  return endpoints;
}

}  // namespace lazyblob::registry::internal
