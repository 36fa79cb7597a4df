#include "exporter/build_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "oci/manifest_writer.h"

namespace lazyblob::exporter {
namespace {

using nlohmann::json;

base::Digest D(const std::string& name) { return base::Digest::Of(name); }

oci::Descriptor BlobOf(const std::string& name) {
  oci::Descriptor blob;
  blob.media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
  blob.digest = D(name);
  blob.size = 100;
  blob.annotations = {{"containerd.io/uncompressed", D("diff " + name).ToString()},
                      {"buildkit/createdat", "2024-05-06T07:08:09Z"}};
  return blob;
}

NewCacheLayer LayerOf(const std::string& name, int parent, std::vector<NewCacheRecord> records) {
  return {BlobOf(name), D("diff " + name), parent, std::move(records)};
}

NewCacheRecord Record(const std::string& digest, std::vector<std::vector<NewCacheRecord::Link>> inputs = {}) {
  return {digest, std::move(inputs), 1'700'000'000'000'000'000};
}

// FROM base, RUN a, RUN b; and a stage of its own.
std::vector<NewCacheLayer> Build() {
  return {LayerOf("base", -1, {Record("sha256:from")}),
          LayerOf("a", 0, {Record("sha256:run-a", {{{"", "sha256:from"}}})}),
          LayerOf("b", 1, {Record("sha256:run-b", {{{"", "sha256:run-a"}}, {{"/src", "sha256:stage"}}})}),
          LayerOf("stage", -1, {Record("sha256:stage")})};
}

Cache MaxCache() {
  absl::StatusOr<Cache> cache = CacheOfLayers(Build());
  EXPECT_TRUE(cache.ok()) << cache.status();
  return *std::move(cache);
}

std::vector<std::string> Steps(const Cache& cache, bool with_result) {
  std::vector<std::string> steps;
  for (const CacheRecord& record : cache.records) {
    if (record.results.empty() != with_result) steps.push_back(record.digest);
  }
  return steps;
}

std::variant<oci::Manifest, oci::Index> Document(const BuiltCache& built) {
  return oci::ParseManifestOrIndex(built.manifest, built.manifest_descriptor.digest, "").value();
}

absl::StatusOr<Cache> Read(const json& config, const std::vector<std::string>& blobs) {
  oci::Manifest manifest;
  for (const std::string& blob : blobs) manifest.layers.push_back(BlobOf(blob));
  return ReadCache(std::variant<oci::Manifest, oci::Index>(manifest), config.dump());
}

TEST(BuildCache, BothFormsComeBackAsTheyWere) {
  for (const CacheForm form : {CacheForm::kImageManifest, CacheForm::kIndex}) {
    for (const bool docker : {false, true}) {
      const absl::StatusOr<BuiltCache> built = BuildCache(MaxCache(), form, docker);
      ASSERT_TRUE(built.ok()) << built.status();
      const std::variant<oci::Manifest, oci::Index> document = Document(*built);
      EXPECT_EQ(std::holds_alternative<oci::Index>(document), form == CacheForm::kIndex);
      const std::optional<oci::Descriptor> config = CacheConfigOf(document);
      ASSERT_TRUE(config);
      EXPECT_EQ(config->digest, built->config_descriptor.digest);
      const absl::StatusOr<Cache> read = ReadCache(document, built->config);
      ASSERT_TRUE(read.ok()) << read.status();
      const absl::StatusOr<BuiltCache> again = BuildCache(*read, form, docker);
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_EQ(again->manifest, built->manifest);
      EXPECT_EQ(again->config, built->config);
    }
  }
}

// The names and shapes that BuildKit's decoder wants, from the description of the format.
TEST(BuildCache, TheConfigIsWhatBuildKitReads) {
  const BuiltCache built = BuildCache(MaxCache(), CacheForm::kImageManifest, false).value();
  const json config = *base::ParseJson(built.config, 1 << 20);
  ASSERT_EQ(config["layers"].size(), 4U);
  ASSERT_EQ(config["records"].size(), 4U);
  auto layer = [&](const std::string& blob) {
    for (size_t i = 0; i < 4; ++i) {
      if (config["layers"][i]["blob"] == D(blob).ToString()) return static_cast<int>(i);
    }
    return -1;
  };
  // Go's omitempty: no "parent" is parent 0.
  EXPECT_EQ(config["layers"][layer("base")].value("parent", 0), -1);
  EXPECT_EQ(config["layers"][layer("a")].value("parent", 0), layer("base"));
  EXPECT_EQ(config["layers"][layer("b")].value("parent", 0), layer("a"));
  for (const json& record : config["records"]) {
    ASSERT_EQ(record["layers"].size(), 1U);
    EXPECT_EQ(record["layers"][0]["createdAt"], "2023-11-14T22:13:20Z");
    if (record["digest"] != "sha256:run-b") continue;
    EXPECT_EQ(record["layers"][0]["layer"], layer("b"));
    ASSERT_EQ(record["inputs"].size(), 2U);
    EXPECT_EQ(config["records"][record["inputs"][0][0]["link"].get<int>()]["digest"], "sha256:run-a");
    EXPECT_EQ(record["inputs"][1][0]["selector"], "/src");
  }
  const json manifest = *base::ParseJson(built.manifest, 1 << 20);
  EXPECT_EQ(manifest["config"]["mediaType"], "application/vnd.buildkit.cacheconfig.v0");
  for (const json& blob : manifest["layers"])
    EXPECT_TRUE(blob["annotations"].contains("containerd.io/uncompressed"));
}

TEST(BuildCache, TheOrderInWhichItWasMadeDoesNotShow) {
  std::vector<NewCacheLayer> other = {
      LayerOf("stage", -1, {Record("sha256:stage")}), LayerOf("base", -1, {Record("sha256:from")}),
      LayerOf("a", 1, {Record("sha256:run-a", {{{"", "sha256:from"}}})}),
      LayerOf("b", 2, {Record("sha256:run-b", {{{"", "sha256:run-a"}}, {{"/src", "sha256:stage"}}})})};
  EXPECT_EQ(BuildCache(CacheOfLayers(other).value(), CacheForm::kImageManifest, false)->manifest,
            BuildCache(MaxCache(), CacheForm::kImageManifest, false)->manifest);
}

TEST(BuildCache, WhereABlobCameFromIsNotTold) {
  std::vector<NewCacheLayer> layers = {LayerOf("x", -1, {Record("sha256:x")})};
  layers[0].descriptor.annotations["containerd.io/distribution.source.secret.example"] = "team/private";
  const BuiltCache built =
      BuildCache(CacheOfLayers(layers).value(), CacheForm::kImageManifest, false).value();
  EXPECT_FALSE(absl::StrContains(built.manifest, "secret.example"));
  EXPECT_TRUE(absl::StrContains(built.manifest, "buildkit/createdat"));
}

TEST(BuildCache, ALayerThatNobodyCouldFindIsAnError) {
  std::vector<NewCacheLayer> layers = {LayerOf("base", -1, {}), LayerOf("a", 0, {Record("sha256:a")})};
  EXPECT_TRUE(CacheOfLayers(layers).ok()) << "below one that has a record it needs none";
  layers.push_back(LayerOf("lost", -1, {}));
  const absl::Status status = CacheOfLayers(layers).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(status.message(), D("lost").ToString())) << status;
}

TEST(BuildCache, ALinkToNothingIsAnError) {
  const absl::Status status =
      CacheOfLayers({LayerOf("a", -1, {Record("sha256:a", {{{"", "sha256:missing"}}})})}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(status.message(), "sha256:missing")) << status;
}

TEST(BuildCache, EqualStepsOnDifferentBasesAreToldApartByTheirIds) {
  std::vector<NewCacheLayer> layers = {LayerOf("one", -1, {Record("sha256:one")}),
                                       LayerOf("run-1", 0, {Record("sha256:run", {{{"", "sha256:one"}}})}),
                                       LayerOf("two", -1, {Record("sha256:two")}),
                                       LayerOf("run-2", 2, {Record("sha256:run", {{{"", "sha256:two"}}})}),
                                       LayerOf("last", 3, {Record("sha256:last", {{{"", "sha256:run"}}})})};
  const absl::Status status = CacheOfLayers(layers).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(status.message(), "give them ids")) << status;
  layers[3].records[0].id = "second";
  layers[4].records[0].inputs[0][0].digest = "second";
  const absl::StatusOr<Cache> cache = CacheOfLayers(layers);
  ASSERT_TRUE(cache.ok()) << cache.status();
  for (const CacheRecord& record : cache->records) {
    if (record.digest != "sha256:last") continue;
    const CacheRecord& run = cache->records[record.inputs[0][0].record];
    EXPECT_EQ(cache->records[run.inputs[0][0].record].digest, "sha256:two");
  }
  // The same among imports: nobody can say which is meant.
  const std::vector<NewCacheLayer> more = {LayerOf("new", 0, {Record("sha256:new", {{{"", "sha256:run"}}})})};
  EXPECT_EQ(CacheOfLayers(more, {}, *cache).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(BuildCache, NewLayersAndRecordsJoinWhatIsThere) {
  const Cache there = MaxCache();
  int top = 0;
  while (there.layers[top].blob != D("b")) ++top;
  const std::vector<NewCacheLayer> layers = {
      LayerOf("c", top, {Record("sha256:run-c", {{{"", "sha256:run-b"}}, {{"/x", "sha256:context"}}})})};
  const absl::StatusOr<Cache> cache = CacheOfLayers(layers, {Record("sha256:context")}, there);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(cache->layers.size(), 5U);
  EXPECT_EQ(Steps(*cache, false), std::vector<std::string>{"sha256:context"});
}

TEST(BuildCache, RecordsOfAFileAreForLayersByTheirPlace) {
  const json config = {{"records",
                        {{{"digest", "sha256:from"}, {"layers", {{{"layer", 0}}}}},
                         {{"digest", "sha256:context"}},
                         {{"digest", "sha256:run"},
                          {"layers", {{{"layer", 1}}}},
                          {"inputs", {{{{"link", 0}}}, {{{"link", 1}, {"selector", "/src"}}}}}}}}};
  absl::StatusOr<Cache> cache = ReadCacheRecords(config.dump(), 2);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(cache->layers[1].parent, 0);
  EXPECT_EQ(cache->records[2].inputs[1][0].selector, "/src");
  json with_layers = config;
  with_layers["layers"] = {{{"parent", -1}}, {{"parent", -1}}};
  EXPECT_EQ(ReadCacheRecords(with_layers.dump(), 2)->layers[1].parent, -1);
  EXPECT_FALSE(ReadCacheRecords(with_layers.dump(), 3).ok()) << "two places for three layers";
  EXPECT_FALSE(ReadCacheRecords(config.dump(), 1).ok()) << "layer 1 is out of range";
  EXPECT_FALSE(ReadCacheRecords("[]", 1).ok());
}

TEST(BuildCache, MinKeepsWhatTheLastStepConsistsOf) {
  const Cache min = KeepMin(MaxCache()).value();
  EXPECT_EQ(Steps(min, true), (std::vector<std::string>{"sha256:from", "sha256:run-a", "sha256:run-b"}));
  EXPECT_EQ(Steps(min, false), (std::vector<std::string>{"sha256:stage"})) << "links to it are kept";
  EXPECT_EQ(min.layers.size(), 3U);
  EXPECT_FALSE(min.blobs.contains(D("stage")));
  EXPECT_EQ(Steps(MaxCache(), true).size(), 4U);
}

TEST(BuildCache, AResultWhoseBlobIsMissingIsLeftOutAndTheRestIsRead) {
  const json config = {
      {"layers", {{{"blob", D("a").ToString()}, {"parent", -1}}, {{"blob", D("gone").ToString()}}}},
      {"records",
       {{{"digest", "sha256:1"}, {"layers", {{{"layer", 0}}}}},
        {{"digest", "sha256:2"}, {"layers", {{{"layer", 1}}}}, {"inputs", {{{{"link", 0}}}}}}}}};
  const absl::StatusOr<Cache> cache = Read(config, {"a"});
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(Steps(*cache, true), std::vector<std::string>{"sha256:1"});
}

TEST(BuildCache, WhatBuildKitRefusesIsRefused) {
  const json layer = {{"blob", D("a").ToString()}, {"parent", -1}};
  const json result = {{{"layer", 0}}};
  const std::vector<std::pair<const char*, json>> bad = {
      {"an input without links",
       {{"layers", {layer}},
        {"records", {{{"digest", "x"}, {"layers", result}, {"inputs", {json::array()}}}}}}},
      {"a record that links to itself",
       {{"layers", {layer}},
        {"records", {{{"digest", "x"}, {"layers", result}, {"inputs", {{{{"link", 0}}}}}}}}}},
      {"records in a loop",
       {{"layers", {layer}},
        {"records",
         {{{"digest", "x"}, {"layers", result}, {"inputs", {{{{"link", 1}}}}}},
          {{"digest", "y"}, {"layers", result}, {"inputs", {{{{"link", 0}}}}}}}}}},
      {"a link out of range",
       {{"layers", {layer}},
        {"records", {{{"digest", "x"}, {"layers", result}, {"inputs", {{{{"link", 7}}}}}}}}}},
      {"a negative link",
       {{"layers", {layer}},
        {"records", {{{"digest", "x"}, {"layers", result}, {"inputs", {{{{"link", -1}}}}}}}}}},
      {"a layer out of range",
       {{"layers", {layer}}, {"records", {{{"digest", "x"}, {"layers", {{{"layer", 1}}}}}}}}},
      {"a layer below itself",
       {{"layers", {{{"blob", D("a").ToString()}}}}, {"records", {{{"digest", "x"}, {"layers", result}}}}}},
      {"parents out of range",
       {{"layers", {{{"blob", D("a").ToString()}, {"parent", 9}}}},
        {"records", {{{"digest", "x"}, {"layers", result}}}}}},
      {"a huge index",
       {{"layers", {layer}}, {"records", {{{"digest", "x"}, {"layers", {{{"layer", UINT64_MAX}}}}}}}}},
      {"a blob that is no digest",
       {{"layers", {{{"blob", "x"}, {"parent", -1}}}}, {"records", {{{"digest", "x"}, {"layers", result}}}}}},
  };
  for (const auto& [what, config] : bad) {
    EXPECT_EQ(Read(config, {"a"}).status().code(), absl::StatusCode::kInvalidArgument) << what;
  }
  EXPECT_FALSE(Read({{"layers", std::string(2 << 20, 'x')}}, {}).ok());
}

TEST(BuildCache, EqualRecordsOfSeveralCachesBecomeOne) {
  std::vector<NewCacheLayer> newer = {LayerOf("base", -1, {Record("sha256:from")}),
                                      LayerOf("a2", 0, {Record("sha256:run-a", {{{"", "sha256:from"}}})})};
  const Cache merged = MergeCaches({MaxCache(), CacheOfLayers(newer).value(), MaxCache()}).value();
  ASSERT_EQ(merged.records.size(), 4U);
  EXPECT_EQ(merged.layers.size(), 5U);
  for (const CacheRecord& record : merged.records) {
    EXPECT_EQ(record.results.size(), record.digest == "sha256:run-a" ? 2U : 1U) << record.digest;
  }
}

TEST(BuildCache, AnEmptyCacheIsNotExported) {
  EXPECT_EQ(BuildCache(Cache(), CacheForm::kImageManifest, false).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(BuildCache, WhatBuildKitWouldNotReadIsAnErrorThatSaysSo) {
  std::vector<NewCacheLayer> layers = {LayerOf("x", -1, {})};
  for (int i = 0; i < 12000; ++i)
    layers[0].records.push_back(Record(absl::StrCat("sha256:", D(absl::StrCat(i)).hex())));
  const absl::Status status =
      BuildCache(CacheOfLayers(layers).value(), CacheForm::kImageManifest, false).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(absl::StrContains(status.message(), "mode=min")) << status;
}

TEST(InlineCache, ComesBackFromTheImageItIsIn) {
  ImageSpec spec;
  spec.created = 1'700'000'000;
  for (const char* name : {"base", "a", "b"})
    spec.layers.push_back({BlobOf(name), D(absl::StrCat("diff ", name)), name});
  std::vector<oci::Descriptor> layers;
  for (const NewLayer& layer : spec.layers) layers.push_back(layer.descriptor);
  spec.inline_cache = InlineCache(MaxCache(), layers).value();
  const BuiltImage image = BuildImage(spec).value();
  const oci::Manifest manifest =
      std::get<oci::Manifest>(oci::ParseManifestOrIndex(image.manifest, std::nullopt, "").value());
  const absl::StatusOr<std::optional<Cache>> read = ReadInlineCache(manifest, image.config);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_TRUE(read->has_value());
  EXPECT_EQ(Steps(**read, true), (std::vector<std::string>{"sha256:from", "sha256:run-a", "sha256:run-b"}));
  EXPECT_EQ((*read)->blobs.at(D("a")).annotations.at("containerd.io/uncompressed"), D("diff a").ToString());
  EXPECT_EQ((*read)->blobs.at(D("a")).annotations.at("buildkit/createdat"), "2023-11-14T22:13:20Z");
  EXPECT_EQ(InlineCache(**read, layers).value(), spec.inline_cache);
  EXPECT_TRUE(BuildCache(**read, CacheForm::kImageManifest, false).ok());
}

TEST(InlineCache, ResultsThatAreNoPrefixOfTheImageNameTheirLayers) {
  const std::vector<oci::Descriptor> layers = {BlobOf("other"), BlobOf("base"), BlobOf("a")};
  std::string text;
  ASSERT_TRUE(absl::Base64Unescape(InlineCache(MaxCache(), layers).value(), &text));
  const json records = *base::ParseJson(text, 1 << 20);
  bool found = false;
  for (const json& record : records) {
    EXPECT_NE(record["digest"], "sha256:run-b") << "a layer of it is not in the image";
    if (record["digest"] == "sha256:run-a") {
      found = true;
      EXPECT_EQ(record["chains"][0]["layers"], json({1, 2}));
      EXPECT_FALSE(record.contains("layers"));
    }
  }
  EXPECT_TRUE(found);
}

TEST(InlineCache, IsEmptyWhenTheImageHasNothingOfIt) {
  EXPECT_EQ(InlineCache(MaxCache(), {BlobOf("other")}).value(), "");
  EXPECT_EQ(InlineCache(MaxCache(), {}).value(), "");
}

TEST(InlineCache, AnImageWithoutOneHasNone) {
  ImageSpec spec;
  spec.layers = {{BlobOf("base"), D("diff base"), "x"}};
  const BuiltImage image = BuildImage(spec).value();
  const oci::Manifest manifest =
      std::get<oci::Manifest>(oci::ParseManifestOrIndex(image.manifest, std::nullopt, "").value());
  EXPECT_EQ(ReadInlineCache(manifest, image.config)->has_value(), false);
}

TEST(PlainCache, NamesComeBack) {
  const std::vector<PlainCacheLayer> layers = {{"maven", {BlobOf("a"), D("diff a"), "maven"}},
                                               {"jre", {BlobOf("b"), D("diff b"), "jre"}}};
  const BuiltImage image = BuildPlainCache(layers, 0, false).value();
  const oci::Manifest manifest =
      std::get<oci::Manifest>(oci::ParseManifestOrIndex(image.manifest, std::nullopt, "").value());
  const auto read = ReadPlainCache(manifest, image.config);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_TRUE(read->has_value());
  ASSERT_EQ((*read)->size(), 2U);
  EXPECT_EQ((**read)[1].name, "jre");
  EXPECT_EQ((**read)[1].layer.descriptor.digest, D("b"));
  EXPECT_EQ((**read)[1].layer.diff_id, D("diff b"));
  EXPECT_EQ(ReadPlainCache(manifest, "{}")->has_value(), false);
  EXPECT_FALSE(ReadPlainCache(manifest, "[]").ok());
  EXPECT_FALSE(BuildPlainCache({layers[0], layers[0]}, 0, false).ok());
}

}  // namespace
}  // namespace lazyblob::exporter
