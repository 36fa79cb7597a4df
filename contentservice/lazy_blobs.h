#pragma once

// The lazy blobs of the content store, learned from what is committed to it: the layers of a manifest are
// known as soon as containerd's labels tell which registry the manifest is from. docs/CONTENT_SERVICE.md,
// "Lazy blobs", tells the life of one.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/cancel.h"
#include "base/clock.h"
#include "contentservice/content.h"
#include "contentservice/namespaces.h"
#include "contentstore/content_store.h"

namespace lazyblob::contentservice {

struct LearnedBlobsOptions {
  std::string root;  // has lazy.db; exists
  contentstore::ContentStore* store = nullptr;
  Namespaces* namespaces = nullptr;
  contentstore::SourceFactory sources;  // "registry:<host>/<name>"
  // Hosts ("name[:port]") that are known to be called so: containerd's labels leave the port out. Blocks.
  std::function<std::vector<std::string>(const std::string& host_name)> hosts;
  // Whether a registry has the manifest "<host>/<name>@<digest>"; errors of registry::Client. Blocks.
  std::function<absl::Status(const std::string& reference, const std::shared_ptr<base::CancelToken>& cancel)>
      check;
  absl::Duration find_patience = absl::Milliseconds(8);  // containerd's database is locked meanwhile
  absl::Duration chain_patience = absl::Seconds(10);     // of a Prepare
  absl::Duration learn_patience = absl::Seconds(5);      // for labels after a commit
  absl::Duration hold_patience = absl::Minutes(5);       // for a namespace to hold what it was told of
  const base::Clock* clock = &base::SystemClock();
  std::function<void(absl::string_view)> log = [](absl::string_view) {};  // one line each; any thread
};

// A layer that makes a chain, by what an image says. Without a reference no source of it is known.
struct ChainLayer {
  std::string reference;  // "host/name@digest" of the manifest
  base::Digest manifest;
  base::Digest layer;
};

// Thread-safe. Labels are read, and blobs held and dropped in containerd's namespaces, on threads of its own.
class LearnedBlobs : public LazyBlobs {
 public:
  // Those that are held are known on return. All of `options` outlives it.
  static absl::StatusOr<std::unique_ptr<LearnedBlobs>> Open(LearnedBlobsOptions options);

  // Learns again what the manifests in `content` say; `content` is read until Stop.
  virtual void Start(Content* content) = 0;
  // Waits for the calls it has going; makes no more.
  virtual void Stop() = 0;

  // The layers that make `chain` (of this diffID unless it is empty), one per layer digest. Waits at most
  // `chain_patience` for what is being learned.
  virtual std::vector<ChainLayer> WithChain(const base::Digest& chain, const base::Digest& diff_id,
                                            const std::shared_ptr<base::CancelToken>& cancel) = 0;
  // No client will write `layer` into `name_space`, though an image there has it: it is held there, later.
  virtual void HoldLater(const std::string& name_space, const base::Digest& layer) = 0;
};

}  // namespace lazyblob::contentservice
