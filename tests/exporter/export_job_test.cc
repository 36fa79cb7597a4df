#include "exporter/export_job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "exporter/content.h"
#include "oci/layout.h"
#include "tests/exporter/fake_placer.h"
#include "tests/support/layer_maker.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::exporter {
namespace {

using support::Directory;
using support::File;
using support::Image;
using support::Layer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

class ExportJobTest : public ::testing::Test {
 protected:
  ExportJobTest() {
    registry::ClientOptions client;
    client.plain_http = true;
    client.max_attempts = 1;
    client_ = std::make_unique<registry::Client>(std::move(client));
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("store");
    store.log = [](absl::string_view) {};
    store_ = contentstore::ContentStore::Open(std::move(store)).value();
  }

  static Layer MakeOne(const std::string& name) {
    return support::MakeLayer(support::MakeTar({Directory("."), File(name, name)}), oci::Compression::kGzip);
  }
  static Image OnPlatform(std::vector<Layer> layers, const std::string& architecture) {
    support::ImageOptions options;
    options.platform = {"linux", architecture, "", ""};
    return support::MakeImage(std::move(layers), options);
  }
  std::string Source(const std::string& tag = "latest") { return registry_.host() + "/src:" + tag; }

  // A copy of `source`, with all its platforms where the destinations take that.
  v1::ExportRequest Copy(const std::string& source, const std::vector<std::string>& destinations) {
    v1::ExportRequest request;
    request.add_images()->set_base(source);
    request.mutable_images(0)->set_all_platforms(true);
    for (const std::string& destination : destinations) {
      request.add_destinations(destination);
      if (!absl::StartsWith(destination, "dir:")) continue;
      request.mutable_images(0)->set_all_platforms(false);
      request.mutable_images(0)->set_platform("linux/amd64");
    }
    return request;
  }

  absl::Status Run(const v1::ExportRequest& request) {
    ExportParts parts{client_.get(), store_.get(), &placer_, placer_.Put(), directory_.File("staging"), {}};
    events_.clear();
    return RunExport(request, parts, {nullptr, cancel_},
                     [this](const v1::ExportEvent& event) { events_.push_back(event); });
  }
  static std::vector<base::Digest> Missing(const absl::Status& status) {
    std::vector<base::Digest> missing;
    for (const auto& one : contentstore::GetMissingProviders(status)) missing.push_back(one.digest);
    return missing;
  }
  const v1::Report& Report() { return events_.back().done(); }
  std::vector<std::string> Log(absl::string_view prefix) {
    absl::MutexLock lock(&placer_.mutex);
    std::vector<std::string> found;
    for (const std::string& line : placer_.log) {
      if (absl::StartsWith(line, prefix)) found.push_back(line);
    }
    return found;
  }
  // Final states by digest and destination; a layer with two of them fails the test.
  std::map<std::pair<std::string, std::string>, std::string> Finals() {
    static const std::set<std::string> kFinal = {"exists", "mounted", "pushed", "written", "failed"};
    std::map<std::pair<std::string, std::string>, std::string> finals;
    for (const v1::ExportEvent& event : events_) {
      const v1::Progress& progress = event.progress();
      if (!event.has_progress() || kFinal.count(progress.state()) == 0) continue;
      EXPECT_TRUE(
          finals.emplace(std::pair(progress.digest(), progress.destination()), progress.state()).second)
          << progress.digest() << " ends twice";
    }
    return finals;
  }

