#pragma once

// `lazyblob pull`: what containerd's own client does in a pull, except that layers are offered to the
// snapshotter before anything of them is fetched. Manifests and config go into the content store under a
// lease, each layer is prepared bottom up, one that cannot be lazy is fetched and unpacked, and the image
// record comes last: a pull that dies leaves only what containerd's garbage collection removes.
//
// Labels are those of containerd's client (core/images, core/unpack, pkg/snapshotters), so that its tools
// see an image like any other.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/cancel.h"
#include "base/digest.h"
#include "daemon/containerd_client.h"
#include "daemon/image_resolver.h"
#include "oci/descriptor.h"
#include "oci/reference.h"
#include "registry/client.h"

namespace lazyblob::daemon {

struct PullOptions {
  oci::Reference reference;
  oci::Platform platform;
  std::string snapshotter = "lazyblob";
};

struct PullParts {
  registry::Client* client = nullptr;
  ContainerdClient* containerd = nullptr;
  registry::CallContext call;  // credentials, cancellation
  // Makes the daemon work on all layers of the image at once; `reference` names it by digest. Not required:
  // its failure is a warning, for the snapshotter does the same layer by layer. May be empty.
  std::function<absl::Status(const std::string& reference)> prepare;
  // A layer that containerd gets whole. May be empty.
  std::function<void(const oci::Descriptor& layer, uint64_t received)> progress;
  std::function<void(absl::string_view line)> warn;  // may be empty
};

struct PulledLayer {
  base::Digest digest;
  std::string chain_id;
  bool lazy = false;  // else unpacked: now, or by an earlier pull
};

struct PulledImage {
  std::string name;        // of the record in containerd
  oci::Descriptor target;  // what the record points at: index or manifest
  base::Digest manifest;
  std::vector<PulledLayer> layers;  // bottom first
};

// Blocks; idempotent; any number may run at once, for the same image too.
absl::StatusOr<PulledImage> Pull(const PullOptions& options, const PullParts& parts);

// {"name", "target", "manifest_digest", "layers": [{"digest", "chain_id", "lazy"}]}
nlohmann::json ToJson(const PulledImage& image);

// The labels by which an index or manifest keeps what it names: containerd.io/gc.ref.content.*.
absl::StatusOr<std::map<std::string, std::string>> ChildLabels(const ImageDocument& document);
// OCI chain ids, bottom first.
std::vector<std::string> ChainIds(const std::vector<base::Digest>& diff_ids);
// `value` of a label containerd.io/distribution.source.<host> with `repository` in its sorted list.
std::string AppendSource(absl::string_view value, absl::string_view repository);
// What a Prepare of layer `index` is told of it.
std::map<std::string, std::string> PrepareLabels(const ResolvedImage& image, const std::string& name,
                                                 size_t index, const std::string& chain_id);

}  // namespace lazyblob::daemon
