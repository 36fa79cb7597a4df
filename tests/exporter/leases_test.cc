#include "exporter/leases.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/fault.h"
#include "base/file.h"
#include "exporter/export_job.h"
#include "oci/layout.h"
#include "tests/exporter/fake_placer.h"
#include "tests/support/eventually.h"
#include "tests/support/layer_maker.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::exporter {
namespace {

using support::Directory;
using support::File;
using support::Image;
using support::Layer;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

// A placer that looks at each blob before it is placed.
class WatchingPlacer final : public Placer {
 public:
  absl::StatusOr<PlacementState> Place(const PlaceRequest& request) override {
    if (watch) watch(request);
    return placer.Place(request);
  }
  absl::StatusOr<PlacementState> PlaceAgain(const PlaceRequest& request) override {
    return placer.PlaceAgain(request);
  }
  void Learn(const base::Digest&, const oci::Reference&) override {}

  FakePlacer placer;
  std::function<void(const PlaceRequest&)> watch;
};

class LeasesTest : public ::testing::Test {
 protected:
  LeasesTest() {
    registry::ClientOptions client;
    client.plain_http = true;
    client.max_attempts = 1;
    client_ = std::make_unique<registry::Client>(std::move(client));
    Open();
    registry_.PutImage("src", "latest", image_);
  }

  void Open() {
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("store");
    store.log = [](absl::string_view) {};
    store.source_factory = [this](absl::string_view name) { return Source(name); };
    store_ = contentstore::ContentStore::Open(std::move(store)).value();
    LeasesOptions leases;
    leases.directory = directory_.File("leases");
    leases.store = store_.get();
    leases.sources = [this](absl::string_view name) { return Source(name); };
    leases.log = [this](absl::string_view line) { log_.emplace_back(line); };
    leases_ = Leases::Open(std::move(leases)).value();
  }
  void Close() {
    leases_.reset();
    store_.reset();
  }
  void Restart() {
    Close();
    Open();
  }

  absl::StatusOr<std::shared_ptr<contentstore::BlobSource>> Source(absl::string_view name) {
    if (absl::ConsumePrefix(&name, "registry:")) {
      return contentstore::MakeRegistrySource(client_.get(), oci::ParseReference(name).value());
    }
    if (absl::ConsumePrefix(&name, "layout:")) return contentstore::MakeLayoutSource(std::string(name));
    return absl::NotFoundError(absl::StrCat("no such kind of source: ", name));
  }
  std::shared_ptr<contentstore::LazyLayer> Add(const Layer& layer) {
    contentstore::DescriptorHandler handler;
    handler.descriptor = layer.descriptor;
    handler.sources = {*Source(absl::StrCat("registry:", registry_.host(), "/src"))};
    return store_->AddHandler(handler).value();
  }
  // What a garbage collector would do to a layer.
  absl::Status Collect(const Layer& layer) { return store_->Remove(layer.descriptor.digest); }
  bool IsHeld(const Layer& layer) { return absl::IsFailedPrecondition(Collect(layer)); }

