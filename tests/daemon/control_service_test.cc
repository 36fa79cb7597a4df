#include "daemon/control_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "daemon/control_client.h"
#include "tests/layer/toc_maker.h"
#include "tests/support/fake_mounter.h"
#include "tests/support/gate.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::daemon {
namespace {

namespace api = ::lazyblob::control::v1;
using support::Directory;
using support::File;
using support::Layer;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// A snapshotter of which only what status asks for works.
class QuietSnapshotter final : public snapshotter::Snapshotter {
 public:
  using Specs = absl::StatusOr<std::vector<snapshotter::MountSpec>>;
  Specs Prepare(const std::string&, const std::string&, const snapshotter::Labels&,
                std::shared_ptr<base::CancelToken>) override {
    return absl::UnimplementedError("fake");
  }
  Specs View(const std::string&, const std::string&, const snapshotter::Labels&) override {
    return absl::UnimplementedError("fake");
  }
  Specs Mounts(const std::string&) override { return absl::UnimplementedError("fake"); }
  absl::Status Commit(const std::string&, const std::string&, const snapshotter::Labels&,
                      const std::string&) override {
    return absl::UnimplementedError("fake");
  }
  absl::Status Remove(const std::string&) override { return absl::UnimplementedError("fake"); }
  absl::StatusOr<snapshotter::Info> Stat(const std::string&) override {
    return absl::UnimplementedError("fake");
  }
  absl::StatusOr<snapshotter::Info> Update(const snapshotter::Info&,
                                           const std::vector<std::string>&) override {
    return absl::UnimplementedError("fake");
  }
  absl::Status List(const std::vector<std::string>&,
                    absl::FunctionRef<absl::Status(const snapshotter::Info&)>) override {
    return absl::UnimplementedError("fake");
  }
  absl::StatusOr<snapshotter::Usage> GetUsage(const std::string&) override {
    return absl::UnimplementedError("fake");
  }
  absl::Status Cleanup() override { return absl::UnimplementedError("fake"); }
  std::vector<snapshotter::NotLazyLayer> NotLazyLayers() const override { return not_lazy; }
  std::vector<snapshotter::LayerMount> LazyMounts() const override { return mounts; }
  absl::StatusOr<snapshotter::RecordedFiles> Recorded() const override {
    return snapshotter::RecordedFiles();
  }

  std::vector<snapshotter::NotLazyLayer> not_lazy;
  std::vector<snapshotter::LayerMount> mounts;
};

class ControlServiceTest : public ::testing::Test {
 protected:
  ControlServiceTest() {
    registry::ClientOptions client;
    client.plain_http = true;
    client.max_attempts = 1;
    client_ = std::make_unique<registry::Client>(std::move(client));
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("store");
    store.log = [](absl::string_view) {};
    store_ = contentstore::ContentStore::Open(std::move(store)).value();
    ImageLayers::Parts shared;
    shared.root = directory_.path();
    shared.client = client_.get();
    shared.store = store_.get();
    shared.mounter = &mounter_;
    shared.reads = {[](const base::Digest&) {}, [](const base::Digest&) {}};
    shared.plain_http = &plain_http_;
    layers_ = std::make_unique<ImageLayers>(shared);
    prepared_ = std::make_unique<PreparedImages>(layers_.get(), PreparedImagesOptions{.stream_plain = false});
    MountManager::Parts parts;
    parts.layers = layers_.get();
    parts.mounter = &mounter_;
    parts.requesters = &requesters_;
    mounts_ = std::make_unique<MountManager>(parts);
    ControlParts control;
    control.mounts = mounts_.get();
    control.prepared = prepared_.get();
    control.store = store_.get();
    control.snapshotter = &snapshotter_;
    control.activity = &activity_;
    server_ = ControlServer::Start(directory_.File("control.sock"), control).value();
    control_ = ControlClient::Connect(directory_.path()).value();
  }

  void Put(const std::vector<Layer>& layers) {
    support::ImageOptions host;
    host.platform = oci::HostPlatform();
    image_ = support::MakeImage(layers, host);
    registry_.PutImage("test/image", "latest", image_);
  }
  static Layer WithToc(const std::string& name) {
    const std::vector<support::TarMember> members = {Directory("."), File(name, name)};
    const layer::TocBlob made = layer::MakeTocBlob(members);
    return support::MakeLayerOf(support::MakeTar(members), made.blob, oci::Compression::kGzip,
                                made.layer.annotations);
  }
  static Layer Plain(const std::string& name) {
    return support::MakeLayer(support::MakeTar({Directory("."), File(name, name)}), oci::Compression::kGzip);
  }
  absl::StatusOr<api::MountStatus> Prepare(const std::string& reference) {
    api::PrepareRequest request;
    request.mutable_image()->set_reference(reference);
    return control_->Prepare(request, nullptr, [](const auto&) {});
  }

