#include "registry/internal/endpoint.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace lazyblob::registry::internal {
namespace {

absl::StatusOr<Endpoint> MakeEndpoint(const std::string& host, bool plain_http) {
  // Docker Hub's API lives under another name than its images.
  std::string api_host = host == "docker.io" ? "registry-1.docker.io" : absl::AsciiStrToLower(host);
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

}  // namespace

absl::StatusOr<Url> Endpoint::ApiUrl(const std::string& repository, const std::string& rest) const {
  Url url = base;
  url.path_and_query = absl::StrCat("/v2/", PercentEncode(repository, "/"), rest);
  if (is_mirror()) {
    absl::StrAppend(&url.path_and_query, absl::StrContains(rest, "?") ? "&" : "?", "ns=", PercentEncode(ns));
  }
  // Read back: nothing in a repository or tag may lead out of the API.
  ASSIGN_OR_RETURN(Url parsed, Url::Parse(url.ToString()));
  if (parsed.Origin() != base.Origin() || !absl::StartsWith(parsed.path_and_query, "/v2/")) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", base::Printable(repository), "\" is not a repository"));
  }
  return parsed;
}

absl::StatusOr<std::vector<Endpoint>> EndpointsOf(const oci::Reference& reference,
                                                  const ClientOptions& options) {
  std::vector<Endpoint> endpoints;
  if (auto mirrors = options.mirrors.find(reference.host); mirrors != options.mirrors.end()) {
    for (const Mirror& mirror : mirrors->second) {
      ASSIGN_OR_RETURN(Endpoint endpoint,
                       MakeEndpoint(mirror.host, mirror.plain_http || PlainHttp(mirror.host, options)));
      endpoint.ns = reference.host;
      endpoint.host = reference.host;
      endpoints.push_back(std::move(endpoint));
    }
  }
  ASSIGN_OR_RETURN(Endpoint endpoint, MakeEndpoint(reference.host, PlainHttp(reference.host, options)));
  endpoint.host = reference.host;
  endpoints.push_back(std::move(endpoint));
  return endpoints;
}

}  // namespace lazyblob::registry::internal
