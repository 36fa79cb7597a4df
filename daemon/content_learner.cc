#include "daemon/content_learner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "contentservice/learned_images.h"
#include "oci/reference.h"

namespace lazyblob::daemon {
namespace {

constexpr absl::Duration kManifestPatience = absl::Seconds(5);

// The host that a directory of hosts.toml is for, "name", "name:port" or "name_port_".
std::string HostOfDirectory(const std::string& name) {
  if (!absl::EndsWith(name, "_")) return name;
  const size_t before_port = name.rfind('_', name.size() - 2);
  if (before_port == std::string::npos || before_port == 0) return name;
  return absl::StrCat(name.substr(0, before_port), ":",
                      name.substr(before_port + 1, name.size() - before_port - 2));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ContentLearner>> ContentLearner::Create(ContentLearnerOptions options) {
  RETURN_IF_ERROR(base::MakeDirectories(options.root));
  std::unique_ptr<ContentLearner> learner(new ContentLearner(std::move(options)));
  contentservice::LearnedBlobsOptions blobs;
  blobs.root = learner->options_.root;
  blobs.store = learner->options_.store;
  blobs.sources = learner->options_.sources;
  blobs.log = learner->options_.log;
  blobs.namespaces = &learner->namespaces_;
  blobs.hosts = [it = learner.get()](const std::string& name) { return it->HostsNamed(name); };
  blobs.check = [it = learner.get()](const std::string& reference,
                                     const std::shared_ptr<base::CancelToken>& cancel) {
    return it->HasManifest(reference, cancel);
  };
  ASSIGN_OR_RETURN(learner->blobs_, contentservice::LearnedBlobs::Open(std::move(blobs)));
  return learner;
}

void ContentLearner::Stop() {
  namespaces_.Cancel();
  if (blobs_ != nullptr) blobs_->Stop();
}

std::vector<std::string> ContentLearner::HostsNamed(const std::string& name) {
  std::vector<std::string> hosts;
  const auto add = [&](const std::string& host) {
    if (contentservice::HostName(host) != name) return;
    if (std::find(hosts.begin(), hosts.end(), host) == hosts.end()) hosts.push_back(host);
  };
  for (const absl::string_view directory : absl::StrSplit(options_.hosts_path, ':', absl::SkipEmpty())) {
    const absl::StatusOr<std::vector<std::string>> names = base::ListDirectory(std::string(directory));
    if (!names.ok()) continue;
    for (const std::string& entry : *names) add(HostOfDirectory(entry));
  }
  if (const absl::StatusOr<std::vector<std::string>> images = namespaces_.ImageNames(); images.ok()) {
    for (const std::string& image : *images) add(image.substr(0, image.find('/')));
  }
  return hosts;
}

absl::Status ContentLearner::HasManifest(const std::string& reference,
                                         const std::shared_ptr<base::CancelToken>& cancel) {
  ASSIGN_OR_RETURN(const oci::Reference parsed, oci::ParseReference(reference));
  registry::CallContext context;
  context.deadline = base::SystemClock().Monotonic() + kManifestPatience;
  context.cancel = cancel;
  return options_.client->HeadManifest(parsed, context).status();
}

std::vector<snapshotter::LayerClaim> ContentLearner::ClaimsOf(
    const std::string& chain, const base::Digest& diff_id, const std::shared_ptr<base::CancelToken>& cancel) {
  std::vector<snapshotter::LayerClaim> claims;
  // Some clients name layers otherwise than by chain id.
  const absl::StatusOr<base::Digest> digest = base::Digest::Parse(chain);
  if (!digest.ok()) return claims;
  for (const contentservice::ChainLayer& layer : blobs_->WithChain(*digest, diff_id, cancel)) {
    snapshotter::LayerClaim claim;
    claim.reference = layer.reference;
    claim.manifest = layer.manifest;
    claim.layer = layer.layer;
    claim.chain = chain;
    claim.diff_id = diff_id;
    claims.push_back(std::move(claim));
  }
  return claims;
}

void ContentLearner::Prepared(const std::string& key, const snapshotter::LayerClaim& claim) {
  blobs_->HoldLater(contentservice::NamespaceOf(key), claim.layer);
}

}  // namespace lazyblob::daemon
