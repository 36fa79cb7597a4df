#pragma once

// A registry for tests: OCI distribution-spec 1.1 pulls and pushes and Docker token authentication over plain
// HTTP/1.1 on loopback, with faults by rule, the habits of other people's registries, and a log of every
// request. It proves nothing about the wire by itself
// (other people's registries judge that); it makes what they never do on demand: fail.
//
//   TestRegistry registry;
//   registry.PutImage("test/image", "latest", MakeImage({layer}));
//   registry.AddFault({.path_contains = "/blobs/", .count = 1}, {.status = 503});
//   … pull registry.host() + "/test/image:latest" …
//   EXPECT_EQ(registry.Count({.path_contains = "/blobs/"}), 2);
//
// Thread-safe. Destruction opens the gates of its rules, breaks all connections and waits for its threads.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/digest.h"
#include "oci/descriptor.h"
#include "tests/support/gate.h"
#include "tests/support/layer_maker.h"
#include "tests/support/test_registry_uploads.h"

namespace lazyblob::support {

using HeaderList = std::vector<std::pair<std::string, std::string>>;

// Which requests; empty fields match all.
struct RequestMatcher {
  std::string method = {};
  std::string path_contains = {};   // of the path as it was sent, without query
  std::string path_regex = {};      // ECMAScript, found anywhere in the path
  std::string range_contains = {};  // of the Range header
  // Of the requests that match, `skip` are let pass, then `count` are meant; -1: all. Ignored by Count().
  int skip = 0;
  int count = -1;
};

// What happens to a request that a rule means. Fields combine; the first rule that means a request has it
// alone.
struct FaultAction {
  // Before anything is answered.
  std::shared_ptr<Gate> gate = {};  // waits here
  absl::Duration delay = absl::ZeroDuration();
  bool drop = false;  // closes the connection without an answer
  // The request's body, where it is that of an upload.
  uint64_t request_bytes_per_second = 0;
  std::shared_ptr<Gate> request_gate = {};  // waits once it has request_gate_at bytes
  uint64_t request_gate_at = 0;
  std::optional<uint64_t> cut_request_at = {};  // TCP reset once it has N bytes, which count
  // In place of the real answer (0: the real one), with `body`.
  int status = 0;
  std::string body = {};
  // The head. These replace headers of the same name, in any answer; an empty value removes one.
  HeaderList headers = {};
  uint64_t huge_header_bytes = 0;                 // adds a header that long
  bool ignore_range = false;                      // 200 and the whole blob
  std::optional<uint64_t> shift_range = {};       // serves, and says, a range that starts so many bytes later
  std::optional<std::string> content_range = {};  // says this, whatever is sent
  bool no_content_length = false;                 // ends the body by closing
  bool chunked = false;                           // Transfer-Encoding: chunked
  bool claim_gzip = false;                        // Content-Encoding: gzip over bytes that are not
  bool close_after = false;                       // Connection: close
  // The body; N counts body bytes of this answer.
  uint64_t bytes_per_second = 0;
  std::shared_ptr<Gate> body_gate = {};  // waits before byte body_gate_at
  uint64_t body_gate_at = 0;
  std::optional<uint64_t> reset_at = {};          // TCP reset after N bytes
  std::optional<uint64_t> truncate_at = {};       // clean close after N bytes
  std::optional<uint64_t> cut_range_to = {};      // an honest 206 of only the first N bytes of the range
  std::optional<uint64_t> flip_bit_of_byte = {};  // of the blob or manifest: this byte arrives wrong
};

struct LoggedRequest {
  uint64_t connection = 0;  // numbered from 1 in order of accept, over both listeners
  bool cdn = false;         // came to the second listener
  std::string method;
  std::string path;  // as sent, without query
  std::string query;
  std::string range;            // Range header, empty if none
  std::string authorization;    // Authorization header, empty if none
  HeaderList headers;           // all, names in lower case
  std::string body;             // not of an upload
  uint64_t received_bytes = 0;  // of the request's body
  absl::Duration longest_gap;   // without a byte of an upload's body that was waited for
  int status = 0;               // 0: no answer was given
  uint64_t body_bytes = 0;      // of the answer's body; a piece counts from before it is sent
  bool finished = false;        // answer complete, or given up: some moments after the client has it
  bool complete = false;        // answer sent to its end; with finished
};

struct AuthOptions {
  enum class Kind { kNone, kBasic, kBearer };
  Kind kind = Kind::kNone;
  // What a token request, or a Basic one, must carry. Empty username: anonymous token requests are granted
  // pull.
  std::string username = {};
  std::string password = {};
  std::string identity_token = {};  // accepted as refresh_token by POST, and given to no one
  absl::Duration token_ttl = absl::Minutes(5);
  bool state_expires_in = true;  // else clients have to assume 60 s
  std::string realm = {};        // replaces the own token URL in challenges
  std::string service = "test-registry";
  bool first_scope_only = false;                // of several scopes only the first is looked at
  bool refuses_many_scopes = false;             // several are a bad request
  std::vector<std::string> never_granted = {};  // "repository:name:pull"
};

struct CdnOptions {
  bool enabled = false;                   // blob GETs are redirected to the second listener
  absl::Duration ttl = absl::Minutes(5);  // of a signed URL; after it 403
  int status = 307;
  bool refuse_authorization = true;  // 400 when a request carries Authorization, as object stores answer
};

struct TestRegistryOptions {
  uint16_t port = 0;  // 0: any free one
  std::string address = "127.0.0.1";
  std::string cdn_address = "127.0.0.2";  // another host to a client
  bool referrers_api = true;
  bool control = false;  // obeys requests below /_test/ (tests/support/internal/control.h)
  AuthOptions auth = {};
  CdnOptions cdn = {};
  UploadOptions uploads = {};
};

class TestRegistry {
 public:
  // Listens on return; ends the test program when it cannot.
  explicit TestRegistry(TestRegistryOptions options = {});
  ~TestRegistry();
  TestRegistry(const TestRegistry&) = delete;
  TestRegistry& operator=(const TestRegistry&) = delete;