  support::TempDir directory_;
  support::TestRegistry registry_;
  FakePlacer placer_;
  std::shared_ptr<base::CancelToken> cancel_ = std::make_shared<base::CancelToken>();
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  std::vector<v1::ExportEvent> events_;
};

TEST_F(ExportJobTest, ACopyPutsBlobsThenTheTag) {
  const Image image = support::MakeImage({MakeOne("a"), MakeOne("b")});
  registry_.PutImage("src", "latest", image);
  ASSERT_TRUE(Run(Copy(Source(), {"dst.test/x:1"})).ok());
  EXPECT_THAT(Log("put"), ElementsAre("put dst.test/x:1"));
  EXPECT_THAT(Log("place"), SizeIs(3));
  absl::MutexLock lock(&placer_.mutex);
  EXPECT_EQ(placer_.documents["dst.test/x:1"], image.manifest);
  EXPECT_EQ(placer_.blobs["dst.test/x"][image.layers[0].descriptor.digest], image.layers[0].blob);
  ASSERT_THAT(Report().images(), SizeIs(1));
  EXPECT_EQ(Report().images(0).reference(), "dst.test/x@" + image.manifest_descriptor.digest.ToString());
  EXPECT_EQ(Report().uploaded_bytes(),
            image.config.size() + image.layers[0].blob.size() + image.layers[1].blob.size());
}

TEST_F(ExportJobTest, NoBlobIsReadThatIsThere) {
  const Image image = support::MakeImage({MakeOne("a"), MakeOne("b")});
  registry_.PutImage("src", "latest", image);
  {
    absl::MutexLock lock(&placer_.mutex);
    for (const Layer& layer : image.layers) placer_.there_already.insert(layer.descriptor.digest);
    placer_.there_already.insert(image.config_descriptor.digest);
  }
  ASSERT_TRUE(Run(Copy(Source(), {"dst.test/x:1"})).ok());
  EXPECT_EQ(registry_.Count({.path_contains = "/blobs/"}), 0u);
  for (const auto& [which, state] : Finals()) EXPECT_EQ(state, "exists");
  EXPECT_EQ(Report().uploaded_bytes(), 0u);
  EXPECT_THAT(store_->Layers(), IsEmpty());
}

TEST_F(ExportJobTest, AnIndexComesAfterItsManifestsAndTagsAfterEverything) {
  const support::ImageIndex index =
      support::MakeIndex({OnPlatform({MakeOne("a")}, "amd64"), OnPlatform({MakeOne("b")}, "arm64")});
  registry_.PutIndex("src", "latest", index);
  ASSERT_TRUE(Run(Copy(Source(), {"one.test/x:1", "one.test/x:2", "two.test/y:3"})).ok());
  const std::vector<std::string> puts = Log("put");
  ASSERT_THAT(puts, SizeIs(9));
  for (size_t i = 0; i < puts.size(); ++i) EXPECT_EQ(absl::StrContains(puts[i], "@"), i < 6) << puts[i];
  absl::MutexLock lock(&placer_.mutex);
  for (const char* tag : {"one.test/x:1", "one.test/x:2", "two.test/y:3"}) {
    EXPECT_EQ(placer_.documents[tag], index.raw) << tag;
  }
  // Blobs once per repository, whatever the number of tags.
  EXPECT_EQ(
      std::count_if(placer_.log.begin(), placer_.log.end(),
                    [](const std::string& line) { return absl::StartsWith(line, "place one.test/x "); }),
      4);
}

TEST_F(ExportJobTest, OnePlatformIsCopiedAlone) {
  const support::ImageIndex index =
      support::MakeIndex({OnPlatform({MakeOne("a")}, "amd64"), OnPlatform({MakeOne("b")}, "arm64")});
  registry_.PutIndex("src", "latest", index);
  v1::ExportRequest request = Copy(Source(), {"dst.test/x:1"});
  request.mutable_images(0)->set_all_platforms(false);
  request.mutable_images(0)->set_platform("linux/arm64");
  ASSERT_TRUE(Run(request).ok());
  absl::MutexLock lock(&placer_.mutex);
  EXPECT_EQ(placer_.documents["dst.test/x:1"], index.images[1].manifest);
}

TEST_F(ExportJobTest, SeveralPlatformsBecomeOneIndex) {
  registry_.PutImage("src", "amd", OnPlatform({MakeOne("a")}, "amd64"));
  registry_.PutImage("src", "arm", OnPlatform({MakeOne("b")}, "arm64"));
  v1::ExportRequest request;
  for (const char* architecture : {"amd", "arm"}) {
    v1::Image* image = request.add_images();
    image->set_base(Source(architecture));
    image->set_platform(absl::StrCat("linux/", architecture, "64"));
  }
  request.add_destinations("dst.test/x:1");
  ASSERT_TRUE(Run(request).ok());
  absl::MutexLock lock(&placer_.mutex);
  auto parsed = oci::ParseManifestOrIndex(placer_.documents["dst.test/x:1"], std::nullopt, "");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_THAT(std::get<oci::Index>(*parsed).manifests, SizeIs(2));
  EXPECT_EQ(std::get<oci::Index>(*parsed).manifests[1].platform->architecture, "arm64");
}

TEST_F(ExportJobTest, NothingIsTaggedWhenOneDestinationRefuses) {
  registry_.PutImage("src", "latest", support::MakeImage({MakeOne("a")}));
  {
    absl::MutexLock lock(&placer_.mutex);
    placer_.refused.insert("two.test/y");
  }
  absl::Status status = Run(Copy(Source(), {"one.test/x:1", "two.test/y:1"}));
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied) << status;
  EXPECT_THAT(Log("put"), IsEmpty());
  EXPECT_EQ(Report().image_error(), std::string(status.message()));
  EXPECT_THAT(Report().images(), IsEmpty());
  for (const v1::ExportEvent& event : events_) EXPECT_FALSE(event.has_image_ready());
  EXPECT_THAT(Finals(), ::testing::Contains(::testing::Pair(::testing::_, "failed")));
}

