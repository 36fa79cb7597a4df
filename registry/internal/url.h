#pragma once

// URLs as libcurl reads them: the parser that decides where a request may go is the one that connects, so the
// two cannot disagree. Values; thread-safe as such.

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace lazyblob::registry::internal {

// Where a host lies, judged by its text alone. Names other than localhost are public: they are judged again
// by address when they are connected to.
enum class HostClass { kPublic, kPrivate, kLoopback, kLinkLocal };

struct Url {
  std::string scheme;  // "http" or "https"
  std::string host;    // lower case; IPv6 in brackets
  int port = 0;
  std::string path_and_query;  // starts with '/'

  // Absolute http(s) URLs without user information only. InvalidArgument never repeats the query.
  static absl::StatusOr<Url> Parse(absl::string_view text);
  // What `location` means as seen from this URL (RFC 3986 section 5).
  absl::StatusOr<Url> Resolve(absl::string_view location) const;

  // "https://host:port": what a credential or a connection belongs to.
  std::string Origin() const;
  // host[:port] as people write it, for messages.
  std::string HostForMessages() const;
  std::string ToString() const;

  friend bool operator==(const Url&, const Url&) = default;
};

HostClass ClassifyHost(absl::string_view host);

// May a registry at `from` send us to `to`? PermissionDenied says why not: a downgrade from https to http, or
// a target on this machine, its link or a private network, unless the registry itself is there or
// `allow_private`.
absl::Status CheckTarget(const Url& from, const Url& to, bool allow_private);
// Whether names may be connected to when they turn out to be addresses of this machine or link.
bool MayConnectLocally(const Url& from, const Url& to, bool allow_private);

// Everything but unreserved characters and those of `keep` as %XX.
std::string PercentEncode(absl::string_view text, absl::string_view keep = "");

}  // namespace lazyblob::registry::internal
