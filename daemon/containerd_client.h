#pragma once

// containerd as its clients see it (containerd 1.6 and later, gRPC over a unix socket): content, images,
// leases, snapshots, diffs, plugins. Errors are containerd's codes; every message names the call and the
// socket.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/cancel.h"
#include "base/digest.h"
#include "oci/descriptor.h"

namespace lazyblob::daemon {

struct ContainerdMount {
  std::string type;
  std::string source;
  std::string target;
  std::vector<std::string> options;
};

struct ContainerdPlugin {
  std::string type;  // "io.containerd.snapshotter.v1"
  std::string id;
  std::map<std::string, std::string> exports;
  std::vector<std::string> capabilities;
  std::string init_error;  // empty: usable
};

// Thread-safe, except UseLease. Cancelling ends a call that waits, with kCancelled.
class ContainerdClient {
 public:
  using Labels = std::map<std::string, std::string>;
  // One piece of a blob, in order.
  using ContentSink = absl::FunctionRef<absl::Status(absl::string_view)>;
  // Gives the blob's bytes from `offset` on to `sink`.
  using ContentSource = absl::FunctionRef<absl::Status(uint64_t offset, ContentSink sink)>;

  // Unavailable: nobody listens on `socket`. InvalidArgument: `name_space` is none that containerd takes.
  // `cancel` may be null.
  static absl::StatusOr<std::unique_ptr<ContainerdClient>> Connect(const std::string& socket,
                                                                   const std::string& name_space,
                                                                   std::shared_ptr<base::CancelToken> cancel);
  virtual ~ContainerdClient() = default;

  virtual absl::StatusOr<std::string> Version() = 0;
  virtual absl::StatusOr<std::vector<ContainerdPlugin>> Plugins() = 0;

  // Of all clients.
  virtual absl::StatusOr<std::vector<std::string>> Namespaces() = 0;

  // A lease that containerd drops by itself after `lifetime`; returns its id.
  virtual absl::StatusOr<std::string> CreateLease(absl::Duration lifetime) = 0;
  // Later calls are made under this lease; empty: none.
  virtual void UseLease(const std::string& id) = 0;
  // NotFound is success.
  virtual absl::Status DeleteLease(const std::string& id) = 0;

  // Makes the blob present with (at least) these labels. containerd checks size and digest. Whoever writes
  // the same `ref` meanwhile is waited for; what was written of it before is not asked of `source` again.
  virtual absl::Status WriteContent(const std::string& ref, const oci::Descriptor& blob, const Labels& labels,
                                    ContentSource source) = 0;
  // NotFound: no such blob.
  virtual absl::StatusOr<Labels> ContentLabels(const base::Digest& blob) = 0;
  virtual absl::Status SetContentLabels(const base::Digest& blob, const Labels& labels) = 0;
  // NotFound is success.
  virtual absl::Status DeleteContent(const base::Digest& blob) = 0;

  virtual absl::StatusOr<std::vector<std::string>> ImageNames() = 0;
  // Creates the record, or points the existing one at `target`, its labels kept.
  virtual absl::Status PutImage(const std::string& name, const oci::Descriptor& target) = 0;

  virtual absl::StatusOr<std::vector<ContainerdMount>> PrepareSnapshot(const std::string& snapshotter,
                                                                       const std::string& key,
                                                                       const std::string& parent,
                                                                       const Labels& labels) = 0;
  // The snapshot's labels.
  virtual absl::StatusOr<Labels> StatSnapshot(const std::string& snapshotter, const std::string& key) = 0;
  virtual absl::Status CommitSnapshot(const std::string& snapshotter, const std::string& name,
                                      const std::string& key, const Labels& labels) = 0;
  virtual absl::Status RemoveSnapshot(const std::string& snapshotter, const std::string& key) = 0;

  // Unpacks a layer that is in the content store; returns the digest of the uncompressed layer.
  virtual absl::StatusOr<base::Digest> ApplyDiff(const oci::Descriptor& layer,
                                                 const std::vector<ContainerdMount>& mounts) = 0;
};

}  // namespace lazyblob::daemon