TEST_F(ExportJobTest, EveryBlobThatNobodyHasIsListed) {
  const Image image = support::MakeImage({MakeOne("a"), MakeOne("b"), MakeOne("c")});
  const std::string layout = directory_.File("layout");
  ASSERT_TRUE(support::WriteLayout(layout, "t", image).ok());
  for (int i : {0, 2}) {
    ASSERT_EQ(unlink(absl::StrCat(layout, "/blobs/sha256/", image.layers[i].descriptor.digest.hex()).c_str()),
              0);
  }
  std::vector<v1::ExportRequest> requests;
  for (const std::string& destination :
       {std::string("dst.test/x:1"), "oci:" + directory_.File("out"), "dir:" + directory_.File("files")}) {
    requests.push_back(Copy(absl::StrCat("oci:", layout, ":t"), {destination}));
  }
  requests.push_back(Copy(absl::StrCat("oci:", layout, ":t"), {}));
  requests.back().set_unlazy(true);
  for (const v1::ExportRequest& request : requests) {
    absl::Status status = Run(request);
    EXPECT_THAT(Missing(status),
                UnorderedElementsAre(image.layers[0].descriptor.digest, image.layers[2].descriptor.digest))
        << status;
    EXPECT_THAT(Log("put"), IsEmpty());
  }
  EXPECT_NE(access(directory_.File("files").c_str(), F_OK), 0);
}

TEST_F(ExportJobTest, WhatImageAndCacheLackIsListedTogether) {
  ASSERT_TRUE(base::MakeDirectories(directory_.File("tree")).ok());
  const std::string tree = "dir:" + directory_.File("tree");
  const std::string cache = directory_.File("cache");
  v1::ExportRequest request;
  request.mutable_cache()->set_format(v1::PLAIN);
  request.mutable_cache()->add_layers()->set_source(tree + ":/a");
  request.mutable_cache()->add_destinations("oci:" + cache + ":v");
  absl::Status status = Run(request);
  ASSERT_TRUE(status.ok()) << status;
  const oci::Layout made = oci::Layout::Open(cache).value();
  const base::Digest manifest = made.Resolve("v")->digest;
  auto parsed = oci::ParseManifestOrIndex(made.ReadBlob(manifest, 1 << 20).value(), manifest, "");
  const base::Digest cached = std::get<oci::Manifest>(parsed.value()).layers.at(0).digest;
  ASSERT_EQ(unlink(absl::StrCat(cache, "/blobs/sha256/", cached.hex()).c_str()), 0);

  const Image image = support::MakeImage({MakeOne("a")});
  const std::string layout = directory_.File("layout");
  ASSERT_TRUE(support::WriteLayout(layout, "t", image).ok());
  const base::Digest layer = image.layers[0].descriptor.digest;
  ASSERT_EQ(unlink(absl::StrCat(layout, "/blobs/sha256/", layer.hex()).c_str()), 0);

  request.mutable_cache()->mutable_layers(0)->set_source(tree + ":/b");
  request.mutable_cache()->add_imports("oci:" + cache + ":v");
  request.mutable_cache()->set_destinations(0, "dst.test/cache:1");
  request.add_images()->set_base("oci:" + layout + ":t");
  request.mutable_images(0)->set_all_platforms(true);
  request.add_destinations("dst.test/x:1");
  for (v1::OnFailure policy : {v1::INDEPENDENT, v1::CACHE_REQUIRED}) {
    request.set_on_failure(policy);
    status = Run(request);
    EXPECT_THAT(Missing(status), UnorderedElementsAre(layer, cached)) << status;
  }
}

