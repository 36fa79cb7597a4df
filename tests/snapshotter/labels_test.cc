#include "snapshotter/labels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace lazyblob::snapshotter {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

base::Digest D(absl::string_view text) { return base::Digest::Of(text); }
std::string S(absl::string_view text) { return D(text).ToString(); }

Labels Cri() {
  return {{"containerd.io/snapshot.ref", "sha256:chain"},
          {"containerd.io/snapshot/cri.image-ref", "registry.example:5000/app:1"},
          {"containerd.io/snapshot/cri.manifest-digest", S("manifest")},
          {"containerd.io/snapshot/cri.layer-digest", S("layer")},
          {"containerd.io/snapshot/cri.image-layers", absl::StrCat(S("layer"), ",", S("next"))},
          {"containerd.io/snapshot/diff-id", S("diff")}};
}

Labels Stargz() {
  return {{"containerd.io/snapshot.ref", "k4lj3"},
          {"containerd.io/snapshot/remote/stargz.reference", "docker.io/library/debian:12"},
          {"containerd.io/snapshot/remote/stargz.digest", S("layer")},
          {"containerd.io/snapshot/remote/stargz.layers", S("layer")}};
}

LayerClaim Claim(const Labels& labels) {
  absl::StatusOr<std::optional<LayerClaim>> claim = ParseClaim(labels);
  EXPECT_TRUE(claim.ok()) << claim.status();
  if (!claim.ok()) return {};
  EXPECT_TRUE(claim->has_value());
  return claim->value_or(LayerClaim());
}

bool NoClaim(const Labels& labels) {
  absl::StatusOr<std::optional<LayerClaim>> claim = ParseClaim(labels);
  return claim.ok() && !claim->has_value();
}

TEST(ClaimTest, ReadsTheCriFamily) {
  LayerClaim claim = Claim(Cri());
  EXPECT_EQ(claim.reference, "registry.example:5000/app:1");
  EXPECT_EQ(claim.layer, D("layer"));
  EXPECT_EQ(claim.manifest, D("manifest"));
  EXPECT_EQ(claim.chain, "sha256:chain");
  EXPECT_EQ(claim.diff_id, D("diff"));
  EXPECT_THAT(claim.image_layers, ElementsAre(D("layer"), D("next")));
}

TEST(ClaimTest, ReadsTheStargzFamilyAndKeepsTheNameOpaque) {
  LayerClaim claim = Claim(Stargz());
  EXPECT_EQ(claim.reference, "docker.io/library/debian:12");
  EXPECT_EQ(claim.layer, D("layer"));
  EXPECT_TRUE(claim.manifest.empty());
  EXPECT_TRUE(claim.diff_id.empty());
  EXPECT_EQ(claim.chain, "k4lj3");
}

TEST(ClaimTest, ReadsWhatBuildKitSends) {
  Labels labels = Stargz();
  labels["containerd.io/snapshot/cri.image-ref"] = "docker.io/library/debian:12";
  labels["containerd.io/snapshot/stargz/toc.digest"] = "";
  labels["containerd.io/snapshot/remote/stargz.reference.8fz2"] = "evil.example/other:1";
  labels["containerd.io/snapshot/remote/stargz.digest.8fz2"] = S("other");
  labels["containerd.io/snapshot/remote/stargz.session.0.8fz2"] = "session-id";
  LayerClaim claim = Claim(labels);
  EXPECT_EQ(claim.reference, "docker.io/library/debian:12");
  EXPECT_EQ(claim.layer, D("layer"));
}

TEST(ClaimTest, AReferenceOfTheOtherFamilyFillsAGap) {
  Labels labels = Stargz();
  labels.erase("containerd.io/snapshot/remote/stargz.reference");
  labels["containerd.io/snapshot/cri.image-ref"] = "docker.io/library/debian:12";
  EXPECT_EQ(Claim(labels).reference, "docker.io/library/debian:12");
}

TEST(ClaimTest, ShortReferencesComeOutWhole) {
  Labels labels = Cri();
  labels["containerd.io/snapshot/cri.image-ref"] = "debian";
  EXPECT_EQ(Claim(labels).reference, "docker.io/library/debian:latest");
}

TEST(ClaimTest, FamiliesThatDisagreeAreNotFollowed) {
  Labels labels = Cri();
  labels["containerd.io/snapshot/remote/stargz.reference"] = "internal.example/secret:1";
  absl::Status status = ParseClaim(labels).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("cri.image-ref"), HasSubstr("stargz.reference")));

  labels = Cri();
  labels["containerd.io/snapshot/remote/stargz.digest"] = S("another");
  EXPECT_EQ(ParseClaim(labels).status().code(), absl::StatusCode::kFailedPrecondition);

  labels = Cri();
  labels["containerd.io/snapshot/remote/stargz.reference"] = "registry.example:5000/app:2";
  EXPECT_EQ(ParseClaim(labels).status().code(), absl::StatusCode::kFailedPrecondition) << "another tag";
}

