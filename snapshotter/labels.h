#pragma once

// What the labels of a snapshot say. docs/LABELS.md lists every label, who sends it, and what is believed.
// containerd copies annotations of layers into labels, so image authors can write all of these: a claim is a
// hint where to look, and the image's manifest, fetched by digest, decides. Pure; thread-safe.

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "snapshotter/lazy_layers.h"
#include "snapshotter/snapshotter.h"

namespace lazyblob::snapshotter {

// The name under which a lazily prepared layer is committed; without it nothing is lazy.
inline constexpr char kLabelSnapshotRef[] = "containerd.io/snapshot.ref";
// Set on snapshots that were committed lazily, and on no others; never taken from a client's Prepare or View.
inline constexpr char kLabelRemote[] = "containerd.io/snapshot/remote";

inline constexpr char kLabelDiffId[] = "containerd.io/snapshot/diff-id";
inline constexpr char kLabelParentChainId[] = "containerd.io/snapshot/parent-chain-id";
inline constexpr char kLabelCriImageRef[] = "containerd.io/snapshot/cri.image-ref";
inline constexpr char kLabelCriManifestDigest[] = "containerd.io/snapshot/cri.manifest-digest";
inline constexpr char kLabelCriLayerDigest[] = "containerd.io/snapshot/cri.layer-digest";
inline constexpr char kLabelCriImageLayers[] = "containerd.io/snapshot/cri.image-layers";
inline constexpr char kLabelStargzReference[] = "containerd.io/snapshot/remote/stargz.reference";
inline constexpr char kLabelStargzDigest[] = "containerd.io/snapshot/remote/stargz.digest";
inline constexpr char kLabelStargzLayers[] = "containerd.io/snapshot/remote/stargz.layers";
inline constexpr char kLabelStargzTocDigest[] = "containerd.io/snapshot/stargz/toc.digest";
inline constexpr char kLabelUrls[] = "containerd.io/snapshot/remote/urls";
inline constexpr char kLabelUidMapping[] = "containerd.io/snapshot/uidmapping";
inline constexpr char kLabelGidMapping[] = "containerd.io/snapshot/gidmapping";

constexpr size_t kMaxLabelBytes = 4096;  // key and value together, as containerd has it
constexpr size_t kMaxLabels = 4096;      // of one snapshot

// InvalidArgument names the key: empty, too long, or not UTF-8 (which gRPC could not send back).
absl::Status CheckLabels(const Labels& labels);

// The layer a Prepare with these labels is for. nullopt: they name none (WhyNoClaim tells what is missing).
// InvalidArgument: they name one, and a digest or the reference is malformed, or the two families of labels
// disagree on the reference or the layer; the caller then prepares a normal snapshot, as for nullopt, and
// says why.
absl::StatusOr<std::optional<LayerClaim>> ParseClaim(const Labels& labels);

// One line, for a Prepare without a claim that has a containerd.io/snapshot.ref: which labels are missing,
// and what to configure so that the client sends them. Empty when nothing is missing, or there is no such
// label.
std::string WhyNoClaim(const Labels& labels);

// The https URLs of `remote/urls` and `remote/urls.<n>` whose host ("name[:port]") is in `allowed_hosts`,
// without userinfo or fragment, each once, in order; all others are left out. At most 64.
std::vector<std::string> ClaimedUrls(const Labels& labels, const std::vector<std::string>& allowed_hosts);

}  // namespace lazyblob::snapshotter