TEST_F(ExportJobTest, NoRegistryIsTaggedWhenALocalDestinationFails) {
  const Image image = support::MakeImage({MakeOne("a")});
  registry_.PutImage("src", "latest", image);
  {
    absl::MutexLock lock(&placer_.mutex);  // nothing has to be sent: it is long done when the others fail
    placer_.there_already.insert(image.layers[0].descriptor.digest);
    placer_.there_already.insert(image.config_descriptor.digest);
  }
  registry_.AddFault({.path_contains = image.layers[0].descriptor.digest.hex()},
                     {.delay = absl::Milliseconds(200), .status = 403});
  for (const char* scheme : {"oci:", "oci-archive:", "dir:"}) {
    v1::ExportRequest request = Copy(Source(), {"dst.test/x:1", scheme + directory_.File("out")});
    const absl::Status status = Run(request);
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
    EXPECT_THAT(Log("put"), IsEmpty()) << scheme;
    ASSERT_TRUE(base::RemoveTree(directory_.File("out")).ok());
  }
}

TEST_F(ExportJobTest, NothingLocalIsNamedWhenARegistryRefusesTheTag) {
  registry_.PutImage("src", "latest", support::MakeImage({MakeOne("a")}));
  {
    absl::MutexLock lock(&placer_.mutex);
    placer_.refused.insert("dst.test/x:1");
  }
  ASSERT_TRUE(base::MakeDirectories(directory_.File("in")).ok());
  const absl::Status status = Run(Copy(Source(), {"oci:" + directory_.File("layout") + ":v",
                                                  "oci-archive:" + directory_.File("archive") + ":v",
                                                  "dir:" + directory_.File("in/files"), "dst.test/x:1"}));
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(Log("put"), ElementsAre("put dst.test/x:1"));
  auto layout = oci::Layout::Open(directory_.File("layout"));
  EXPECT_TRUE(!layout.ok() || !layout->Resolve("v").ok());
  EXPECT_NE(access(directory_.File("archive").c_str(), F_OK), 0);
  EXPECT_THAT(base::ListDirectory(directory_.File("in")).value(), IsEmpty());
}

TEST_F(ExportJobTest, LayoutsHoldWhatWasCopied) {
  const Image image = support::MakeImage({MakeOne("a"), MakeOne("b")});
  registry_.PutImage("src", "latest", image);
  const std::string out = directory_.File("out");
  ASSERT_TRUE(Run(Copy(Source(), {"oci:" + out + ":v1"})).ok());
  auto layout = oci::Layout::Open(out);
  ASSERT_TRUE(layout.ok()) << layout.status();
  auto top = layout->Resolve("v1");
  ASSERT_TRUE(top.ok()) << top.status();
  EXPECT_EQ(top->digest, image.manifest_descriptor.digest);
  for (const Layer& layer : image.layers) {
    EXPECT_EQ(layout->ReadBlob(layer.descriptor.digest, 1 << 20).value_or(""), layer.blob);
  }
  EXPECT_EQ(Report().images(0).reference(), "oci:" + out + ":v1");
  // And again: nothing is fetched for what is there.
  const size_t fetched = registry_.Count({.path_contains = "/blobs/"});
  ASSERT_TRUE(Run(Copy(Source(), {"oci:" + out + ":v2"})).ok());
  EXPECT_EQ(registry_.Count({.path_contains = "/blobs/"}), fetched);
}

TEST_F(ExportJobTest, UnlazyMakesEveryLayerWhole) {
  const Image image = support::MakeImage({MakeOne("a"), MakeOne("b")});
  registry_.PutImage("src", "latest", image);
  v1::ExportRequest request;
  request.add_images()->set_base(Source());
  request.mutable_images(0)->set_platform("linux/amd64");
  request.set_unlazy(true);
  absl::Status status = Run(request);
  ASSERT_TRUE(status.ok()) << status;
  for (const Layer& layer : image.layers) {
    auto known = store_->Find(layer.descriptor.digest);
    ASSERT_NE(known, nullptr);
    EXPECT_EQ(known->state(), contentstore::LayerState::kComplete);
    EXPECT_EQ(known->diff_id(), layer.diff_id);
  }
  EXPECT_THAT(Finals(), SizeIs(2));
  // A layer that is whole needs nobody any more.
  ASSERT_TRUE(Run(request).ok());
  for (const auto& [which, state] : Finals()) EXPECT_EQ(state, "exists");
}

