#include "registry/internal/url.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"

namespace lazyblob::registry::internal {
namespace {

constexpr size_t kMaxUrl = 16384;

using Handle = std::unique_ptr<CURLU, decltype(&curl_url_cleanup)>;

absl::Status Bad(absl::string_view text, absl::string_view why) {
  absl::string_view shown = text.substr(0, std::min(text.find_first_of("?#"), size_t{120}));
  // User information stands before an '@'; nothing of it may reach a message.
  if (absl::StrContains(text, "@")) shown = "(hidden)";
  return absl::InvalidArgumentError(absl::StrCat("URL \"", base::Printable(shown), "\": ", why));
}

absl::StatusOr<std::string> Part(CURLU* handle, CURLUPart part, unsigned flags = 0) {
  char* text = nullptr;
  CURLUcode code = curl_url_get(handle, part, &text, flags);
  if (code != CURLUE_OK) return absl::NotFoundError(curl_url_strerror(code));
  std::string copy = text;
  curl_free(text);
  return copy;
}

absl::StatusOr<Url> Extract(CURLU* handle, absl::string_view text) {
  Url url;
  absl::StatusOr<std::string> scheme = Part(handle, CURLUPART_SCHEME);
  absl::StatusOr<std::string> host = Part(handle, CURLUPART_HOST);
  absl::StatusOr<std::string> port = Part(handle, CURLUPART_PORT, CURLU_DEFAULT_PORT);
  absl::StatusOr<std::string> path = Part(handle, CURLUPART_PATH);
  absl::StatusOr<std::string> query = Part(handle, CURLUPART_QUERY);
  if (!scheme.ok() || (*scheme != "http" && *scheme != "https")) return Bad(text, "neither http nor https");
  if (!host.ok() || host->empty()) return Bad(text, "no host");
  if (!port.ok() || !absl::SimpleAtoi(*port, &url.port) || url.port < 1 || url.port > 65535) {
    return Bad(text, "bad port");
  }
  for (char c : *host) {
    auto byte = static_cast<unsigned char>(c);
    if (byte <= 0x20 || byte >= 0x7f || c == '%') return Bad(text, "the host is not plain ASCII");
  }
  url.scheme = *scheme;
  url.host = absl::AsciiStrToLower(*host);
  url.path_and_query = path.ok() && !path->empty() ? *path : "/";
  if (query.ok()) absl::StrAppend(&url.path_and_query, "?", *query);
  return url;
}

HostClass ClassifyV4(uint32_t address) {
  auto in = [address](uint32_t network, int bits) {
    return (address >> (32 - bits)) == (network >> (32 - bits));
  };
  if (in(0x7f000000, 8) || in(0x00000000, 8)) return HostClass::kLoopback;
  if (in(0xa9fe0000, 16) || in(0xe0000000, 3)) return HostClass::kLinkLocal;  // multicast and reserved too
  if (in(0x0a000000, 8) || in(0xac100000, 12) || in(0xc0a80000, 16) || in(0x64400000, 10))
    return HostClass::kPrivate;
  return HostClass::kPublic;
}

HostClass ClassifyV6(const in6_addr& address) {
  const uint8_t* b = address.s6_addr;
  static constexpr uint8_t kZeros[12] = {};
  static constexpr uint8_t kMapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  static constexpr uint8_t kNat64[12] = {0, 0x64, 0xff, 0x9b};
  uint32_t low = uint32_t{b[12]} << 24 | uint32_t{b[13]} << 16 | uint32_t{b[14]} << 8 | b[15];
  if (memcmp(b, kMapped, 12) == 0 || memcmp(b, kNat64, 12) == 0) return ClassifyV4(low);
  if (memcmp(b, kZeros, 12) == 0) return low <= 1 ? HostClass::kLoopback : ClassifyV4(low);
  if ((b[0] == 0xfe && (b[1] & 0xc0) == 0x80) || b[0] == 0xff) return HostClass::kLinkLocal;
  if ((b[0] & 0xfe) == 0xfc || (b[0] == 0xfe && (b[1] & 0xc0) == 0xc0)) return HostClass::kPrivate;
  return HostClass::kPublic;
}

absl::string_view Describe(HostClass host_class) {
  switch (host_class) {
    case HostClass::kLoopback:
      return "this machine";
    case HostClass::kLinkLocal:
      return "a link-local address";
    case HostClass::kPrivate:
      return "a private network";
    case HostClass::kPublic:
      break;
  }
  return "a public host";
}

}  // namespace

absl::StatusOr<Url> Url::Parse(absl::string_view text) {
  if (text.size() > kMaxUrl) return Bad(text, "longer than 16 KiB");
  Handle handle(curl_url(), curl_url_cleanup);
  if (handle == nullptr) return absl::ResourceExhaustedError("out of memory");
  CURLUcode code = curl_url_set(handle.get(), CURLUPART_URL, std::string(text).c_str(), CURLU_DISALLOW_USER);
  if (code != CURLUE_OK) return Bad(text, curl_url_strerror(code));
  return Extract(handle.get(), text);
}

absl::StatusOr<Url> Url::Resolve(absl::string_view location) const {
  if (location.empty()) return Bad(location, "empty");
  if (location.size() > kMaxUrl) return Bad(location, "longer than 16 KiB");
  Handle handle(curl_url(), curl_url_cleanup);
  if (handle == nullptr) return absl::ResourceExhaustedError("out of memory");
  CURLUcode code = curl_url_set(handle.get(), CURLUPART_URL, ToString().c_str(), CURLU_DISALLOW_USER);
  if (code == CURLUE_OK) {
    code = curl_url_set(handle.get(), CURLUPART_URL, std::string(location).c_str(), CURLU_DISALLOW_USER);
  }
  if (code != CURLUE_OK) return Bad(location, curl_url_strerror(code));
  return Extract(handle.get(), location);
}

std::string Url::Origin() const { return absl::StrCat(scheme, "://", host, ":", port); }

std::string Url::HostForMessages() const {
  bool is_default = port == (scheme == "https" ? 443 : 80);
  return base::Printable(is_default ? host : absl::StrCat(host, ":", port));
}

std::string Url::ToString() const { return Origin() + path_and_query; }

HostClass ClassifyHost(absl::string_view host) {
  std::string name = absl::AsciiStrToLower(host);
  if (name.size() > 2 && name.front() == '[' && name.back() == ']') name = name.substr(1, name.size() - 2);
  name = name.substr(0, name.find('%'));
  while (!name.empty() && name.back() == '.') name.pop_back();
  if (name == "localhost" || absl::EndsWith(name, ".localhost")) return HostClass::kLoopback;
  in_addr v4{};
  if (inet_pton(AF_INET, name.c_str(), &v4) == 1) return ClassifyV4(ntohl(v4.s_addr));
  in6_addr v6{};
  if (inet_pton(AF_INET6, name.c_str(), &v6) == 1) return ClassifyV6(v6);
  return HostClass::kPublic;
}

absl::Status CheckTarget(const Url& from, const Url& to, bool allow_private) {
  if (from.scheme == "https" && to.scheme != "https") {
    return absl::PermissionDeniedError(absl::StrCat(from.HostForMessages(), " points to ",
                                                    to.HostForMessages(), " over plain http; refused"));
  }
  HostClass target = ClassifyHost(to.host);
  HostClass source = ClassifyHost(from.host);
  bool allowed = allow_private || from.host == to.host || target == HostClass::kPublic || target == source ||
                 (source == HostClass::kLoopback && target == HostClass::kPrivate);
  if (allowed) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(from.HostForMessages(), " points to ", to.HostForMessages(),
                                                  ", which is ", Describe(target),
                                                  "; refused (see allow_private_redirects)"));
}

bool MayConnectLocally(const Url& from, const Url& to, bool allow_private) {
  return allow_private || from.host == to.host || ClassifyHost(from.host) != HostClass::kPublic ||
         ClassifyHost(to.host) != HostClass::kPublic;
}

std::string PercentEncode(absl::string_view text, absl::string_view keep) {
  std::string out;
  for (char c : text) {
    if (absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
        absl::StrContains("-._~", absl::string_view(&c, 1)) ||
        absl::StrContains(keep, absl::string_view(&c, 1))) {
      out.push_back(c);
    } else {
      absl::StrAppendFormat(&out, "%%%02X", static_cast<unsigned char>(c));
    }
  }
  return out;
}

}  // namespace lazyblob::registry::internal
