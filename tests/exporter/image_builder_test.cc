#include "exporter/image_builder.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "oci/manifest_writer.h"
#include "tests/support/layer_maker.h"
#include "tests/support/tar_maker.h"

namespace lazyblob::exporter {
namespace {

using nlohmann::json;

NewLayer NewOf(const std::string& content) {
  const support::Layer layer =
      support::MakeLayer(support::MakeTar({support::File("f", content)}), oci::Compression::kGzip);
  return {layer.descriptor, layer.diff_id, "made of " + content};
}

BaseImage BaseOf(const support::Image& image) {
  return {std::get<oci::Manifest>(oci::ParseManifestOrIndex(image.manifest, std::nullopt, "").value()),
          image.config};
}

BaseImage Base(bool docker = false) {
  support::ImageOptions options;
  options.docker = docker;
  options.annotations = {{"org.example.base", "1"}};
  return BaseOf(support::MakeImage(
      {support::MakeLayer(support::MakeTar({support::File("base", "x")}), oci::Compression::kGzip)},
      options));
}

json ConfigOf(const BuiltImage& image) { return *base::ParseJson(image.config, 1 << 20); }

TEST(ImageBuilder, LayersComeOnTopOfTheBase) {
  ImageSpec spec;
  spec.base = Base();
  spec.layers = {NewOf("one"), NewOf("two")};
  spec.created = 1'700'000'000;
  spec.annotations = {{"org.example.new", "2"}};
  const absl::StatusOr<BuiltImage> image = BuildImage(spec);
  ASSERT_TRUE(image.ok()) << image.status();
  ASSERT_EQ(image->layers.size(), 3U);
  EXPECT_EQ(image->layers[0].digest, spec.base->manifest.layers[0].digest);
  EXPECT_EQ(image->layers[2].digest, spec.layers[1].descriptor.digest);
  const absl::StatusOr<oci::ImageConfig> config =
      oci::ParseImageConfig(image->config, image->config_descriptor.digest);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->diff_ids, image->diff_ids);
  EXPECT_EQ(config->diff_ids[2], spec.layers[1].diff_id);
  EXPECT_EQ(config->command, std::vector<std::string>{"/bin/sh"}) << "the base's";
  const auto manifest = std::get<oci::Manifest>(
      oci::ParseManifestOrIndex(image->manifest, image->manifest_descriptor.digest, "").value());
  EXPECT_EQ(manifest.annotations.size(), 2U);
  EXPECT_EQ(ConfigOf(*image)["created"], "2023-11-14T22:13:20Z");
}

TEST(ImageBuilder, TheSameAlwaysGivesTheSameBytes) {
  ImageSpec spec;
  spec.base = Base();
  spec.layers = {NewOf("one")};
  EXPECT_EQ(BuildImage(spec)->manifest, BuildImage(spec)->manifest);
}

TEST(ImageBuilder, EveryLayerHasItsHistory) {
  ImageSpec spec;
  spec.base = Base();
  spec.layers = {NewOf("one")};
  auto entries = [&] {
    int count = 0;
    const json config = ConfigOf(BuildImage(spec).value());
    for (const json& entry : config["history"]) {
      if (entry.value("empty_layer", false) != true) ++count;
    }
    EXPECT_EQ(config["history"].back()["created_by"], "made of one");
    return count;
  };
  EXPECT_EQ(entries(), 2) << "a base without history";
  json config = *base::ParseJson(spec.base->config, 1 << 20);
  config["history"] =
      json::parse(R"([{"created_by":"a"},{"created_by":"ENV","empty_layer":true},{"created_by":"b"}])");
  spec.base->config = config.dump();
  EXPECT_EQ(entries(), 2) << "a base with more history than layers";
  EXPECT_EQ(ConfigOf(BuildImage(spec).value())["history"].size(), 4U);
}

TEST(ImageBuilder, MediaTypesAreOfOneKind) {
  for (const bool docker : {true, false}) {
    ImageSpec spec;
    spec.base = Base(!docker);
    spec.layers = {NewOf("one")};
    spec.docker_media_types = docker;
    const BuiltImage image = BuildImage(spec).value();
    EXPECT_EQ(absl::StrContains(image.manifest, "vnd.oci"), !docker) << image.manifest;
    EXPECT_EQ(absl::StrContains(image.manifest, "vnd.docker"), docker) << image.manifest;
    for (const oci::Descriptor& layer : image.layers) {
      EXPECT_EQ(oci::LayerCompression(layer.media_type), oci::Compression::kGzip);
    }
  }
}

TEST(ImageBuilder, WhatIsForTheLocalStoreStaysThere) {
  ImageSpec spec;
  spec.base = Base();
  spec.base->manifest.layers[0].annotations = {
      {"containerd.io/distribution.source.registry.example", "private/base"},
      {"containerd.io/uncompressed", "sha256:x"},
      {"buildkit/createdat", "now"},
      {"containerd.io/snapshot/stargz/toc.digest", "sha256:kept"}};
  const BuiltImage image = BuildImage(spec).value();
  EXPECT_FALSE(absl::StrContains(image.manifest, "registry.example"));
  EXPECT_FALSE(absl::StrContains(image.manifest, "uncompressed"));
  EXPECT_TRUE(absl::StrContains(image.manifest, "sha256:kept"));
}

TEST(ImageBuilder, TheConfigIsPatched) {
  ImageSpec spec;
  spec.base = Base();
  spec.config_patch = R"({"config":{"Cmd":null,"Entrypoint":["/app"]},"author":"me"})";
  const BuiltImage image = BuildImage(spec).value();
  const oci::ImageConfig config = oci::ParseImageConfig(image.config, image.config_descriptor.digest).value();
  EXPECT_EQ(config.entrypoint, std::vector<std::string>{"/app"});
  EXPECT_TRUE(config.command.empty());
  EXPECT_EQ(ConfigOf(image)["author"], "me");
  for (const char* bad :
       {"[]", "{", R"({"rootfs":{}})", R"({"history":[]})", R"({"os":"plan9"})", R"({"os":7})"}) {
    spec.config_patch = bad;
    spec.platform = oci::Platform{"linux", "amd64", "", ""};
    EXPECT_EQ(BuildImage(spec).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(ImageBuilder, FromScratchForAPlatform) {
  ImageSpec spec;
  spec.platform = oci::Platform{"linux", "arm64", "v8", ""};
  spec.layers = {NewOf("one")};
  const BuiltImage image = BuildImage(spec).value();
  EXPECT_EQ(image.manifest_descriptor.platform->ToString(), "linux/arm64/v8");
  EXPECT_EQ(oci::ParseImageConfig(image.config, image.config_descriptor.digest)->platform.ToString(),
            "linux/arm64/v8");
}

TEST(ImageBuilder, ABaseForAnotherPlatformIsRefused) {
  ImageSpec spec;
  spec.base = Base();
  spec.platform = oci::Platform{"linux", "s390x", "", ""};
  const absl::Status status = BuildImage(spec).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(status.message(), "s390x") && absl::StrContains(status.message(), "amd64"))
      << status;
}

TEST(ImageBuilder, ABaseThatDoesNotAgreeWithItselfIsRefused) {
  ImageSpec spec;
  spec.base = Base();
  spec.base->manifest.layers.push_back(spec.base->manifest.layers[0]);
  EXPECT_EQ(BuildImage(spec).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ImageBuilder, AStaleInlineCacheOfTheBaseIsDropped) {
  ImageSpec spec;
  spec.base = Base();
  json config = *base::ParseJson(spec.base->config, 1 << 20);
  config["moby.buildkit.cache.v0"] = "b2xk";
  spec.base->config = config.dump();
  EXPECT_FALSE(absl::StrContains(BuildImage(spec)->config, "b2xk"));
  spec.inline_cache = "bmV3";
  EXPECT_TRUE(absl::StrContains(BuildImage(spec)->config, "bmV3"));
}

}  // namespace
}  // namespace lazyblob::exporter
