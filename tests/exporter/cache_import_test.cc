#include "exporter/cache_import.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "exporter/export_job.h"
#include "oci/manifest_writer.h"
#include "tests/exporter/fake_placer.h"
#include "tests/support/layer_maker.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::exporter {
namespace {

using support::Directory;
using support::File;
using support::Layer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::string Step(const std::string& name) { return base::Digest::Of(name).ToString(); }

Layer MakeOne(const std::string& name) {
  return support::MakeLayer(support::MakeTar({Directory("."), File(name, name)}), oci::Compression::kGzip);
}

NewCacheLayer On(int parent, const Layer& layer, const std::string& step, const std::string& after = "") {
  NewCacheRecord record{Step(step), {}, 1'700'000'000'000'000'000};
  if (!after.empty()) record.inputs.push_back({{"", Step(after)}});
  return {layer.descriptor, layer.diff_id, parent, {record}};
}

class CacheImportTest : public ::testing::Test {
 protected:
  CacheImportTest() {
    registry::ClientOptions client;
    client.plain_http = true;
    client.max_attempts = 1;
    client_ = std::make_unique<registry::Client>(std::move(client));
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("store");
    store.log = [](absl::string_view) {};
    store_ = contentstore::ContentStore::Open(std::move(store)).value();
  }

  // FROM base, RUN run; and a stage of its own that RUN needs.
  Cache TwoStages() {
    NewCacheLayer run = On(0, run_, "run", "from");
    run.records[0].inputs.push_back({{"/src", Step("stage")}});
    return CacheOfLayers({On(-1, base_, "from"), run, On(-1, stage_, "stage")}).value();
  }
  BuiltCache PutCache(const std::string& tag, const Cache& cache, CacheForm form) {
    BuiltCache built = BuildCache(cache, form, false).value();
    for (const Layer& layer : {base_, run_, stage_}) registry_.PutBlob("cache", layer.blob);
    registry_.PutBlob("cache", built.config);
    registry_.PutManifest("cache", tag, built.manifest, built.manifest_descriptor.media_type);
    return built;
  }
  // An image of `layers` with `cache` in its config.
  void PutInline(const std::string& repository, const std::vector<Layer>& layers, const Cache& cache) {
    ImageSpec spec;
    spec.created = 1'700'000'000;
    std::vector<oci::Descriptor> descriptors;
    for (const Layer& layer : layers) {
      spec.layers.push_back({layer.descriptor, layer.diff_id, "made"});
      descriptors.push_back(layer.descriptor);
      registry_.PutBlob(repository, layer.blob);
    }
    spec.inline_cache = InlineCache(cache, descriptors).value();
    PutBuilt(repository, BuildImage(spec).value());
  }
  void PutBuilt(const std::string& repository, const BuiltImage& image) {
    registry_.PutBlob(repository, image.config);
    registry_.PutManifest(repository, "latest", image.manifest, image.manifest_descriptor.media_type);
  }
  void PutPlain(const std::string& repository, const std::vector<std::pair<std::string, Layer>>& layers) {
    std::vector<PlainCacheLayer> plain;
    for (const auto& [name, layer] : layers) {
      plain.push_back({name, {layer.descriptor, layer.diff_id, ""}});
      registry_.PutBlob(repository, layer.blob);
    }
    PutBuilt(repository, BuildPlainCache(plain, 1, false).value());
  }

  std::string Ref(const std::string& name) { return registry_.host() + "/" + name; }
  absl::Status Import(const std::string& name, ImportedCache* imported, bool plain = false) {
    ContentParts parts{client_.get(), store_.get(), false};
    ImportOptions options;
    options.plain = plain;
    options.skip = {"skipped"};
    return ImportCache(parts, oci::ParseImageReference(Ref(name)).value(), options, imported);
  }
  size_t Fetched(const Layer& layer) {
    return registry_.Count({.method = "GET", .path_contains = layer.descriptor.digest.hex()});
  }