TEST_F(ExportJobTest, UnlazyGoesWithNewLayersAndCopiesInOneExport) {
  const Image amd = OnPlatform({MakeOne("a")}, "amd64");
  const Image arm = OnPlatform({MakeOne("b")}, "arm64");
  registry_.PutImage("src", "amd64", amd);
  registry_.PutImage("src", "arm64", arm);
  ASSERT_TRUE(base::MakeDirectories(directory_.File("tree")).ok());
  v1::ExportRequest request;
  for (const char* architecture : {"amd64", "arm64"}) {
    v1::Image* image = request.add_images();
    image->set_base(Source(architecture));
    image->set_platform(absl::StrCat("linux/", architecture));
  }
  request.mutable_images(1)->add_layers()->set_source("dir:" + directory_.File("tree"));
  request.add_destinations("dst.test/x:1");
  request.set_unlazy(true);
  absl::Status status = Run(request);
  ASSERT_TRUE(status.ok()) << status;
  for (const Image* image : {&amd, &arm}) {
    auto known = store_->Find(image->layers[0].descriptor.digest);
    ASSERT_NE(known, nullptr);
    EXPECT_EQ(known->state(), contentstore::LayerState::kComplete);
  }
  EXPECT_THAT(store_->Layers(), SizeIs(2)) << "a layer just made needs no provider";
  absl::MutexLock lock(&placer_.mutex);
  auto parsed = oci::ParseManifestOrIndex(placer_.documents["dst.test/x:1"], std::nullopt, "");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_THAT(std::get<oci::Index>(*parsed).manifests, SizeIs(2));
  EXPECT_EQ(std::get<oci::Index>(*parsed).manifests[0].digest, amd.manifest_descriptor.digest);
}

TEST_F(ExportJobTest, WithUnlazyAnInlineCacheIsImportedOnce) {
  registry_.PutImage("src", "latest", support::MakeImage({MakeOne("a")}));
  v1::ExportRequest request;
  request.add_images()->set_base(Source());
  request.mutable_images(0)->set_platform("linux/amd64");
  request.add_destinations("dst.test/x:1");
  request.set_unlazy(true);
  request.mutable_cache()->set_format(v1::INLINE);
  request.mutable_cache()->add_imports(Source("nosuch"));
  absl::Status status = Run(request);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_THAT(Report().warnings(), ElementsAre(HasSubstr("nosuch")));
}

TEST_F(ExportJobTest, NewLayersLieOnTheBase) {
  const Image base = OnPlatform({MakeOne("a")}, "amd64");
  registry_.PutImage("src", "latest", base);
  ASSERT_TRUE(base::MakeDirectories(directory_.File("tree")).ok());
  ASSERT_TRUE(base::WriteFileAtomically(directory_.File("tree/file"), "contents").ok());
  v1::ExportRequest request;
  v1::Image* image = request.add_images();
  image->set_base(Source());
  image->set_platform("linux/amd64");
  image->add_layers()->set_source("dir:" + directory_.File("tree") + ":/opt");
  request.add_destinations("dst.test/x:1");
  request.add_destinations("oci:" + directory_.File("out") + ":v");
  request.set_source_date_epoch(1);
  absl::Status status = Run(request);
  ASSERT_TRUE(status.ok()) << status;
  const std::string digest = Report().images(0).digest();
  {
    absl::MutexLock lock(&placer_.mutex);
    auto parsed = oci::ParseManifestOrIndex(placer_.documents["dst.test/x:1"], std::nullopt, "");
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    const auto& manifest = std::get<oci::Manifest>(*parsed);
    ASSERT_THAT(manifest.layers, SizeIs(2));
    EXPECT_EQ(manifest.layers[0].digest, base.layers[0].descriptor.digest);
    EXPECT_EQ(placer_.blobs["dst.test/x"].count(manifest.layers[1].digest), 1u);
  }
  auto layout = oci::Layout::Open(directory_.File("out"));
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->Resolve("v")->digest.ToString(), digest);
  // The same again: the same bytes.
  ASSERT_TRUE(Run(request).ok());
  EXPECT_EQ(Report().images(0).digest(), digest);
}

