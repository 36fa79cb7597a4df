#include "oci/index_merge.h"

#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "oci/manifest.h"
#include "oci/manifest_writer.h"

namespace lazyblob::oci {
namespace {

Descriptor For(const std::string& platform, const std::string& content) {
  Descriptor descriptor = DescriptorOf(content, kMediaTypeOciManifest);
  descriptor.platform = ParsePlatform(platform).value();
  return descriptor;
}

Descriptor About(const Descriptor& image, const std::string& content) {
  Descriptor descriptor = DescriptorOf(content, kMediaTypeOciManifest);
  descriptor.platform = Platform{"unknown", "unknown", "", ""};
  descriptor.annotations[kAboutAnnotation] = image.digest.ToString();
  return descriptor;
}

absl::StatusOr<std::string> Merge(const std::string& raw, const std::vector<Descriptor>& manifests) {
  return MergePlatforms(raw, kMediaTypeOciIndex, manifests);
}

// "platform content-digest …", in the index's order.
std::vector<base::Digest> Digests(const std::string& raw) {
  const auto parsed = ParseManifestOrIndex(raw, std::nullopt, kMediaTypeOciIndex);
  std::vector<base::Digest> digests;
  for (const Descriptor& manifest : std::get<Index>(parsed.value()).manifests)
    digests.push_back(manifest.digest);
  return digests;
}

TEST(MergePlatforms, TheOrderOfComingDoesNotMatter) {
  const Descriptor amd = For("linux/amd64", "amd");
  const Descriptor arm = For("linux/arm64", "arm");
  const Descriptor s390 = For("linux/s390x", "s390");
  const std::string whole = *Merge("", {amd, arm, s390});
  EXPECT_EQ(Digests(whole), (std::vector<base::Digest>{amd.digest, arm.digest, s390.digest}));
  EXPECT_EQ(*Merge(*Merge(*Merge("", {s390}), {amd}), {arm}), whole);
  EXPECT_EQ(*Merge("", {arm, s390, amd, amd}), whole) << "the same one twice is no contradiction";
  EXPECT_EQ(*Merge(whole, {arm}), whole);
}

TEST(MergePlatforms, ANewImageTakesThePlaceOfItsPlatformAndOfWhatWasAboutTheOld) {
  const Descriptor old = For("linux/amd64", "old");
  const Descriptor other = For("linux/arm64/v8", "other");
  const std::string before =
      *Merge("", {old, other, About(old, "its provenance"), About(other, "provenance")});
  EXPECT_EQ(Digests(before).size(), 4U);
  const Descriptor renewed = For("linux/amd64", "new");
  const Descriptor about = About(renewed, "new provenance");
  EXPECT_EQ(*Merge(before, {renewed, about}),
            *Merge("", {renewed, about, other, About(other, "provenance")}));
}

TEST(MergePlatforms, Arm64AndItsOnlyVariantAreOnePlatform) {
  Descriptor plain = For("linux/arm64", "new");
  plain.platform->variant.clear();
  Descriptor v8 = For("linux/arm64", "old");
  v8.platform->variant = "v8";
  EXPECT_EQ(Digests(*Merge(*Merge("", {v8}), {plain})), std::vector<base::Digest>{plain.digest});
}

TEST(MergePlatforms, TwoOfOnePlatformAreRefused) {
  const absl::Status refused = Merge("", {For("linux/amd64", "a"), For("linux/amd64", "b")}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(refused.message(), "linux/amd64")) << refused;
}

TEST(MergePlatforms, OneWithoutAPlatformIsRefused) {
  EXPECT_EQ(Merge("", {DescriptorOf("x", kMediaTypeOciManifest)}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(MergePlatforms, WhatOthersWroteStays) {
  const Descriptor amd = For("linux/amd64", "amd");
  nlohmann::json index = nlohmann::json::parse(*Merge("", {amd}));
  index["theirs"] = 1;
  index["annotations"]["org.example"] = "x";
  index["manifests"][0]["data"] = "x";
  index["manifests"][0]["platform"]["os.features"] = {"f"};
  index["mediaType"] = kMediaTypeDockerIndex;
  const nlohmann::json merged = nlohmann::json::parse(*Merge(index.dump(), {For("linux/arm64", "arm")}));
  index["manifests"].push_back(merged["manifests"][1]);
  EXPECT_EQ(merged, index);
}

TEST(MergePlatforms, WhatIsNoIndexIsRefused) {
  for (const char* bad : {"{", "[]", "{\"schemaVersion\":2,\"manifests\":{}}",
                          "{\"schemaVersion\":2,\"config\":{},\"layers\":[]}"}) {
    EXPECT_FALSE(Merge(bad, {For("linux/amd64", "a")}).ok()) << bad;
  }
}

TEST(MergePlatforms, AnIndexThatNobodyWouldReadIsNotMade) {
  Descriptor large = For("linux/amd64", "a");
  large.annotations["x"] = std::string(kMaxManifestBytes, 'x');
  EXPECT_EQ(Merge("", {large}).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(MergeReferrer, IsThereOnce) {
  Descriptor referrer = DescriptorOf("sbom", kMediaTypeOciManifest);
  referrer.artifact_type = "application/spdx";
  const std::string first = *MergeReferrer("", referrer);
  EXPECT_EQ(*MergeReferrer(first, referrer), first);
  const std::string both = *MergeReferrer(first, DescriptorOf("signature", kMediaTypeOciManifest));
  EXPECT_EQ(Digests(both).size(), 2U);
  EXPECT_TRUE(absl::StrContains(both, "\"artifactType\":\"application/spdx\"")) << both;
}

}  // namespace
}  // namespace lazyblob::oci