  v1::ExportRequest Export(const std::vector<std::string>& imports, bool max = true) {
    v1::ExportRequest request;
    for (const std::string& import : imports) request.mutable_cache()->add_imports(Ref(import));
    request.mutable_cache()->add_destinations("dst.test/cache:1");
    request.mutable_cache()->set_max(max);
    return request;
  }
  // A layer of its own in the cache.
  v1::LayerSource* AddLayer(const std::string& name, v1::ExportRequest* request) {
    const std::string tree = directory_.File(name);
    EXPECT_TRUE(base::MakeDirectories(tree).ok());
    EXPECT_TRUE(base::WriteFileAtomically(tree + "/file", name).ok());
    v1::LayerSource* layer = request->mutable_cache()->add_layers();
    layer->set_source("dir:" + tree + ":/" + name);
    request->set_source_date_epoch(1);
    return layer;
  }
  absl::Status Run(const v1::ExportRequest& request) {
    ExportParts parts;
    parts.client = client_.get();
    parts.store = store_.get();
    parts.placer = &placer_;
    parts.put = placer_.Put();
    parts.staging = directory_.File("staging");
    return RunExport(request, parts, {nullptr, std::make_shared<base::CancelToken>()},
                     [this](const v1::ExportEvent& event) {
                       if (event.has_done()) report_ = event.done();
                     });
  }
  // What lies at the destination.
  std::string Exported() {
    absl::MutexLock lock(&placer_.mutex);
    return placer_.documents["dst.test/cache:1"];
  }
  std::set<base::Digest> Placed() {
    absl::MutexLock lock(&placer_.mutex);
    std::set<base::Digest> placed;
    for (const auto& [digest, bytes] : placer_.blobs["dst.test/cache"]) placed.insert(digest);
    return placed;
  }
  Cache ExportedCache() {
    const auto document = oci::ParseManifestOrIndex(Exported(), std::nullopt, "").value();
    const oci::Descriptor config = CacheConfigOf(document).value();
    absl::MutexLock lock(&placer_.mutex);
    return ReadCache(document, placer_.blobs["dst.test/cache"][config.digest]).value();
  }

  const Layer base_ = MakeOne("base");
  const Layer run_ = MakeOne("run");
  const Layer stage_ = MakeOne("stage");
  support::TempDir directory_;
  support::TestRegistry registry_;
  FakePlacer placer_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  v1::Report report_;
};

TEST_F(CacheImportTest, BothFormsAreReadAndNoLayerIs) {
  for (const CacheForm form : {CacheForm::kImageManifest, CacheForm::kIndex}) {
    const BuiltCache built = PutCache("1", TwoStages(), form);
    ImportedCache imported;
    const absl::Status status = Import("cache:1", &imported);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(BuildCache(imported.build, form, false)->manifest, built.manifest);
    EXPECT_THAT(imported.warnings, IsEmpty());
    ASSERT_THAT(imported.blobs, SizeIs(3));
    for (const ContentBlob& blob : imported.blobs) {
      ASSERT_THAT(blob.blob->repositories(), SizeIs(1));
      EXPECT_EQ(blob.blob->repositories()[0].Name(), Ref("cache"));
    }
  }
  for (const Layer& layer : {base_, run_, stage_}) EXPECT_EQ(Fetched(layer), 0u);
}

TEST_F(CacheImportTest, SeveralBecomeOne) {
  PutCache("1", TwoStages(), CacheForm::kImageManifest);
  PutInline("image", {base_, run_}, TwoStages());
  ImportedCache imported;
  ASSERT_TRUE(Import("cache:1", &imported).ok());
  ASSERT_TRUE(Import("image", &imported).ok());
  EXPECT_THAT(imported.blobs, SizeIs(3));
  EXPECT_THAT(imported.build.layers, SizeIs(3));
}

TEST_F(CacheImportTest, InlineCachesComeFromEveryImageOfAnIndex) {
  PutInline("image", {base_, run_}, TwoStages());
  ImportedCache imported;
  ASSERT_TRUE(Import("image", &imported).ok());
  EXPECT_EQ(imported.build.layers.size(), 2u);
  const std::string manifest = registry_.Manifest("image", "latest").value();
  oci::Index index;
  index.media_type = oci::kMediaTypeOciIndex;
  index.manifests = {oci::DescriptorOf(manifest, oci::kMediaTypeOciManifest)};
  index.manifests[0].platform = oci::Platform{"linux", "riscv64", "", ""};
  registry_.PutManifest("image", "index", oci::WriteIndex(index), index.media_type);
  ImportedCache again;
  ASSERT_TRUE(Import("image:index", &again).ok());
  EXPECT_EQ(again.build.layers, imported.build.layers);
}

TEST_F(CacheImportTest, WhatIsNotThereYetIsAWarning) {
  registry_.PutImage("image", "latest", support::MakeImage({base_}));
  ImportedCache imported;
  ASSERT_TRUE(Import("cache:nosuch", &imported).ok());
  ASSERT_TRUE(Import("image", &imported).ok());
  EXPECT_THAT(imported.warnings, ElementsAre(HasSubstr("cache:nosuch"), HasSubstr("holds no cache")));
  EXPECT_THAT(imported.blobs, IsEmpty());
}

TEST_F(CacheImportTest, WhatIsDamagedIsAnErrorThatNamesIt) {
  const BuiltCache built = PutCache("1", TwoStages(), CacheForm::kImageManifest);
  ImportedCache imported;
  registry_.RemoveBlob("cache", built.config_descriptor.digest);
  absl::Status status = Import("cache:1", &imported);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(Ref("cache:1")));
  registry_.PutBlobAs("cache", built.config_descriptor.digest, std::string(built.config.size(), 'x'));
  EXPECT_EQ(Import("cache:1", &imported).code(), absl::StatusCode::kDataLoss);