TEST_F(ExportJobTest, ALayerOfImageAndCacheIsMadeOnce) {
  ASSERT_TRUE(base::MakeDirectories(directory_.File("tree")).ok());
  ASSERT_TRUE(base::WriteFileAtomically(directory_.File("tree/file"), "contents").ok());
  v1::ExportRequest request;
  request.add_images()->set_base("scratch");
  request.mutable_images(0)->add_layers()->set_source("dir:" + directory_.File("tree"));
  request.add_destinations("dst.test/x:1");
  request.mutable_cache()->set_format(v1::PLAIN);
  request.mutable_cache()->add_layers()->set_source("dir:" + directory_.File("tree"));
  request.mutable_cache()->add_destinations("dst.test/cache:1");
  for (v1::Parallel parallel : {v1::ON, v1::OFF}) {
    request.set_parallel(parallel);
    absl::Status status = Run(request);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(
        std::count_if(events_.begin(), events_.end(),
                      [](const v1::ExportEvent& event) { return event.progress().state() == "making"; }),
        1);
    EXPECT_THAT(Report().images(), SizeIs(1));
    EXPECT_THAT(Report().caches(), SizeIs(1));
  }
}

TEST_F(ExportJobTest, WhoFailsDecidesByPolicy) {
  ASSERT_TRUE(base::MakeDirectories(directory_.File("tree")).ok());
  v1::ExportRequest request;
  request.add_images()->set_base("scratch");
  request.mutable_images(0)->add_layers()->set_source("dir:" + directory_.File("tree"));
  request.add_destinations("dst.test/x:1");
  request.mutable_cache()->set_format(v1::PLAIN);
  request.mutable_cache()->add_layers()->set_source("dir:" + directory_.File("tree"));
  request.mutable_cache()->add_destinations("closed.test/cache:1");
  {
    absl::MutexLock lock(&placer_.mutex);
    placer_.refused.insert("closed.test/cache");
  }
  for (v1::OnFailure policy : {v1::INDEPENDENT, v1::CACHE_REQUIRED, v1::FAIL_FAST}) {
    request.set_on_failure(policy);
    absl::Status status = Run(request);
    EXPECT_EQ(status.ok(), policy == v1::INDEPENDENT) << status;
    EXPECT_THAT(Report().cache_error(), HasSubstr("denied"));
    if (policy != v1::FAIL_FAST) {
      EXPECT_THAT(Report().images(), SizeIs(1));
    }
    EXPECT_THAT(std::string(status.message()), HasSubstr(status.ok() ? "" : "denied"));
  }
}

TEST_F(ExportJobTest, AnOptionWithoutEffectIsToldAsEventAndInTheReport) {
  registry_.PutImage("src", "latest", support::MakeImage({MakeOne("a")}));
  v1::ExportRequest request = Copy(Source(), {"dst.test/x:1"});
  request.set_parallel(v1::ON);
  ASSERT_TRUE(Run(request).ok());
  ASSERT_THAT(Report().warnings(), SizeIs(1));
  EXPECT_THAT(Report().warnings(0), HasSubstr("parallel has no effect"));
  EXPECT_EQ(events_.front().warning(), Report().warnings(0)) << "before anything is done";
}

TEST_F(ExportJobTest, ALayerThatCannotBeMadeIsTold) {
  v1::ExportRequest request;
  request.add_images()->set_base("scratch");
  request.mutable_images(0)->add_layers()->set_source("dir:" + directory_.File("nosuch"));
  request.add_destinations("dst.test/x:1");
  EXPECT_THAT(std::string(Run(request).message()), HasSubstr("nosuch"));
  request.mutable_images(0)->mutable_layers(0)->set_source("snapshot:key");
  EXPECT_EQ(Run(request).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Log("put"), IsEmpty());
}

TEST_F(ExportJobTest, ADigestAsDestinationMustBeTheImages) {
  const Image image = support::MakeImage({MakeOne("a")});
  registry_.PutImage("src", "latest", image);
  const std::string other = base::Digest::Of(absl::string_view("other")).ToString();
  EXPECT_EQ(Run(Copy(Source(), {"dst.test/x@" + other})).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Log("place"), IsEmpty());
  EXPECT_TRUE(Run(Copy(Source(), {"dst.test/x@" + image.manifest_descriptor.digest.ToString()})).ok());
}

TEST_F(ExportJobTest, WhatIsWrongIsToldBeforeAnythingIsFetched) {
  EXPECT_EQ(Run({}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Run(Copy(Source("nosuchtag"), {"dst.test/x:1"})).code(), absl::StatusCode::kNotFound);
  cancel_->Cancel();
  registry_.PutImage("src", "latest", support::MakeImage({MakeOne("a")}));
  EXPECT_EQ(Run(Copy(Source(), {"dst.test/x:1"})).code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(Log(""), IsEmpty());
  ASSERT_FALSE(events_.empty());
  EXPECT_TRUE(events_.back().has_done());
}

}  // namespace
}  // namespace lazyblob::exporter