  static Layer MakeOne(const std::string& name) {
    return support::MakeLayer(support::MakeTar({Directory("."), File(name, name)}), oci::Compression::kGzip);
  }
  v1::ExportRequest Copy(const std::string& source, const std::string& destination) {
    v1::ExportRequest request;
    request.add_images()->set_base(source);
    request.mutable_images(0)->set_all_platforms(true);
    request.add_destinations(destination);
    return request;
  }
  absl::Status Run(const v1::ExportRequest& request) {
    ExportParts parts;
    parts.client = client_.get();
    parts.store = store_.get();
    parts.placer = &placer_;
    parts.put = placer_.placer.Put();
    parts.staging = directory_.File("staging");
    parts.leases = leases_.get();
    return RunExport(request, parts, {nullptr, std::make_shared<base::CancelToken>()},
                     [this](const v1::ExportEvent& event) {
                       if (event.has_done()) report_ = event.done();
                     });
  }
  // A new layer on `base`, to `destination`; nothing is left of what it was made of.
  void MakeOn(const std::string& base, const std::string& contents, const std::string& destination) {
    ASSERT_TRUE(base::MakeDirectories(directory_.File("tree")).ok());
    ASSERT_TRUE(base::WriteFileAtomically(directory_.File("tree/file"), contents).ok());
    v1::ExportRequest request;
    request.add_images()->set_base(base);
    request.mutable_images(0)->add_layers()->set_source("dir:" + directory_.File("tree"));
    request.add_destinations(destination);
    const absl::Status status = Run(request);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(base::RemoveTree(directory_.File("tree")).ok());
    ASSERT_TRUE(base::RemoveTree(directory_.File("staging")).ok());
  }
  // Whether `store:name`, of digest `digest`, is whole wherever it is pushed.
  absl::Status PushedWhole(const std::string& name, const std::string& digest) {
    const absl::Status status = Run(Copy("store:" + name, "dst.test/x:1"));
    if (!status.ok()) return status;
    if (base::Digest::Of(Placed("dst.test/x:1")).ToString() == digest) return absl::OkStatus();
    return absl::DataLossError("another image");
  }
  std::string Source() { return registry_.host() + "/src:latest"; }
  std::string Placed(const std::string& reference) {
    absl::MutexLock lock(&placer_.placer.mutex);
    return placer_.placer.documents[reference];
  }
  size_t LayerRequests() {
    size_t count = 0;
    for (const Layer& layer : image_.layers) {
      count += registry_.Count({.method = "GET", .path_contains = layer.descriptor.digest.hex()});
    }
    return count;
  }
  void DeleteImageAtTheRegistry() { registry_.AddFault({.path_contains = "/manifests/"}, {.status = 404}); }

