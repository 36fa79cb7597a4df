#include "snapshotter/labels.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "oci/reference.h"

namespace lazyblob::snapshotter {
namespace {

constexpr size_t kMaxImageLayers = 512;  // more than fit a label

// The value of `key`; empty when there is none.
absl::string_view Value(const Labels& labels, const char* key) {
  auto label = labels.find(key);
  return label == labels.end() ? absl::string_view() : absl::string_view(label->second);
}

absl::Status BadLabel(absl::StatusCode code, absl::string_view key, absl::string_view why) {
  return absl::Status(code, absl::StrCat("label ", key, ": ", why));
}

// Whether `text` has the form of a digest, of whatever algorithm (OCI image-spec, descriptor.md).
bool LooksLikeDigest(absl::string_view text) {
  size_t colon = text.find(':');
  if (colon == absl::string_view::npos || colon == 0 || colon + 1 == text.size()) return false;
  auto is_algorithm = [](char c) {
    return absl::ascii_islower(static_cast<unsigned char>(c)) ||
           absl::ascii_isdigit(static_cast<unsigned char>(c)) ||
           absl::StrContains("+._-", absl::string_view(&c, 1));
  };
  auto is_encoded = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           absl::StrContains("=_-", absl::string_view(&c, 1));
  };
  return std::all_of(text.begin(), text.begin() + colon, is_algorithm) &&
         std::all_of(text.begin() + colon + 1, text.end(), is_encoded);
}

// Empty when there is no such label, or it is empty.
absl::StatusOr<base::Digest> DigestLabel(const Labels& labels, const char* key) {
  absl::string_view text = Value(labels, key);
  if (text.empty()) return base::Digest();
  absl::StatusOr<base::Digest> digest = base::Digest::Parse(text);
  if (digest.ok()) return digest;
  bool known = absl::StartsWith(text, "sha256:") || absl::StartsWith(text, "sha512:");
  if (!known && LooksLikeDigest(text)) {
    return BadLabel(
        absl::StatusCode::kFailedPrecondition, key,
        absl::StrCat("digest \"", text.substr(0, 200), "\" is of an algorithm that is not supported"));
  }
  return BadLabel(absl::StatusCode::kInvalidArgument, key, digest.status().message());
}

absl::StatusOr<std::optional<oci::Reference>> ReferenceLabel(const Labels& labels, const char* key) {
  absl::string_view text = Value(labels, key);
  if (text.empty()) return std::nullopt;
  absl::StatusOr<oci::Reference> reference = oci::ParseReference(text);
  if (!reference.ok()) return BadLabel(absl::StatusCode::kInvalidArgument, key, reference.status().message());
  return *std::move(reference);
}

// A comma-separated list that may end in the middle of a digest: what is no digest is left out.
std::vector<base::Digest> ImageLayers(absl::string_view text) {
  std::vector<base::Digest> layers;
  for (absl::string_view item : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    if (layers.size() == kMaxImageLayers) break;
    absl::StatusOr<base::Digest> digest = base::Digest::Parse(item);
    if (digest.ok()) layers.push_back(*digest);
  }
  return layers;
}

bool SameImage(const oci::Reference& a, const oci::Reference& b) {
  if (a.Name() != b.Name()) return false;
  if (a.digest || b.digest) return !a.digest || !b.digest || *a.digest == *b.digest;
  return a.tag == b.tag;
}

// What one family of labels says.
struct Family {
  std::optional<oci::Reference> reference;
  base::Digest layer;
};

absl::StatusOr<Family> ParseFamily(const Labels& labels, const char* reference_key, const char* layer_key) {
  Family family;
  ASSIGN_OR_RETURN(family.reference, ReferenceLabel(labels, reference_key));
  ASSIGN_OR_RETURN(family.layer, DigestLabel(labels, layer_key));
  return family;
}

absl::Status Disagree(const char* a, const char* b) {
  return absl::FailedPreconditionError(absl::StrCat(
      "labels ", a, " and ", b, " disagree; one of them is not the client's, so neither is followed"));
}

}  // namespace

