#pragma once

// An OCI distribution client (distribution-spec 1.1, Docker token authentication) over libcurl.
// Calls block the calling thread; a Client is thread-safe and is meant to be one per process: it shares
// connections, tokens, redirect targets and the per-host Retry-After gate between all callers.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "oci/descriptor.h"
#include "oci/reference.h"
#include "registry/credentials.h"
#include "registry/hosts.h"

namespace lazyblob::registry {

namespace internal {
class ClientCore;
}

// What the token of a call must allow. A push asks for pulling too, so that its checks and uploads share one
// token.
enum class Access : uint8_t { kPull, kPush };

// What travels with each call: who asks, how long it may take, what it cost.
struct CallContext {
  // Total time for the call including retries; monotonic, as Clock::Monotonic().
  absl::Duration deadline = absl::InfiniteDuration();
  // May be null. Cancelling ends the call with kCancelled within milliseconds.
  std::shared_ptr<base::CancelToken> cancel;
  // Credentials of the living requester; null: the client's own provider.
  std::shared_ptr<const CredentialsProvider> credentials;
  Access access = Access::kPull;
  // What was read before was wrong: the host itself is asked first, mirrors, of whom it may have come, last.
  bool distrust_mirrors = false;
  // Body bytes received are added here as they arrive, those of failed attempts included. May be null.
  std::atomic<uint64_t>* bytes_received = nullptr;
};

// Half-open range of blob bytes.
struct ByteRange {
  uint64_t offset = 0;
  uint64_t length = 0;
};

// Receives body bytes in order, on the calling thread. An error ends the call with that error.
using BodySink = absl::FunctionRef<absl::Status(absl::Span<const uint8_t>)>;

struct FetchedManifest {
  std::string raw;           // verified against `descriptor.digest`
  std::string content_type;  // without parameters
  oci::Descriptor descriptor;
};

struct ClientOptions {
  bool plain_http =
      false;  // http for every host; else only for those listed next: "host:port", or "host" for any port
  std::vector<std::string> plain_http_hosts;
  // Asked too at every request, by any thread: hosts that become known later. May be empty.
  std::function<bool(const std::string& host)> is_plain_http;
  std::string ca_file;  // PEM bundle in addition to the system's; empty: none
  // Mirrors and settings by host, see hosts.h; an error ends the call. May be null.
  HostLookup host_config;
  // containerd's rule for hosts of this machine that nothing else is said of: https without verification,
  // and plain http where TLS is not spoken (port 443: https only, port 80: http only).
  bool local_hosts_may_be_insecure = false;
  std::shared_ptr<const CredentialsProvider> credentials;  // null: anonymous
  absl::Duration connect_timeout = absl::Seconds(10);
  absl::Duration stall_timeout =
      absl::Seconds(20);  // no byte for this long: the attempt fails and is retried
  int max_attempts = 6;
  absl::Duration first_backoff = absl::Milliseconds(50);  // doubled per attempt up to 5 s, with jitter
  int max_connections_per_host = 16;
  // https→http redirects, link-local targets and token realms on loopback or private literals are refused
  // unless the registry itself is such a host or this is set.
  bool allow_private_redirects = false;
  const base::Clock* clock = &base::SystemClock();
  std::string user_agent = "lazyblob/0.1";
};

// Errors, besides kCancelled and kDeadlineExceeded: NotFound (unknown repository, manifest or blob),
// Unauthenticated/PermissionDenied (no or not enough credentials), DataLoss (bytes that do not match what was
// asked: digest, size, Content-Range), Unavailable (host unreachable or failing after all retries),
// InvalidArgument. Every message names method, host, repository and digest or tag; none holds a credential or
// a URL query.
class Client {
 public:
  explicit Client(ClientOptions options);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // GET of a manifest by digest, else by tag. The digest of a tagged one is computed over the bytes received
  // and compared with Docker-Content-Digest where that is sent.
  absl::StatusOr<FetchedManifest> GetManifest(const oci::Reference& reference, const CallContext& context);

  // HEAD of a manifest; falls back to GET where a registry does not answer HEAD properly.
  absl::StatusOr<oci::Descriptor> HeadManifest(const oci::Reference& reference, const CallContext& context);

  // Streams bytes [range.offset, +range.length) of a blob into `sink`: exactly that many on success, resuming
  // after broken connections from where it was. 206 must carry the Content-Range that was asked for; a 200 is
  // streamed once and cut; a range covering the whole blob is asked for without Range. Not verified by
  // digest: that is the caller's, who knows the chunks. `blob.size` bounds everything.
  absl::Status ReadBlob(const oci::Reference& repository, const oci::Descriptor& blob, ByteRange range,
                        BodySink sink, const CallContext& context);

  // The same from an https URL that is no registry's: neither credentials nor anything configured for a
  // registry go along, and redirects never leave https. `context.credentials` is not looked at.
  // InvalidArgument: not https, or with user information.
  absl::Status ReadUrl(absl::string_view url, const oci::Descriptor& blob, ByteRange range, BodySink sink,
                       const CallContext& context);

  // A whole small blob (config, index artifact), verified by digest; at most `max_bytes`.
  absl::StatusOr<std::string> GetSmallBlob(const oci::Reference& repository, const oci::Descriptor& blob,
                                           uint64_t max_bytes, const CallContext& context);

  // HEAD of a blob: its size, NotFound if absent.
  absl::StatusOr<uint64_t> HeadBlob(const oci::Reference& repository, const base::Digest& digest,
                                    const CallContext& context);

  // Manifests whose subject is `subject` (Referrers API, or the tag "<alg>-<hex>" where there is none),
  // optionally only those of one artifact type. Empty when there are none.
  absl::StatusOr<std::vector<oci::Descriptor>> Referrers(const oci::Reference& repository,
                                                         const base::Digest& subject,
                                                         absl::string_view artifact_type,
                                                         const CallContext& context);

  // How fast this host answered lately, for sizing ranges: bytes per second and round trip, zero if unknown.
  struct LinkEstimate {
    double bytes_per_second = 0;
    absl::Duration round_trip = absl::ZeroDuration();
    bool ignores_ranges =
        false;  // it answered a ranged GET with the whole blob: reading in parts costs the whole
  };
  LinkEstimate EstimateLink(const oci::Reference& repository) const;
  LinkEstimate EstimateLink(absl::string_view url) const;  // of one that ReadUrl asks

 private:
  friend class Pusher;  // pusher.h
  class Impl;
  internal::ClientCore* core();
  std::unique_ptr<Impl> impl_;
};

}  // namespace lazyblob::registry