  support::TempDir directory_;
  support::TestRegistry registry_;
  const Image image_ = support::MakeImage({MakeOne("a"), MakeOne("b")});
  WatchingPlacer placer_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<Leases> leases_;
  std::vector<std::string> log_;
  v1::Report report_;
};

TEST_F(LeasesTest, WhatALeaseHoldsCannotBeRemovedUntilItIsReleased) {
  ASSERT_TRUE(leases_->Hold("build-1", {Add(image_.layers[0])}).ok());
  Add(image_.layers[1]);
  EXPECT_TRUE(IsHeld(image_.layers[0]));
  EXPECT_THAT(leases_->Held(), UnorderedElementsAre(image_.layers[0].descriptor.digest));
  EXPECT_TRUE(Collect(image_.layers[1]).ok());
  ASSERT_TRUE(leases_->Release("build-1").ok());
  EXPECT_TRUE(Collect(image_.layers[0]).ok());
  EXPECT_TRUE(absl::IsNotFound(leases_->Release("build-1")));
}

TEST_F(LeasesTest, ALeaseOutlivesTheProcess) {
  ASSERT_TRUE(leases_->Hold("build-1", {Add(image_.layers[0])}).ok());
  Restart();
  EXPECT_TRUE(IsHeld(image_.layers[0]));
  ASSERT_THAT(leases_->List(), SizeIs(1));
  EXPECT_EQ(leases_->List()[0].layers(0).size(), image_.layers[0].descriptor.size);
  ASSERT_TRUE(leases_->Release("build-1").ok());
  Restart();
  EXPECT_THAT(leases_->List(), IsEmpty());
}

TEST_F(LeasesTest, ALayerThatTheStoreHasLostIsKnownAgain) {
  ASSERT_TRUE(leases_->Hold("build-1", {Add(image_.layers[0])}).ok());
  Close();
  ASSERT_TRUE(base::RemoveTree(directory_.File("store")).ok());
  Open();
  auto layer = store_->Find(image_.layers[0].descriptor.digest);
  ASSERT_NE(layer, nullptr);
  EXPECT_THAT(store_->SourceNames(*layer), ElementsAre(absl::StrCat("registry:", registry_.host(), "/src")));
  EXPECT_TRUE(store_->EnsureIndexed(*layer, true, {}, {}).ok());
}

TEST_F(LeasesTest, HoldingMoreAddsToWhatIsHeld) {
  ASSERT_TRUE(leases_->Hold("build-1", {Add(image_.layers[0])}).ok());
  ASSERT_TRUE(leases_->Hold("build-1", {Add(image_.layers[1]), Add(image_.layers[0])}).ok());
  for (int start = 0; start < 2; ++start) {
    for (const Layer& layer : image_.layers) EXPECT_TRUE(IsHeld(layer));
    ASSERT_THAT(leases_->List(), SizeIs(1));
    EXPECT_EQ(leases_->List()[0].layers_size(), 2);
    Restart();
  }
}

TEST_F(LeasesTest, ANameIsAFileName) {
  for (const std::string& name : {std::string(), std::string("../up"), std::string(".hidden"),
                                  std::string("a/b"), std::string("a\n"), std::string(129, 'a')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(leases_->Hold(name, {}))) << name;
    EXPECT_TRUE(absl::IsInvalidArgument(leases_->Release(name))) << name;
    EXPECT_TRUE(absl::IsInvalidArgument(Run(Copy(Source(), "store:" + name)))) << name;
  }
  EXPECT_TRUE(leases_->Hold(std::string(128, 'a'), {}).ok());
}

TEST_F(LeasesTest, WhatAProcessLeftHalfDoneIsRemoved) {
  ASSERT_TRUE(leases_->Hold("whole", {Add(image_.layers[0])}).ok());
  for (const char* name : {".7/image", "half"}) {
    ASSERT_TRUE(base::MakeDirectories(absl::StrCat(directory_.File("leases"), "/", name)).ok());
  }
  Restart();
  EXPECT_THAT(base::ListDirectory(directory_.File("leases")).value(), ElementsAre("whole"));
}

TEST_F(LeasesTest, ADamagedLeaseIsToldAndDoesNotSpoilTheOthers) {
  ASSERT_TRUE(leases_->Hold("good", {Add(image_.layers[0])}).ok());
  ASSERT_TRUE(leases_->Hold("bad", {Add(image_.layers[1])}).ok());
  ASSERT_TRUE(base::WriteFileAtomically(directory_.File("leases") + "/bad/lease.json", "{\"layers\":[").ok());
  Restart();
  EXPECT_THAT(leases_->List(), SizeIs(1));
  EXPECT_TRUE(IsHeld(image_.layers[0]));
  EXPECT_THAT(log_, ElementsAre(HasSubstr("lease bad is not kept")));
}

TEST_F(LeasesTest, P7_AStoreOnlyExportOutlivesItsImageTheCollectorAndTheProcess) {
  absl::Status status = Run(Copy(Source(), "store:kept"));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(LayerRequests(), 0u);  // layers stayed where they are
  ASSERT_THAT(report_.images(), SizeIs(1));
  EXPECT_EQ(report_.images(0).reference(), "store:kept");
  EXPECT_EQ(report_.images(0).digest(), image_.manifest_descriptor.digest.ToString());
  DeleteImageAtTheRegistry();
  for (const Layer& layer : image_.layers) EXPECT_TRUE(IsHeld(layer));
  Restart();
  for (const Layer& layer : image_.layers) EXPECT_TRUE(IsHeld(layer));
  status = Run(Copy("store:kept", "dst.test/x:1"));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(Placed("dst.test/x:1"), image_.manifest);
  absl::MutexLock lock(&placer_.placer.mutex);
  for (const Layer& layer : image_.layers) {
    EXPECT_EQ(placer_.placer.blobs["dst.test/x"][layer.descriptor.digest], layer.blob);
  }
}

TEST_F(LeasesTest, LayersOfALeaseCanBeMountedFromWhereTheyAre) {
  ASSERT_TRUE(Run(Copy(Source(), "store:kept")).ok());
  std::atomic<int> seen{0};
  placer_.watch = [&](const PlaceRequest& request) {
    if (request.blob->local()) return;
    ++seen;
    ASSERT_THAT(request.blob->repositories(), SizeIs(1));
    EXPECT_EQ(request.blob->repositories()[0].Name(), registry_.host() + "/src");
  };
  ASSERT_TRUE(Run(Copy("store:kept", registry_.host() + "/other:1")).ok());
  EXPECT_EQ(seen, 2);
}

TEST_F(LeasesTest, WithKeepALeaseNeedsNobodyAnyMore) {
  v1::ExportRequest request = Copy(Source(), "store:kept");
  request.set_keep(true);
  ASSERT_TRUE(Run(request).ok());
  EXPECT_EQ(LayerRequests(), 2u);
  DeleteImageAtTheRegistry();
  for (const Layer& layer : image_.layers) registry_.RemoveBlob("src", layer.descriptor.digest);
  Restart();
  absl::Status status = Run(Copy("store:kept", "dst.test/x:1"));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(Placed("dst.test/x:1"), image_.manifest);
}

TEST_F(LeasesTest, WhatWasMadeIsWrittenAndTheBaseStaysLazy) {
  support::ImageOptions host;
  host.platform = oci::HostPlatform();
  registry_.PutImage("src", "base", support::MakeImage({MakeOne("base")}, host));
  MakeOn(registry_.host() + "/src:base", "contents", "store:made");
  Restart();
  EXPECT_EQ(leases_->List()[0].layers_size(), 1);
  const absl::Status status = Run(Copy("store:made", "dst.test/x:1"));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(base::Digest::Of(Placed("dst.test/x:1")).ToString(), report_.images(0).digest());
}

TEST_F(LeasesTest, ALeaseExportedOntoItselfKeepsWhatWasMade) {
  MakeOn("scratch", "first", "store:made");
  MakeOn("store:made", "second", "store:made");
  const std::string digest = report_.images(0).digest();
  Restart();
  absl::Status status = PushedWhole("made", digest);
  EXPECT_TRUE(status.ok()) << status;
  ASSERT_TRUE(Run(Copy("store:made", "store:made")).ok());
  Restart();
  status = PushedWhole("made", digest);
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(LeasesTest, ACopyOfALeaseNeedsThatLeaseNoMore) {
  MakeOn("scratch", "first", "store:made");
  const std::string digest = report_.images(0).digest();
  ASSERT_TRUE(Run(Copy("store:made", "store:copy")).ok());
  // Named as a layout, its layers are known to be there.
  ASSERT_TRUE(Run(Copy("oci:" + directory_.File("leases/made/image"), "store:other")).ok());
  ASSERT_TRUE(leases_->Release("made").ok());
  Restart();
  for (const char* name : {"copy", "other"}) {
    const absl::Status status = PushedWhole(name, digest);
    EXPECT_TRUE(status.ok()) << name << ": " << status;
  }
}

TEST_F(LeasesTest, ACopyOfALeaseHasWhatThatKept) {
  v1::ExportRequest request = Copy(Source(), "store:kept");
  request.set_keep(true);
  ASSERT_TRUE(Run(request).ok());
  ASSERT_TRUE(Run(Copy("store:kept", "store:copy")).ok());
  ASSERT_TRUE(leases_->Release("kept").ok());
  DeleteImageAtTheRegistry();
  for (const Layer& layer : image_.layers) registry_.RemoveBlob("src", layer.descriptor.digest);
  Restart();
  const absl::Status status = PushedWhole("copy", image_.manifest_descriptor.digest.ToString());
  EXPECT_TRUE(status.ok()) << status;
}

TEST_F(LeasesTest, AnImageThatIsReadOutlivesItsLease) {
  for (const bool released : {true, false}) {
    MakeOn("scratch", "first", "store:made");
    const std::string digest = report_.images(0).digest();
    std::atomic<bool> gone{false};
    placer_.watch = [&](const PlaceRequest&) {
      if (gone.exchange(true)) return;
      if (released) {
        EXPECT_TRUE(leases_->Release("made").ok());
      } else {
        EXPECT_TRUE(Run(Copy(Source(), "store:made")).ok());
      }
    };
    const absl::Status status = PushedWhole("made", digest);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(gone);
    placer_.watch = nullptr;
    const auto left = base::ListDirectory(directory_.File("leases"));
    EXPECT_THAT(left.value(), SizeIs(released ? 0 : 1)) << "it goes with the last reader";
  }
}

TEST_F(LeasesTest, ALeaseIsNotMadeWhenARegistryRefusesTheTag) {
  {
    absl::MutexLock lock(&placer_.placer.mutex);
    placer_.placer.refused.insert("dst.test/x:1");
  }
  v1::ExportRequest request = Copy(Source(), "store:kept");
  request.add_destinations("dst.test/x:1");
  EXPECT_TRUE(absl::IsPermissionDenied(Run(request)));
  EXPECT_THAT(leases_->List(), IsEmpty());
  EXPECT_THAT(base::ListDirectory(directory_.File("leases")).value(), IsEmpty());
}

TEST_F(LeasesTest, ACacheInALeaseLeavesImportedLayersWhereTheyAre) {
  ASSERT_TRUE(base::MakeDirectories(directory_.File("tree")).ok());
  v1::ExportRequest request;
  request.mutable_cache()->set_format(v1::PLAIN);
  request.mutable_cache()->add_layers()->set_source("dir:" + directory_.File("tree") + ":/a");
  request.mutable_cache()->add_destinations("oci:" + directory_.File("cache") + ":v");
  absl::Status status = Run(request);
  ASSERT_TRUE(status.ok()) << status;
  request.mutable_cache()->mutable_layers(0)->set_source("dir:" + directory_.File("tree") + ":/b");
  request.mutable_cache()->add_imports("oci:" + directory_.File("cache") + ":v");
  request.mutable_cache()->set_destinations(0, "store:cache");
  status = Run(request);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_THAT(leases_->List(), SizeIs(1));
  ASSERT_EQ(leases_->List()[0].layers_size(), 1);
  const base::Digest imported = base::Digest::Parse(leases_->List()[0].layers(0).digest()).value();
  EXPECT_TRUE(absl::IsNotFound(leases_->Image("cache").value()->OpenBlob(imported).status()));
}

TEST_F(LeasesTest, AnExportTakesThePlaceOfTheOneBefore) {
  ASSERT_TRUE(Run(Copy(Source(), "store:kept")).ok());
  const Image second = support::MakeImage({MakeOne("c")});
  registry_.PutImage("src", "second", second);
  ASSERT_TRUE(Run(Copy(registry_.host() + "/src:second", "store:kept")).ok());
  for (int start = 0; start < 2; ++start) {
    {
      auto image = leases_->Image("kept");
      ASSERT_TRUE(image.ok());
      EXPECT_EQ((*image)->Resolve(std::nullopt)->digest, second.manifest_descriptor.digest);
    }
    EXPECT_TRUE(support::Eventually([&] { return !IsHeld(image_.layers[0]); }));
    EXPECT_TRUE(IsHeld(second.layers[0]));
    EXPECT_THAT(base::ListDirectory(directory_.File("leases")).value(), ElementsAre("kept"));
    Restart();
  }
}

TEST_F(LeasesTest, AnExportThatFailsLeavesTheOneBefore) {
  ASSERT_TRUE(Run(Copy(Source(), "store:kept")).ok());
  registry_.PutImage("src", "second", support::MakeImage({MakeOne("c")}));
  {
    base::ScopedFault fault("exporter.lease", [] { return absl::ResourceExhaustedError("disk full"); });
    EXPECT_TRUE(absl::IsResourceExhausted(Run(Copy(registry_.host() + "/src:second", "store:kept"))));
  }
  EXPECT_THAT(base::ListDirectory(directory_.File("leases")).value(), ElementsAre("kept"));
  for (const Layer& layer : image_.layers) EXPECT_TRUE(IsHeld(layer));
  EXPECT_TRUE(Run(Copy("store:kept", "dst.test/x:1")).ok());
}

TEST_F(LeasesTest, AnUnknownImageIsToldByName) {
  absl::Status status = Run(Copy("store:nothing", "dst.test/x:1"));
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("store:nothing"));
  ASSERT_TRUE(leases_->Hold("worker", {Add(image_.layers[0])}).ok());  // has layers, but no image
  EXPECT_TRUE(absl::IsNotFound(Run(Copy("store:worker", "dst.test/x:1"))));
}

TEST_F(LeasesTest, P6_WhatAnExportIsAboutToSendCannotBeCollected) {
  std::atomic<int> refused{0};
  placer_.watch = [&](const PlaceRequest&) {
    for (const Layer& layer : image_.layers) refused += IsHeld(layer) ? 1 : 0;
  };
  v1::ExportRequest request = Copy(Source(), "dst.test/x:1");
  request.set_keep(true);
  absl::Status status = Run(request);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(refused, 6);  // at each of three blobs, both layers
  EXPECT_EQ(Placed("dst.test/x:1"), image_.manifest);
  // Threads may hold a layer some moments longer than their last answer.
  for (const Layer& layer : image_.layers) {
    EXPECT_TRUE(support::Eventually([&] { return Collect(layer).ok(); }));
  }
}

}  // namespace
}  // namespace lazyblob::exporter