absl::Status CheckLabels(const Labels& labels) {
  if (labels.size() > kMaxLabels) {
    return absl::InvalidArgumentError(absl::StrCat(labels.size(), " labels: more than ", kMaxLabels));
  }
  for (const auto& [key, value] : labels) {
    std::string name = base::Printable(absl::string_view(key).substr(0, 200));
    if (key.empty()) return absl::InvalidArgumentError("label with an empty key");
    if (key.size() + value.size() > kMaxLabelBytes) {
      return BadLabel(absl::StatusCode::kInvalidArgument, name,
                      absl::StrCat("key and value have ", key.size() + value.size(), " bytes, more than ",
                                   kMaxLabelBytes));
    }
    if (!base::IsUtf8(key)) return BadLabel(absl::StatusCode::kInvalidArgument, name, "the key is not UTF-8");
    if (!base::IsUtf8(value)) {
      return BadLabel(absl::StatusCode::kInvalidArgument, name, "the value is not UTF-8");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<LayerClaim>> ParseClaim(const Labels& labels) {
  absl::string_view chain = Value(labels, kLabelSnapshotRef);
  if (chain.empty()) return std::nullopt;
  ASSIGN_OR_RETURN(Family cri, ParseFamily(labels, kLabelCriImageRef, kLabelCriLayerDigest));
  ASSIGN_OR_RETURN(Family stargz, ParseFamily(labels, kLabelStargzReference, kLabelStargzDigest));
  ASSIGN_OR_RETURN(base::Digest manifest, DigestLabel(labels, kLabelCriManifestDigest));
  ASSIGN_OR_RETURN(base::Digest diff_id, DigestLabel(labels, kLabelDiffId));
  if (cri.reference && stargz.reference && !SameImage(*cri.reference, *stargz.reference)) {
    return Disagree(kLabelCriImageRef, kLabelStargzReference);
  }
  if (!cri.layer.empty() && !stargz.layer.empty() && cri.layer != stargz.layer) {
    return Disagree(kLabelCriLayerDigest, kLabelStargzDigest);
  }

  // One family is followed as a whole; the other may only fill in a reference.
  const bool follow_cri = !cri.layer.empty();
  const Family& followed = follow_cri ? cri : stargz;
  const Family& other = follow_cri ? stargz : cri;
  const std::optional<oci::Reference>& reference = followed.reference ? followed.reference : other.reference;
  if (followed.layer.empty() || !reference) return std::nullopt;
  LayerClaim claim;
  claim.reference = reference->ToString();
  claim.layer = followed.layer;
  if (follow_cri) claim.manifest = manifest;
  claim.chain = std::string(chain);
  claim.diff_id = diff_id;
  claim.image_layers = ImageLayers(Value(labels, follow_cri ? kLabelCriImageLayers : kLabelStargzLayers));
  claim.urls = ClaimedUrls(labels);
  return claim;
}

std::string WhyNoClaim(const Labels& labels) {
  if (Value(labels, kLabelSnapshotRef).empty()) return "";
  bool reference = !Value(labels, kLabelCriImageRef).empty() || !Value(labels, kLabelStargzReference).empty();
  bool layer = !Value(labels, kLabelCriLayerDigest).empty() || !Value(labels, kLabelStargzDigest).empty();
  if (reference && layer) return "";
  std::string missing;
  if (!reference) absl::StrAppend(&missing, kLabelCriImageRef, " (or ", kLabelStargzReference, ")");
  if (!layer) {
    absl::StrAppend(&missing, reference ? "" : " and ", kLabelCriLayerDigest, " (or ", kLabelStargzDigest,
                    ")");
  }
  return absl::StrCat("the client sent no label ", missing,
                      ", so the layer cannot be lazy; make containerd send them: "
                      "disable_snapshot_annotations = false for CRI, ",
                      "enable_remote_snapshot_annotations = \"true\" in [proxy_plugins.NAME.exports] for its "
                      "transfer service, ",
                      "or pull with a client that does");
}

std::vector<std::string> ClaimedUrls(const Labels& labels) {
  std::vector<std::string> urls;
  for (absl::string_view url : absl::StrSplit(Value(labels, kLabelUrls), ',', absl::SkipEmpty())) {
    if (urls.size() == kMaxClaimedUrls) break;
    if (std::find(urls.begin(), urls.end(), url) == urls.end()) urls.emplace_back(url);
  }
  return urls;
}

bool IsAllowedUrl(absl::string_view url, const std::vector<std::string>& allowed_hosts) {
  // A query may be a signature: a credential.
  const bool plain = std::all_of(url.begin(), url.end(), [](char c) {
    return c > ' ' && c < 0x7F && !absl::StrContains("\\#?", absl::string_view(&c, 1));
  });
  if (!plain || !absl::ConsumePrefix(&url, "https://")) return false;
  const absl::string_view host = url.substr(0, url.find('/'));
  if (host.empty() || absl::StrContains(host, "@")) return false;
  return std::any_of(allowed_hosts.begin(), allowed_hosts.end(),
                     [&](const std::string& allowed) { return absl::EqualsIgnoreCase(allowed, host); });
}

}  // namespace lazyblob::snapshotter
