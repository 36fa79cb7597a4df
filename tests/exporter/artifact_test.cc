#include "exporter/artifact.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"

namespace lazyblob::exporter {
namespace {

ArtifactLayer LayerOf(const std::string& name, const std::string& platform) {
  ArtifactLayer layer;
  layer.descriptor.media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
  layer.descriptor.digest = base::Digest::Of(name);
  layer.descriptor.size = 10;
  layer.diff_id = base::Digest::Of("diff " + name);
  if (platform != "any") layer.platform = oci::ParsePlatform(platform).value();
  return layer;
}

ArtifactSpec Spec() {
  ArtifactSpec spec;
  spec.layers = {LayerOf("src", "any"), LayerOf("x86", "linux/amd64"), LayerOf("arm", "linux/arm64"),
                 LayerOf("arm7", "linux/arm/v7"), LayerOf("x86 more", "linux/amd64")};
  return spec;
}

oci::Manifest ManifestOf(const BuiltArtifact& built) {
  return std::get<oci::Manifest>(
      oci::ParseManifestOrIndex(built.manifest, built.manifest_descriptor.digest, "").value());
}

std::string Chosen(const std::string& platform) {
  const std::vector<ArtifactLayer> all = ReadArtifact(ManifestOf(BuildArtifact(Spec()).value())).value();
  const auto selected = SelectArtifactLayers(all, oci::ParsePlatform(platform).value());
  if (!selected.ok()) return std::string(selected.status().message());
  std::vector<std::string> names;
  for (const ArtifactLayer& layer : *selected) {
    for (const char* name : {"src", "x86", "arm", "arm7", "x86 more"}) {
      if (layer.descriptor.digest == base::Digest::Of(name)) names.emplace_back(name);
    }
  }
  return absl::StrJoin(names, ",");
}

TEST(Artifact, EachPlatformGetsItsOwnAndWhatIsForAny) {
  EXPECT_EQ(Chosen("linux/amd64"), "src,x86,x86 more");
  EXPECT_EQ(Chosen("linux/arm64"), "src,arm");
  EXPECT_EQ(Chosen("linux/arm/v7"), "src,arm7");
  EXPECT_EQ(Chosen("linux/s390x"), "src") << "only what is for any";
}

TEST(Artifact, WithoutAPlatformAllLayersAreChosen) {
  const std::vector<ArtifactLayer> all = ReadArtifact(ManifestOf(BuildArtifact(Spec()).value())).value();
  EXPECT_EQ(SelectArtifactLayers(all, std::nullopt)->size(), 5U);
  EXPECT_EQ(all[0].diff_id, base::Digest::Of("diff src"));
}

TEST(Artifact, APlatformWithNothingIsToldWhatThereIs) {
  ArtifactSpec spec = Spec();
  spec.layers.erase(spec.layers.begin());
  const std::vector<ArtifactLayer> all = ReadArtifact(ManifestOf(BuildArtifact(spec).value())).value();
  const absl::Status status = SelectArtifactLayers(all, oci::Platform{"linux", "s390x", "", ""}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(status.message(), "linux/amd64, linux/arm/v7, linux/arm64")) << status;
}

TEST(Artifact, TheManifestIsAnOciArtifact) {
  ArtifactSpec spec = Spec();
  spec.subject = LayerOf("subject", "any").descriptor;
  spec.subject->media_type = oci::kMediaTypeOciManifest;
  spec.annotations = {{"org.example", "1"}};
  const BuiltArtifact built = BuildArtifact(spec).value();
  const oci::Manifest manifest = ManifestOf(built);
  EXPECT_EQ(manifest.artifact_type, kArtifactType);
  EXPECT_EQ(built.manifest_descriptor.artifact_type, kArtifactType);
  EXPECT_EQ(manifest.config.media_type, "application/vnd.oci.empty.v1+json");
  EXPECT_EQ(manifest.config.digest.ToString(),
            "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
  EXPECT_EQ(manifest.subject->digest, spec.subject->digest);
  EXPECT_EQ(manifest.layers[1].annotations.at("org.opencontainers.image.title"), "linux-amd64.tar.zst");
  EXPECT_EQ(manifest.layers[4].annotations.at("org.opencontainers.image.title"), "linux-amd64-2.tar.zst");
  EXPECT_EQ(BuildArtifact(spec)->manifest, built.manifest);
}

TEST(Artifact, SourcesAreParsed) {
  EXPECT_EQ(ParseArtifactSource("any=/a=b")->path, "/a=b");
  EXPECT_FALSE(ParseArtifactSource("any=/a")->platform.has_value());
  EXPECT_EQ(ParseArtifactSource("linux/arm64=dir")->platform->architecture, "arm64");
  for (const char* bad : {"", "any", "any=", "=x", "linux=x", "a/b/c/d=x"}) {
    EXPECT_EQ(ParseArtifactSource(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(Artifact, OthersManifestsAreRefused) {
  oci::Manifest manifest;
  EXPECT_EQ(ReadArtifact(manifest).status().code(), absl::StatusCode::kInvalidArgument);
  manifest.layers = {LayerOf("x", "any").descriptor};
  EXPECT_EQ(ReadArtifact(manifest).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(BuildArtifact({}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lazyblob::exporter