  // "127.0.0.1:PORT".
  std::string host() const;
  std::string cdn_host() const;
  uint16_t port() const;

  // Contents. A blob is in the repositories it was put into.
  base::Digest PutBlob(absl::string_view repository, std::string bytes);
  void PutBlobFile(absl::string_view repository, const base::Digest& digest, std::string file, uint64_t size);
  // As PutBlob, but under a digest that the bytes do not have.
  void PutBlobAs(absl::string_view repository, const base::Digest& digest, std::string bytes);
  void RemoveBlob(absl::string_view repository, const base::Digest& digest);
  // Under its digest, and under `tag` unless that is empty. Manifests with a subject are listed as referrers.
  base::Digest PutManifest(absl::string_view repository, absl::string_view tag, std::string raw,
                           absl::string_view media_type);
  // Blobs, config and manifest(s).
  void PutImage(absl::string_view repository, absl::string_view tag, const Image& image);
  void PutIndex(absl::string_view repository, absl::string_view tag, const ImageIndex& index);
  // All manifests of an OCI image layout and all its blobs (served from their files), under their tags.
  absl::Status PutLayout(absl::string_view repository, const std::string& directory);

  // Behaviour.
  void SetAuth(AuthOptions auth);
  void SetCdn(CdnOptions cdn);
  void SetReferrersApi(bool enabled);
  void SetUploads(UploadOptions uploads);
  // From now on the repository says that it has the blob, and yet takes no manifest that names it until it is
  // uploaded or mounted again.
  void MakeOrphan(absl::string_view repository, const base::Digest& digest);
  void DropUploadSessions();
  // All tokens, or signed URLs, given out so far are refused from now on.
  void RevokeTokens();
  void ExpireCdnUrls();
  // Rules are tried in order of addition.
  void AddFault(RequestMatcher matcher, FaultAction action);
  void ClearFaults();
  // Breaks (with a reset) every connection that is open now.
  void BreakConnections();

  // What happened.
  std::vector<LoggedRequest> Log() const;
  std::vector<LoggedRequest> Log(const RequestMatcher& matcher) const;
  void ClearLog();
  size_t Count(const RequestMatcher& matcher) const;
  // Waits until `count` requests that match have come in; false after kPatience.
  bool AwaitRequests(const RequestMatcher& matcher, size_t count) const;
  // Body bytes sent in answer to requests that match.
  uint64_t BodyBytes(const RequestMatcher& matcher) const;
  // How many requests for the blob covered this byte of it: 1 proves that it was fetched once.
  size_t TimesFetched(const base::Digest& digest, uint64_t blob_offset) const;
  // What is there now; nullopt: not there.
  std::optional<std::string> Blob(absl::string_view repository, const base::Digest& digest) const;
  std::optional<std::string> Manifest(absl::string_view repository, absl::string_view tag_or_digest) const;
  size_t upload_sessions() const;  // open now
  // Bytes of request bodies taken from requests that match.
  uint64_t ReceivedBytes(const RequestMatcher& matcher) const;
  size_t connections() const;  // ever accepted
  size_t open_connections() const;
  size_t token_requests() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lazyblob::support