  support::TempDir directory_;
  support::TestRegistry registry_;
  support::FakeMounter mounter_;
  support::Image image_;
  PlainHttpHosts plain_http_;
  LivingRequesters requesters_;
  QuietSnapshotter snapshotter_;
  Activity activity_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<ImageLayers> layers_;
  std::unique_ptr<PreparedImages> prepared_;
  std::unique_ptr<MountManager> mounts_;
  std::unique_ptr<ControlServer> server_;
  std::unique_ptr<ControlClient> control_;
};

TEST_F(ControlServiceTest, PrepareIndexesAllLayersAndMountsNone) {
  Put({WithToc("a"), Plain("b")});
  auto done = Prepare(registry_.host() + "/test/image");
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->manifest_digest(), image_.manifest_descriptor.digest.ToString());
  ASSERT_EQ(done->layers_size(), 2);
  EXPECT_TRUE(done->layers(0).lazy());
  EXPECT_EQ(done->layers(0).format(), "estargz");
  EXPECT_FALSE(done->layers(1).lazy());
  EXPECT_EQ(done->layers(1).reason(), "no-index");
  EXPECT_TRUE(mounter_.layers.empty());
}

TEST_F(ControlServiceTest, WhatWasPreparedByTagIsThereByDigest) {
  Put({WithToc("a")});
  ASSERT_TRUE(Prepare(registry_.host() + "/test/image").ok());
  registry_.ClearLog();
  ImageRequest request;
  request.reference =
      absl::StrCat(registry_.host(), "/test/image@", image_.manifest_descriptor.digest.ToString());
  auto use = prepared_->Resolve(request, false, nullptr);
  ASSERT_TRUE(use.ok()) << use.status();
  EXPECT_TRUE((*use)->AwaitLayer(0).ok());
  EXPECT_EQ(registry_.Count({}), 0u);
}

TEST_F(ControlServiceTest, PrepareAsksForATagEachTime) {
  Put({WithToc("a")});
  ASSERT_TRUE(Prepare(registry_.host() + "/test/image").ok());
  Put({WithToc("b")});
  auto done = Prepare(registry_.host() + "/test/image");
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->manifest_digest(), image_.manifest_descriptor.digest.ToString());
}

TEST_F(ControlServiceTest, PrepareOfWhatIsNotThereIsAnError) {
  auto done = Prepare(registry_.host() + "/no/such:image");
  EXPECT_THAT(std::string(done.status().message()), HasSubstr("no/such:image"));
}

TEST_F(ControlServiceTest, AClientThatGoesAwayEndsThePreparation) {
  Put({WithToc("a")});
  auto gate = std::make_shared<support::Gate>();
  registry_.AddFault({.path_contains = "/manifests/", .count = 1}, {.gate = gate});
  auto cancel = std::make_shared<base::CancelToken>();
  api::PrepareRequest request;
  request.mutable_image()->set_reference(registry_.host() + "/test/image");
  std::thread client([&] {
    EXPECT_TRUE(absl::IsCancelled(control_->Prepare(request, cancel, [](const auto&) {}).status()));
  });
  ASSERT_TRUE(gate->AwaitWaiting(1));
  cancel->Cancel();
  client.join();
  gate->Open();
  EXPECT_TRUE(Prepare(registry_.host() + "/test/image").ok());
}

TEST_F(ControlServiceTest, StatusTellsOfSnapshots) {
  Put({WithToc("a")});
  ASSERT_TRUE(Prepare(registry_.host() + "/test/image").ok());
  snapshotter::LayerMount mount;
  mount.layer = image_.layers[0].descriptor.digest;
  mount.mode = fuse::Mode::kLoop;
  snapshotter_.mounts = {mount, mount};
  snapshotter_.not_lazy = {{"sha256:b", "host/name:tag", "no-index", "left to\nthe client", 3}};
  auto status = control_->Status("", false);
  ASSERT_TRUE(status.ok()) << status.status();
  ASSERT_THAT(status->snapshot_layers(), SizeIs(1));
  EXPECT_EQ(status->snapshot_layers(0).mode(), "loop");
  ASSERT_THAT(status->not_lazy(), SizeIs(1));
  EXPECT_EQ(status->not_lazy(0).times(), 3u);
  EXPECT_EQ(status->not_lazy(0).detail(), "left to\\x0athe client");
  EXPECT_THAT(control_->Status("host/name:tag", false)->not_lazy(), SizeIs(1));
  EXPECT_TRUE(absl::IsNotFound(control_->Status("host/other:tag", false).status()));
}

}  // namespace
}  // namespace lazyblob::daemon
