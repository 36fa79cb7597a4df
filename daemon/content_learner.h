#pragma once

// The lazy blobs of the content service, put together: containerd as its client sees it, registries, the
// content store; and what the snapshotter wants to know of them.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "contentservice/content.h"
#include "contentservice/lazy_blobs.h"
#include "contentstore/content_store.h"
#include "daemon/containerd_namespaces.h"
#include "registry/client.h"
#include "snapshotter/lazy_layers.h"

namespace lazyblob::daemon {

struct ContentLearnerOptions {
  std::string root;        // of the content service; made 0700
  std::string containerd;  // its socket; nobody need listen there yet
  std::string hosts_path;  // directories of hosts.toml, ':' between them
  contentstore::ContentStore* store = nullptr;
  contentstore::SourceFactory sources;
  registry::Client* client = nullptr;
  std::function<void(absl::string_view)> log = [](absl::string_view) {};
};

// Thread-safe.
class ContentLearner final : public snapshotter::LearnedChains {
 public:
  // All of `options` outlives it.
  static absl::StatusOr<std::unique_ptr<ContentLearner>> Create(ContentLearnerOptions options);
  ~ContentLearner() override { Stop(); }

  // For ContentOptions::lazy.
  contentservice::LazyBlobs* blobs() { return blobs_.get(); }
  // Once, with the store that was opened with blobs(); to be stopped before that ends.
  void Start(contentservice::Content* content) { blobs_->Start(content); }
  void Stop();

  std::vector<snapshotter::LayerClaim> ClaimsOf(const std::string& chain, const base::Digest& diff_id,
                                                const std::shared_ptr<base::CancelToken>& cancel) override;
  void Prepared(const std::string& key, const snapshotter::LayerClaim& claim) override;

  // Hosts called so, without the port: those of image names and of hosts.toml directories.
  std::vector<std::string> HostsNamed(const std::string& name);

 private:
  explicit ContentLearner(ContentLearnerOptions options)
      : options_(std::move(options)), namespaces_(options_.containerd) {}
  absl::Status HasManifest(const std::string& reference, const std::shared_ptr<base::CancelToken>& cancel);

  const ContentLearnerOptions options_;
  ContainerdNamespaces namespaces_;
  std::unique_ptr<contentservice::LearnedBlobs> blobs_;
};

}  // namespace lazyblob::daemon