TEST(ClaimTest, TheSameImageWrittenDifferentlyIsNoDisagreement) {
  Labels labels = Cri();
  labels["containerd.io/snapshot/cri.image-ref"] = "docker.io/library/debian:12";
  labels["containerd.io/snapshot/remote/stargz.reference"] = "debian:12";
  EXPECT_EQ(Claim(labels).reference, "docker.io/library/debian:12");
  labels["containerd.io/snapshot/remote/stargz.reference"] = absl::StrCat("debian:12@", S("manifest"));
  EXPECT_EQ(Claim(labels).reference, "docker.io/library/debian:12");
}

TEST(ClaimTest, OneFamilyIsFollowedAsAWhole) {
  Labels labels = Stargz();  // an annotation must not choose the manifest of a client that told none
  labels["containerd.io/snapshot/cri.manifest-digest"] = S("chosen by the author");
  labels["containerd.io/snapshot/cri.image-layers"] = S("chosen by the author");
  LayerClaim claim = Claim(labels);
  EXPECT_TRUE(claim.manifest.empty());
  EXPECT_THAT(claim.image_layers, ElementsAre(D("layer")));
}

TEST(ClaimTest, MalformedDigestsAndReferencesAreErrorsThatNameTheLabel) {
  for (const char* key :
       {"containerd.io/snapshot/cri.manifest-digest", "containerd.io/snapshot/cri.layer-digest",
        "containerd.io/snapshot/diff-id", "containerd.io/snapshot/remote/stargz.digest"}) {
    for (const char* value : {"x", "sha256:", "sha256:abc", ":abc",
                              "sha256:"
                              "zz",
                              "sha256:\n", "SHA256:ab"}) {
      Labels labels = Cri();
      labels[key] = value;
      absl::Status status = ParseClaim(labels).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key << " " << value;
      EXPECT_THAT(std::string(status.message()), HasSubstr(key));
    }
  }
  for (const char* key :
       {"containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/remote/stargz.reference"}) {
    for (const char* value :
         {"host/UPPER:1", "https://host/name", "host/name:bad tag", "host/name@sha256:1"}) {
      Labels labels = Cri();
      labels[key] = value;
      absl::Status status = ParseClaim(labels).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << key << " " << value;
      EXPECT_THAT(std::string(status.message()), HasSubstr(key));
    }
  }
}

TEST(ClaimTest, AnAlgorithmThatIsNotSupportedIsNotLazyRatherThanAnError) {
  Labels labels = Cri();
  labels["containerd.io/snapshot/cri.layer-digest"] = "blake3:0123abcd";
  absl::Status status = ParseClaim(labels).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("algorithm"));
}

TEST(ClaimTest, ACutListOfLayersGivesTheWholeOnes) {
  Labels labels = Cri();
  labels["containerd.io/snapshot/cri.image-layers"] =
      absl::StrCat(S("layer"), ",", S("b"), ",sha256:01234,,", S("c").substr(0, 70));
  EXPECT_THAT(Claim(labels).image_layers, ElementsAre(D("layer"), D("b")));
  labels["containerd.io/snapshot/cri.image-layers"] = "no digests at all";
  EXPECT_THAT(Claim(labels).image_layers, IsEmpty());
}

TEST(ClaimTest, WithoutNameReferenceOrDigestThereIsNoClaim) {
  for (const char* key : {"containerd.io/snapshot.ref", "containerd.io/snapshot/cri.image-ref",
                          "containerd.io/snapshot/cri.layer-digest"}) {
    Labels labels = Cri();
    labels.erase(key);
    EXPECT_TRUE(NoClaim(labels)) << key;
    labels[key] = "";
    EXPECT_TRUE(NoClaim(labels)) << key;
  }
  EXPECT_TRUE(NoClaim({}));
}

TEST(ClaimTest, LabelsThatWouldTurnOffChecksChangeNothing) {
  Labels labels = Cri();
  const LayerClaim before = Claim(labels);
  labels["containerd.io/snapshot/remote/stargz.skipverify"] = "true";
  labels["containerd.io/snapshot/remote/stargz.prefetch"] = "99999999999";
  labels["containerd.io/snapshot/stargz/toc.digest"] = "not a digest";
  labels["containerd.io/snapshot/remote"] = "remote snapshot";
  labels["containerd.io/snapshot/uidmapping"] = "junk";
  const LayerClaim after = Claim(labels);
  EXPECT_EQ(after.reference, before.reference);
  EXPECT_EQ(after.layer, before.layer);
  EXPECT_EQ(after.manifest, before.manifest);
}

