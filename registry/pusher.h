#pragma once

// Writing to a registry: existence by mount, upload sessions, manifests (distribution-spec 1.1, "Pushing").
// One call is one step: policy (which step next, what to retry with other bytes, when to give up chunks)
// belongs to the exporter. Steps without a body of blob bytes are retried under the context's deadline like
// reads; Patch and PutWhole are tried once per call, except that a 401 is answered with a fresh token where
// the body can still be sent from its start: always with Patch, with PutWhole for blobs up to 1 MiB and where
// the registry refuses before it says "100 Continue". Where it cannot, the next call has the fresh token.
//
// A 429 or 503 with Retry-After makes every call to that host wait, reads included. Only the first host that
// hosts.toml gives the capability "push" is pushed to. Calls block; thread-safe. Contexts are given
// Access::kPush by the class. Errors are those of Client, with a Refusal where the registry gave an answer;
// none shows a session's query.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/digest.h"
#include "oci/descriptor.h"
#include "oci/reference.h"
#include "registry/client.h"

namespace lazyblob::registry {

// One upload of one blob into one repository. A value: kept in a journal, it can be taken up by another
// process.
struct UploadSession {
  std::string location;  // absolute URL with the registry's opaque query; as good as a credential: not logged
  uint64_t offset = 0;   // bytes the registry has said it holds
  uint64_t min_chunk = 0;  // smallest chunk it takes, except the last; 0: not told; at most 128 MiB
};

// Fills `out` from its start with the next bytes of the body and returns how many, at least one; called until
// the whole length was given. Called on the thread of the call while the connection is open: it should wait
// neither for long nor beyond the context's cancellation. Its error ends the call with that error.
using BodySource = absl::FunctionRef<absl::StatusOr<size_t>(absl::Span<uint8_t> out)>;

// What the registry said when it refused: its HTTP status and the first code of its error body
// ("MANIFEST_BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", …; empty if it gave none) with the digests its details
// name, of all errors in the body. nullopt: the error is not an answer of a registry.
struct Refusal {
  int http_status = 0;
  std::string code;
  std::vector<base::Digest> digests;
};
std::optional<Refusal> RefusalOf(const absl::Status& status);

class Pusher {
 public:
  // `client` outlives it and lends connections, tokens and host gates.
  explicit Pusher(Client* client);

  // Asks for `digest` to be linked from `from` (a repository on the same host; empty: from anywhere, which
  // only some registries do). nullopt: mounted. Else the session that was opened instead, ready to be used. A
  // mount that is refused for any reason (a token that does not cover `from`, a registry that does not know
  // how) is no error: a session is started without it.
  // Cancelled while the answer is on its way, both wait for it for up to 2 s and cancel the session it names.
  absl::StatusOr<std::optional<UploadSession>> Mount(const oci::Reference& repository,
                                                     const base::Digest& digest, const std::string& from,
                                                     const CallContext& context);
  absl::StatusOr<UploadSession> Start(const oci::Reference& repository, const CallContext& context);

  // The whole blob in one PUT with Content-Length; ends the session, which must be fresh (a PUT that failed
  // may have left bytes in it). The source is not asked for a byte beyond blob.size. DataLoss: the registry
  // found another digest, or the source ended early.
  absl::Status PutWhole(const oci::Reference& repository, const UploadSession& session,
                        const oci::Descriptor& blob, BodySource body, const CallContext& context);
  // One PATCH of `bytes`, at least 2 (one byte and none are answered alike), at session->offset
  // (Content-Range); moves the session on to what the answer's Range says. DataLoss when it did not advance
  // by exactly bytes.size(): the registry drops chunks. OutOfRange: 416, ask Query. NotFound: the session is
  // gone. Unavailable without a Refusal: the connection broke, ask Query.
  absl::Status Patch(const oci::Reference& repository, UploadSession* session,
                     absl::Span<const uint8_t> bytes, const CallContext& context);
  // Ends the session: what was patched is `digest`. DataLoss: it is not. An answer that got lost is made up
  // for by asking for the blob.
  absl::Status Commit(const oci::Reference& repository, const UploadSession& session,
                      const base::Digest& digest, const CallContext& context);
  // How far the registry is: sets offset and location. NotFound: the session is gone.
  absl::Status Query(const oci::Reference& repository, UploadSession* session, const CallContext& context);
  // Best effort, for at most 10 s, even when the context is cancelled; many registries do not allow it.
  void Cancel(const oci::Reference& repository, const UploadSession& session, const CallContext& context);

  struct ManifestPut {
    base::Digest digest;
    bool subject_indexed = false;  // OCI-Subject: the registry keeps the referrers of the subject itself
  };
  // PUT by tag if the reference has one and no digest, else by digest; `raw` exactly. InvalidArgument: the
  // reference's digest is not that of `raw`. DataLoss: the registry's is another one.
  absl::StatusOr<ManifestPut> PutManifest(const oci::Reference& reference, const std::string& media_type,
                                          absl::string_view raw, const CallContext& context);

 private:
  Client& client_;
};

}  // namespace lazyblob::registry
