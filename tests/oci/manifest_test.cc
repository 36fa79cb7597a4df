#include "oci/manifest.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace lazyblob::oci {
namespace {

using Document = absl::StatusOr<std::variant<Manifest, Index>>;

std::string Digest(absl::string_view of) { return base::Digest::Of(of).ToString(); }

std::string DescriptorJson(absl::string_view media_type, absl::string_view of, absl::string_view more = "") {
  return absl::StrCat("{\"mediaType\":\"", media_type, "\",\"size\":", of.size(), ",\"digest\":\"",
                      Digest(of), "\"", more, "}");
}

std::string ManifestJson() {
  return absl::StrCat(
      "{\"schemaVersion\":2,\"mediaType\":\"", kMediaTypeOciManifest,
      "\",\"artifactType\":\"a/t\",\"config\":",
      DescriptorJson("application/vnd.oci.image.config.v1+json", "config"), ",\"layers\":[",
      DescriptorJson("application/vnd.oci.image.layer.v1.tar+gzip", "bottom",
                     ",\"annotations\":{\"k\":\"v\"}"),
      ",", DescriptorJson("application/vnd.oci.image.layer.v1.tar+zstd", "top", ",\"urls\":[\"https://x/\"]"),
      "],\"annotations\":{\"n\":\"m\"},\"subject\":", DescriptorJson(kMediaTypeOciManifest, "subject"), "}");
}

Document Parse(absl::string_view raw, absl::string_view content_type = "") {
  return ParseManifestOrIndex(raw, base::Digest::Of(raw), content_type);
}

TEST(ManifestTest, Fields) {
  Document document = Parse(ManifestJson(), absl::StrCat(kMediaTypeOciManifest, "; charset=utf-8"));
  ASSERT_TRUE(document.ok()) << document.status();
  const auto& manifest = std::get<Manifest>(*document);
  EXPECT_EQ(manifest.media_type, kMediaTypeOciManifest);
  EXPECT_EQ(manifest.artifact_type, "a/t");
  EXPECT_EQ(manifest.config.digest, base::Digest::Of("config"));
  ASSERT_EQ(manifest.layers.size(), 2u);
  EXPECT_EQ(manifest.layers[0].digest, base::Digest::Of("bottom"));
  EXPECT_EQ(manifest.layers[0].size, 6u);
  EXPECT_EQ(manifest.layers[0].annotations.at("k"), "v");
  EXPECT_EQ(manifest.layers[1].urls, std::vector<std::string>{"https://x/"});
  EXPECT_EQ(manifest.annotations.at("n"), "m");
  ASSERT_TRUE(manifest.subject.has_value());
  EXPECT_EQ(manifest.subject->digest, base::Digest::Of("subject"));
}

TEST(ManifestTest, IsVerifiedBeforeItIsParsed) {
  std::string raw = ManifestJson();
  for (size_t i = 0; i < raw.size(); i += 7) {
    std::string flipped = raw;
    flipped[i] = static_cast<char>(flipped[i] ^ 1);
    EXPECT_EQ(ParseManifestOrIndex(flipped, base::Digest::Of(raw), "").status().code(),
              absl::StatusCode::kDataLoss)
        << i;
  }
  EXPECT_EQ(ParseManifestOrIndex("not json", base::Digest::Of("x"), "").status().code(),
            absl::StatusCode::kDataLoss);
}

TEST(ManifestTest, Sha512Digests) {
  std::string raw = ManifestJson();
  base::Hasher hasher(base::DigestAlgorithm::kSha512);
  hasher.Update(raw);
  EXPECT_TRUE(ParseManifestOrIndex(raw, hasher.Finish(), "").ok());
}

TEST(ManifestTest, WhatReadsBothWaysIsRefused) {
  std::string manifest = ManifestJson();
  std::string both = absl::StrCat(manifest.substr(0, manifest.size() - 1), ",\"manifests\":[]}");
  EXPECT_FALSE(Parse(both).ok());
  std::string typeless = absl::StrReplaceAll(
      both, {{absl::StrCat("\"mediaType\":\"", kMediaTypeOciManifest, "\",\"artifact"), "\"artifact"}});
  EXPECT_FALSE(Parse(typeless).ok());
  EXPECT_FALSE(Parse("{\"schemaVersion\":2,\"manifests\":[],\"fsLayers\":[]}").ok());
  EXPECT_FALSE(Parse(absl::StrCat("{\"mediaType\":\"", kMediaTypeOciIndex, "\",\"layers\":[]}")).ok());
  EXPECT_FALSE(Parse(absl::StrCat("{\"mediaType\":\"", kMediaTypeOciManifest, "\",\"manifests\":[]}")).ok());
  EXPECT_FALSE(Parse(manifest, kMediaTypeOciIndex).ok());
  EXPECT_FALSE(Parse("{\"schemaVersion\":2}").ok());
  // The same key twice is two readings as well.
  EXPECT_FALSE(Parse("{\"manifests\":[],\"manifests\":[]}").ok());
}

TEST(ManifestTest, TypesAreInferredOrTakenFromTheHeader) {
  Document index = Parse("{\"schemaVersion\":2,\"manifests\":[]}");
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ(std::get<Index>(*index).media_type, kMediaTypeOciIndex);
  index = Parse("{\"schemaVersion\":2,\"manifests\":null}", kMediaTypeDockerIndex);
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_EQ(std::get<Index>(*index).media_type, kMediaTypeDockerIndex);
  Document manifest =
      Parse(absl::StrCat("{\"config\":", DescriptorJson("c", "c"), "}"), kMediaTypeDockerManifest);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(std::get<Manifest>(*manifest).media_type, kMediaTypeDockerManifest);
  EXPECT_TRUE(std::get<Manifest>(*manifest).layers.empty());
}

TEST(ManifestTest, OldAndUnknownTypesSaySo) {
  absl::Status status = Parse("{\"schemaVersion\":1,\"fsLayers\":[]}").status();
  EXPECT_NE(status.message().find("schemaVersion"), absl::string_view::npos);
  status =
      Parse(
          "{\"schemaVersion\":2,\"mediaType\":\"application/vnd.docker.distribution.manifest.v1+prettyjws\"}")
          .status();
  EXPECT_NE(status.message().find("prettyjws"), absl::string_view::npos);
}

TEST(ManifestTest, BadDescriptorsNameThePlace) {
  std::string good = ManifestJson();
  for (const auto& [from, to] :
       std::vector<std::pair<std::string, std::string>>{{"\"size\":3", "\"size\":-3"},
                                                        {"\"size\":3", "\"size\":3.5"},
                                                        {"\"size\":3", "\"size\":\"3\""},
                                                        {"\"size\":3,", ""},
                                                        {"\"size\":3", "\"size\":18446744073709551616"},
                                                        {"\"size\":3", "\"size\":9223372036854775808"},
                                                        {Digest("top"), "sha256:TOP"},
                                                        {Digest("top"), ""},
                                                        {"\"urls\":[\"https://x/\"]", "\"urls\":[5]"},
                                                        {"\"urls\":[\"https://x/\"]", "\"urls\":\"x\""},
                                                        {"\"urls\":[\"https://x/\"]", "\"platform\":5"}}) {
    std::string bad = absl::StrReplaceAll(good, {{from, to}});
    ASSERT_NE(bad, good);
    absl::Status status = Parse(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << to << status;
    EXPECT_NE(status.message().find("\"layers\"[1]"), absl::string_view::npos) << status;
  }
  for (const char* bad :
       {"", "[]", "5", "{", "{\"layers\":{},\"config\":{}}", "{\"config\":5}", "{\"manifests\":5}",
        "{\"manifests\":[5]}", "{\"manifests\":[{}]}", "{\"manifests\":[],\"annotations\":5}",
        "{\"manifests\":[],\"annotations\":{\"a\":1}}", "{\"manifests\":[],\"mediaType\":5}"}) {
    EXPECT_FALSE(Parse(bad).ok()) << bad;
  }
}

TEST(ManifestTest, Limits) {
  std::string layer = DescriptorJson("l", "l");
  std::string layers = layer;
  for (size_t i = 1; i < kMaxLayers; ++i) absl::StrAppend(&layers, ",", layer);
  auto with = [&](const std::string& list) {
    return Parse(absl::StrCat("{\"config\":", DescriptorJson("c", "c"), ",\"layers\":[", list, "]}"));
  };
  EXPECT_TRUE(with(layers).ok());
  EXPECT_FALSE(with(absl::StrCat(layers, ",", layer)).ok());
  EXPECT_EQ(Parse(std::string(kMaxManifestBytes + 1, ' ')).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(Parse(std::string(100'000, '[')).ok());
}

TEST(ImageConfigTest, Fields) {
  std::string raw = absl::StrCat(
      "{\"os\":\"linux\",\"architecture\":\"arm\",\"variant\":\"v7\",\"config\":{\"Env\":[\"A=b\"],"
      "\"Entrypoint\":[\"/e\"],\"Cmd\":null,",
      "\"WorkingDir\":\"/w\"},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"", Digest("a"), "\",\"",
      Digest("b"), "\"]}}");
  absl::StatusOr<ImageConfig> config = ParseImageConfig(raw, base::Digest::Of(raw));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->platform.ToString(), "linux/arm/v7");
  EXPECT_EQ(config->diff_ids, (std::vector<base::Digest>{base::Digest::Of("a"), base::Digest::Of("b")}));
  EXPECT_EQ(config->environment, std::vector<std::string>{"A=b"});
  EXPECT_EQ(config->entrypoint, std::vector<std::string>{"/e"});
  EXPECT_TRUE(config->command.empty());
  EXPECT_EQ(config->working_directory, "/w");
  EXPECT_EQ(ParseImageConfig(raw, base::Digest::Of("x")).status().code(), absl::StatusCode::kDataLoss);
}

TEST(ImageConfigTest, Refuses) {
  for (const char* bad :
       {"[]", "{\"rootfs\":5}", "{\"rootfs\":{\"diff_ids\":[\"x\"]}}", "{\"rootfs\":{\"diff_ids\":5}}",
        "{\"config\":[]}", "{\"config\":{\"Env\":\"x\"}}", "{\"os\":5}"}) {
    EXPECT_EQ(ParseImageConfig(bad, base::Digest::Of(bad)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
  }
  std::string huge(kMaxConfigBytes + 1, ' ');
  EXPECT_EQ(ParseImageConfig(huge, base::Digest::Of(huge)).status().code(),
            absl::StatusCode::kResourceExhausted);
}

Index IndexOf(const std::vector<std::string>& platforms) {
  Index index;
  for (const std::string& text : platforms) {
    Descriptor descriptor;
    descriptor.digest = base::Digest::Of(text);
    if (!text.empty()) {
      Platform platform;
      size_t slash = text.find('/');
      size_t second = text.find('/', slash + 1);
      platform.os = text.substr(0, slash);
      platform.architecture =
          text.substr(slash + 1, second == std::string::npos ? second : second - slash - 1);
      if (second != std::string::npos) platform.variant = text.substr(second + 1);
      descriptor.platform = platform;
    }
    index.manifests.push_back(descriptor);
  }
  return index;
}

// The entry chosen, by its text.
std::string Chosen(const std::vector<std::string>& offered, absl::string_view wanted) {
  absl::StatusOr<Descriptor> chosen = SelectPlatform(IndexOf(offered), *ParsePlatform(wanted));
  if (!chosen.ok()) return absl::StatusCodeToString(chosen.status().code());
  for (const std::string& text : offered) {
    if (chosen->digest == base::Digest::Of(text)) return text;
  }
  return "?";
}

TEST(PlatformTest, Selection) {
  EXPECT_EQ(Chosen({"linux/arm64", "linux/amd64", "unknown/unknown"}, "linux/amd64"), "linux/amd64");
  EXPECT_EQ(Chosen({"windows/amd64", "linux/arm64/v8"}, "linux/arm64"), "linux/arm64/v8");
  EXPECT_EQ(Chosen({"linux/arm64"}, "linux/aarch64/v8"), "linux/arm64");
  EXPECT_EQ(Chosen({"linux/arm/v5", "linux/arm/v6", "linux/arm/v8"}, "linux/arm/v7"), "linux/arm/v6");
  EXPECT_EQ(Chosen({"linux/arm/v5", "linux/arm/v7"}, "linux/arm"), "linux/arm/v7");
  EXPECT_EQ(Chosen({"linux/amd64/v2", "linux/amd64"}, "linux/amd64"), "linux/amd64");
  EXPECT_EQ(Chosen({"linux/amd64/v2", "linux/amd64"}, "linux/amd64/v3"), "linux/amd64/v2");
  EXPECT_EQ(Chosen({"linux/amd64/v3"}, "linux/amd64"), "NOT_FOUND");
  EXPECT_EQ(Chosen({"linux/arm/v7"}, "linux/arm64"), "NOT_FOUND");
  EXPECT_EQ(Chosen({""}, "linux/amd64"), "");
  EXPECT_EQ(Chosen({"", ""}, "linux/amd64"), "NOT_FOUND");
  EXPECT_EQ(Chosen({}, "linux/amd64"), "NOT_FOUND");
}

TEST(PlatformTest, TheErrorListsWhatIsThere) {
  absl::Status status =
      SelectPlatform(IndexOf({"linux/arm64", "windows/amd64"}), *ParsePlatform("linux/s390x")).status();
  EXPECT_EQ(status.message(), "no image for platform linux/s390x; the index has linux/arm64, windows/amd64");
}

TEST(PlatformTest, Parsing) {
  EXPECT_EQ(ParsePlatform("Linux/x86_64")->ToString(), "linux/amd64");
  EXPECT_EQ(ParsePlatform("linux/armhf")->ToString(), "linux/arm/v7");
  EXPECT_EQ(ParsePlatform("linux/arm/6")->ToString(), "linux/arm/v6");
  for (const char* bad : {"", "linux", "linux/", "/amd64", "a/b/c/d", "linux/a b", "linux/amd64/"}) {
    EXPECT_FALSE(ParsePlatform(bad).ok()) << bad;
  }
  EXPECT_EQ(HostPlatform().os, "linux");
  EXPECT_FALSE(HostPlatform().architecture.empty());
}

TEST(MediaTypes, Layers) {
  EXPECT_EQ(LayerCompression("application/vnd.oci.image.layer.v1.tar"), Compression::kNone);
  EXPECT_EQ(LayerCompression("application/vnd.oci.image.layer.v1.tar+gzip"), Compression::kGzip);
  EXPECT_EQ(LayerCompression("application/vnd.oci.image.layer.v1.tar+zstd"), Compression::kZstd);
  EXPECT_EQ(LayerCompression("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
            Compression::kGzip);
  EXPECT_EQ(LayerCompression("application/vnd.docker.image.rootfs.diff.tar.gzip"), Compression::kGzip);
  EXPECT_EQ(LayerCompression("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            Compression::kGzip);
  EXPECT_EQ(LayerCompression("application/vnd.docker.image.rootfs.diff.tar"), Compression::kNone);
  EXPECT_EQ(LayerCompression("application/vnd.oci.image.layer.v1.tar+encrypted"), std::nullopt);
  EXPECT_EQ(LayerCompression("application/vnd.oci.empty.v1+json"), std::nullopt);
  EXPECT_EQ(LayerCompression(""), std::nullopt);
}

}  // namespace
}  // namespace lazyblob::oci
