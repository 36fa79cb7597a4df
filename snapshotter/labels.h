#pragma once

// What the labels of a snapshot say. docs/LABELS.md lists every label, who sends it, and what is believed.
// containerd copies annotations of layers into labels, so image authors can write all of these: a claim is a
// hint where to look, and the image's manifest, fetched by digest, decides. Pure; thread-safe.

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "snapshotter/lazy_layers.h"
#include "snapshotter/snapshotter.h"

namespace lazyblob::snapshotter {

// The name under which a lazily prepared layer is committed; without it nothing is lazy.
inline constexpr char kLabelSnapshotRef[] = "containerd.io/snapshot.ref";
// Set on snapshots that were committed lazily, and on no others; a client cannot set or remove it.
inline constexpr char kLabelRemote[] = "containerd.io/snapshot/remote";

inline constexpr char kLabelDiffId[] = "containerd.io/snapshot/diff-id";
inline constexpr char kLabelCriImageRef[] = "containerd.io/snapshot/cri.image-ref";
inline constexpr char kLabelCriManifestDigest[] = "containerd.io/snapshot/cri.manifest-digest";
inline constexpr char kLabelCriLayerDigest[] = "containerd.io/snapshot/cri.layer-digest";
inline constexpr char kLabelCriImageLayers[] = "containerd.io/snapshot/cri.image-layers";
inline constexpr char kLabelStargzReference[] = "containerd.io/snapshot/remote/stargz.reference";
inline constexpr char kLabelStargzDigest[] = "containerd.io/snapshot/remote/stargz.digest";
inline constexpr char kLabelStargzLayers[] = "containerd.io/snapshot/remote/stargz.layers";
inline constexpr char kLabelUrls[] = "containerd.io/snapshot/remote/urls";
inline constexpr char kLabelUidMapping[] = "containerd.io/snapshot/uidmapping";
inline constexpr char kLabelGidMapping[] = "containerd.io/snapshot/gidmapping";

constexpr size_t kMaxLabelBytes = 4096;  // key and value together, as containerd has it
constexpr size_t kMaxLabels = 1024;      // of one snapshot, so that it fits a message
constexpr size_t kMaxClaimedUrls = 64;

// InvalidArgument names the key: empty, too long, or not UTF-8 (which gRPC could not send back).
absl::Status CheckLabels(const Labels& labels);

// The layer a Prepare with these labels is for. An empty value counts as absent.
// nullopt: they name none; WhyNoClaim tells what is missing. InvalidArgument: the reference or a digest is
// malformed; so is the Prepare. FailedPrecondition: they name a layer, but cannot be believed (the two
// families of labels disagree) or followed (a digest of another algorithm): a normal snapshot, and the
// message as the reason.
absl::StatusOr<std::optional<LayerClaim>> ParseClaim(const Labels& labels);

// One line, for labels that have a containerd.io/snapshot.ref but make no claim: what is missing, and what to
// configure so that the client sends it. Empty for all others.
std::string WhyNoClaim(const Labels& labels);

// The URLs that `remote/urls` gives for the layer, each once, in order. What these labels say of other layers
// (`remote/urls.<n>`) is not used.
std::vector<std::string> ClaimedUrls(const Labels& labels);
// Whether a layer may be fetched from there: https, neither userinfo nor query nor fragment, and the host
// ("name" or "name:port", as written in the URL) is one of `allowed_hosts`.
bool IsAllowedUrl(absl::string_view url, const std::vector<std::string>& allowed_hosts);

}  // namespace lazyblob::snapshotter