  const std::string loop = R"({"layers":[],"records":[{"digest":"x","inputs":[[{"link":0}]]}]})";
  oci::Manifest manifest;
  manifest.media_type = oci::kMediaTypeOciManifest;
  manifest.config = oci::DescriptorOf(loop, kMediaTypeCacheConfig);
  registry_.PutBlob("cache", loop);
  registry_.PutManifest("cache", "loop", oci::WriteManifest(manifest), manifest.media_type);
  status = Import("cache:loop", &imported);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(Ref("cache:loop")));

  oci::Index index;
  index.media_type = oci::kMediaTypeOciIndex;
  index.manifests = {oci::DescriptorOf("gone", oci::kMediaTypeOciManifest)};
  registry_.PutManifest("cache", "index", oci::WriteIndex(index), index.media_type);
  EXPECT_EQ(Import("cache:index", &imported).code(), absl::StatusCode::kDataLoss);
  registry_.AddFault({.path_contains = "/manifests/"}, {.status = 403});
  EXPECT_EQ(Import("cache:1", &imported).code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(CacheImportTest, TheOtherKindIsAnError) {
  PutCache("1", TwoStages(), CacheForm::kIndex);
  PutInline("image", {base_, run_}, TwoStages());
  PutPlain("plain", {{"a", base_}});
  ImportedCache imported;
  for (const char* name : {"cache:1", "image"}) {
    EXPECT_EQ(Import(name, &imported, /*plain=*/true).code(), absl::StatusCode::kInvalidArgument) << name;
  }
  EXPECT_EQ(Import("plain", &imported).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CacheImportTest, PlainNamesAreTakenOnce) {
  PutPlain("one", {{"a", base_}, {"skipped", run_}});
  PutPlain("two", {{"a", run_}, {"b", stage_}});
  ImportedCache imported;
  ASSERT_TRUE(Import("one", &imported, true).ok());
  ASSERT_TRUE(Import("two", &imported, true).ok());
  ASSERT_THAT(imported.plain, SizeIs(2));
  EXPECT_EQ(imported.plain[0].layer.descriptor.digest, base_.descriptor.digest);
  EXPECT_EQ(imported.plain[1].name, "b");
  EXPECT_THAT(imported.blobs, SizeIs(2));
}

TEST_F(CacheImportTest, AnImportAloneIsExportedAsItWas) {
  for (const CacheForm form : {CacheForm::kImageManifest, CacheForm::kIndex}) {
    const BuiltCache built = PutCache("1", TwoStages(), form);
    v1::ExportRequest request = Export({"cache:1"});
    request.mutable_cache()->set_format(form == CacheForm::kIndex ? v1::BUILDKIT_INDEX : v1::BUILDKIT);
    const absl::Status status = Run(request);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(Exported(), built.manifest);
    EXPECT_THAT(Placed(), SizeIs(4));
  }
}

TEST_F(CacheImportTest, MaxKeepsEveryStageAndMinMovesOnlyTheLast) {
  PutCache("1", TwoStages(), CacheForm::kImageManifest);
  ASSERT_TRUE(Run(Export({"cache:1"}, /*max=*/false)).ok());
  EXPECT_THAT(ExportedCache().layers, SizeIs(2));
  EXPECT_EQ(Placed().count(stage_.descriptor.digest), 0u);
  EXPECT_EQ(Fetched(stage_), 0u);
  ASSERT_TRUE(Run(Export({"cache:1"}, /*max=*/true)).ok());
  EXPECT_THAT(ExportedCache().layers, SizeIs(3));
  EXPECT_EQ(Placed().count(stage_.descriptor.digest), 1u);
}

TEST_F(CacheImportTest, NewLayersLieOnImportedOnes) {
  PutCache("1", TwoStages(), CacheForm::kImageManifest);
  v1::ExportRequest request = Export({"cache:1"});
  v1::LayerSource* layer = AddLayer("new", &request);
  layer->set_parent(run_.descriptor.digest.ToString());
  v1::CacheRecord* record = layer->add_records();
  record->set_digest(Step("new"));
  record->add_inputs()->add_links()->set_digest(Step("run"));
  record->add_inputs()->add_links()->set_digest(Step("context"));
  request.mutable_cache()->add_records()->set_digest(Step("context"));
  absl::Status status = Run(request);
  ASSERT_TRUE(status.ok()) << status;
  const Cache cache = ExportedCache();
  ASSERT_THAT(cache.layers, SizeIs(4));
  ASSERT_THAT(cache.records, SizeIs(5));
  const auto made =
      std::find_if(cache.records.begin(), cache.records.end(),
                   [](const CacheRecord& candidate) { return candidate.digest == Step("new"); });
  ASSERT_NE(made, cache.records.end());
  ASSERT_THAT(made->results, SizeIs(1));
  const int below = cache.layers[static_cast<size_t>(made->results[0].layer)].parent;
  ASSERT_GE(below, 0);
  EXPECT_EQ(cache.layers[static_cast<size_t>(below)].blob, run_.descriptor.digest);
  EXPECT_EQ(cache.records[static_cast<size_t>(made->inputs[0][0].record)].digest, Step("run"));
  EXPECT_THAT(cache.records[static_cast<size_t>(made->inputs[1][0].record)].results, IsEmpty());

  layer->set_parent(Step("no layer"));
  status = Run(request);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(Step("no layer")));
}

TEST_F(CacheImportTest, TheBytesDoNotTellHowTheyCameAbout) {
  PutCache("1", TwoStages(), CacheForm::kImageManifest);
  registry_.PutImage("image", "latest", support::MakeImage({base_, run_}));
  for (const bool max : {false, true}) {
    std::set<std::string> seen;
    auto run = [&](const v1::ExportRequest& request) {
      const absl::Status status = Run(request);
      EXPECT_TRUE(status.ok()) << status;
      ASSERT_THAT(report_.caches(), SizeIs(1));
      seen.insert(report_.caches(0).digest());
    };
    v1::ExportRequest cache = Export({"cache:1"}, max);
    AddLayer("new", &cache)->add_records()->set_digest(Step("new"));
    run(cache);  // the image was never exported
    v1::ExportRequest both = cache;
    both.add_images()->set_base(Ref("image"));
    both.mutable_images(0)->set_platform("linux/amd64");
    *both.mutable_images(0)->add_layers() = cache.cache().layers(0);
    both.mutable_images(0)->mutable_layers(0)->clear_records();
    both.add_destinations("dst.test/image:1");
    for (const v1::Parallel parallel : {v1::ON, v1::OFF}) {
      both.set_parallel(parallel);
      run(both);
    }
    run(cache);  // and after it
    v1::ExportRequest unlazy;
    *unlazy.add_images() = both.images(0);
    unlazy.mutable_images(0)->clear_layers();
    unlazy.set_unlazy(true);
    ASSERT_TRUE(Run(unlazy).ok());
    ASSERT_NE(store_->Find(base_.descriptor.digest), nullptr);
    run(cache);  // of layers that are local
    EXPECT_THAT(seen, SizeIs(1)) << (max ? "max" : "min");
  }
}

TEST_F(CacheImportTest, AnInlineCacheKeepsWhatTheBaseHadInIts) {
  PutInline("image", {base_, run_}, TwoStages());
  v1::ExportRequest request;
  request.add_images()->set_base(Ref("image"));
  request.mutable_images(0)->set_platform(oci::HostPlatform().ToString());
  request.add_destinations("dst.test/image:1");
  request.mutable_cache()->set_format(v1::INLINE);
  request.mutable_cache()->add_imports(Ref("image"));
  request.mutable_cache()->add_imports(Ref("nosuch"));
  const absl::Status status = Run(request);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(report_.warnings(), ElementsAre(HasSubstr("nosuch")));
  absl::MutexLock lock(&placer_.mutex);
  const auto manifest = std::get<oci::Manifest>(
      oci::ParseManifestOrIndex(placer_.documents["dst.test/image:1"], std::nullopt, "").value());
  const auto cache = ReadInlineCache(manifest, placer_.blobs["dst.test/image"][manifest.config.digest]);
  ASSERT_TRUE(cache.ok()) << cache.status();
  ASSERT_TRUE(cache->has_value());
  EXPECT_THAT((*cache)->layers, SizeIs(2));
}

TEST_F(CacheImportTest, NewDirectoriesTakeThePlaceOfThoseOfTheirName) {
  PutPlain("plain", {{"new", base_}, {"old", run_}});
  v1::ExportRequest request = Export({"plain"}, false);
  request.mutable_cache()->set_format(v1::PLAIN);
  AddLayer("new", &request);
  const absl::Status status = Run(request);
  ASSERT_TRUE(status.ok()) << status;
  const auto manifest =
      std::get<oci::Manifest>(oci::ParseManifestOrIndex(Exported(), std::nullopt, "").value());
  ASSERT_THAT(manifest.layers, SizeIs(2));
  EXPECT_EQ(manifest.layers[0].digest, run_.descriptor.digest);
  EXPECT_EQ(Placed().count(base_.descriptor.digest), 0u);
  EXPECT_EQ(Fetched(base_), 0u);
}

TEST_F(CacheImportTest, NothingIsTaggedWhenThereIsNothing) {
  for (const v1::CacheFormat format : {v1::BUILDKIT, v1::PLAIN}) {
    v1::ExportRequest request = Export({"nosuch"}, false);
    request.mutable_cache()->set_format(format);
    EXPECT_EQ(Run(request).code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(report_.warnings(), SizeIs(1));
    EXPECT_EQ(Exported(), "");
  }
}

TEST_F(CacheImportTest, LayersOfAnInlineCacheArePlacedBeforeTheConfigIsKnown) {
  PutInline("image", {base_, run_}, TwoStages());
  auto gate = std::make_shared<support::Gate>();
  PutCache("slow", TwoStages(), CacheForm::kImageManifest);
  registry_.AddFault({.path_contains = "/cache/manifests/"}, {.gate = gate});
  v1::ExportRequest request;
  request.add_images()->set_base(Ref("image"));
  request.mutable_images(0)->set_platform(oci::HostPlatform().ToString());
  request.add_destinations("dst.test/image:1");
  request.mutable_cache()->set_format(v1::INLINE);
  request.mutable_cache()->add_imports(Ref("cache:slow"));
  std::thread opener([&] {
    EXPECT_TRUE(registry_.AwaitRequests({.path_contains = "/cache/manifests/"}, 1));
    {
      absl::MutexLock lock(&placer_.mutex);
      auto layers_placed = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(placer_.mutex) {
        const auto& placed = placer_.blobs["dst.test/image"];
        return placed.contains(base_.descriptor.digest) && placed.contains(run_.descriptor.digest);
      };
      EXPECT_TRUE(placer_.mutex.AwaitWithTimeout(absl::Condition(&layers_placed), support::kPatience));
      EXPECT_THAT(placer_.blobs["dst.test/image"], SizeIs(2)) << "no config yet";
      EXPECT_THAT(placer_.documents, IsEmpty());
    }
    gate->Open();
  });
  const absl::Status status = Run(request);
  opener.join();
  EXPECT_TRUE(status.ok()) << status;
  absl::MutexLock lock(&placer_.mutex);
  EXPECT_THAT(placer_.blobs["dst.test/image"], SizeIs(3));
}

}  // namespace
}  // namespace lazyblob::exporter