TEST(WhyNoClaimTest, SaysWhatIsMissingAndWhatToConfigure) {
  Labels labels = {{"containerd.io/snapshot.ref", "sha256:c"}};
  EXPECT_THAT(WhyNoClaim(labels), AllOf(HasSubstr("cri.image-ref"), HasSubstr("cri.layer-digest"),
                                        HasSubstr("enable_remote_snapshot_annotations"),
                                        HasSubstr("disable_snapshot_annotations")));
  labels["containerd.io/snapshot/cri.image-ref"] = "debian";
  EXPECT_THAT(WhyNoClaim(labels), AllOf(HasSubstr("layer-digest"), testing::Not(HasSubstr("image-ref"))));
  EXPECT_EQ(WhyNoClaim(labels).find('\n'), std::string::npos);
}

TEST(WhyNoClaimTest, IsSilentForClaimsAndForOrdinarySnapshots) {
  EXPECT_EQ(WhyNoClaim(Cri()), "");
  EXPECT_EQ(WhyNoClaim(Stargz()), "");
  EXPECT_EQ(WhyNoClaim({}), "");
  EXPECT_EQ(WhyNoClaim({{"containerd.io/snapshot/cri.image-ref", "debian"}}), "");
}

TEST(CheckLabelsTest, BoundsKeyAndValueTogether) {
  EXPECT_TRUE(CheckLabels({{"k", std::string(4095, 'v')}}).ok());
  absl::Status status = CheckLabels({{"some.key", std::string(4089, 'v')}});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("some.key"), HasSubstr("4097")));
  EXPECT_TRUE(CheckLabels({}).ok());
  EXPECT_TRUE(CheckLabels({{"empty", ""}}).ok());
  EXPECT_FALSE(CheckLabels({{"", "v"}}).ok());
}

TEST(CheckLabelsTest, WantsUtf8) {
  EXPECT_TRUE(CheckLabels({{"k", "\xE7\x89\x9B"}}).ok());
  EXPECT_EQ(CheckLabels({{"k", "\xff"}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CheckLabels({{"\xed\xa0\x80", "v"}}).code(), absl::StatusCode::kInvalidArgument);
}

TEST(CheckLabelsTest, BoundsTheirNumber) {
  Labels labels;
  for (size_t i = 0; i < kMaxLabels; ++i) labels[absl::StrCat("k", i)] = "v";
  EXPECT_TRUE(CheckLabels(labels).ok());
  labels["one more"] = "v";
  EXPECT_EQ(CheckLabels(labels).code(), absl::StatusCode::kInvalidArgument);
}

TEST(ClaimedUrlsTest, AreInTheClaimWhoeverMadeIt) {
  Labels labels = Stargz();
  EXPECT_THAT(Claim(labels).urls, IsEmpty());
  labels[kLabelUrls] = "https://a/x,ftp://b/y";
  EXPECT_THAT(Claim(labels).urls, ElementsAre("https://a/x", "ftp://b/y"));
}

TEST(ClaimedUrlsTest, AreThoseOfThisLayerEachOnce) {
  const char* key = "containerd.io/snapshot/remote/urls";
  EXPECT_THAT(ClaimedUrls({{key, "https://a/x,,http://b/y,https://a/x"}}),
              ElementsAre("https://a/x", "http://b/y"));
  EXPECT_THAT(ClaimedUrls({{key, ""}}), IsEmpty());
  EXPECT_THAT(ClaimedUrls({{"containerd.io/snapshot/remote/urls.1", "https://cdn.example/a"}}), IsEmpty());
  std::string many;
  for (size_t i = 0; i < 2 * kMaxClaimedUrls; ++i) absl::StrAppend(&many, i == 0 ? "" : ",", "u", i);
  EXPECT_EQ(ClaimedUrls({{key, many}}).size(), kMaxClaimedUrls);
}

TEST(IsAllowedUrlTest, OnlyHttpsOfConfiguredHosts) {
  const std::vector<std::string> hosts = {"cdn.example", "other.example:8443"};
  for (const char* good :
       {"https://cdn.example/a", "https://other.example:8443/b@c", "https://CDN.example"}) {
    EXPECT_TRUE(IsAllowedUrl(good, hosts)) << good;
    EXPECT_FALSE(IsAllowedUrl(good, {})) << good;
  }
  for (const char* bad :
       {"http://cdn.example/a", "https://evil.example/a", "https://user@cdn.example/a",
        "https://cdn.example@evil/", "https://cdn.example.evil/a", "https://cdn.example:444/a",
        "https://cdn.example\\@evil/", "https:///a", "https://cdn.example/a#b", "https://cdn.example/a b",
        "https://cdn.example\t/", "file:///etc/passwd", "HTTPS://cdn.example/a", "https://other.example/a",
        "https://cdn.example/a?signature=x", "https://cdn.example?x", ""}) {
    EXPECT_FALSE(IsAllowedUrl(bad, hosts)) << bad;
  }
}

}  // namespace
}  // namespace lazyblob::snapshotter
