#include "daemon/pull.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/support/fake_containerd.h"
#include "tests/support/layer_maker.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::daemon {
namespace {

using support::FakeContainerd;

support::Layer LayerWith(const std::string& name) {
  return support::MakeLayer(support::MakeTar({support::File(name, "contents of " + name)}),
                            oci::Compression::kGzip);
}

class PullTest : public ::testing::Test {
 protected:
  PullTest() {
    options_.reference = *oci::ParseReference(absl::StrCat(registry_.host(), "/test/image:v1"));
    options_.platform = {"linux", "amd64", "", ""};
    registry::ClientOptions client;
    client.plain_http = true;
    client_ = std::make_unique<registry::Client>(client);
    registry_.PutImage("test/image", "v1", image_);
    containerd_.unpacks_to = [this](const std::string& blob) {
      for (const support::Layer& layer : image_.layers) {
        if (layer.descriptor.digest.ToString() == blob) return layer.diff_id.ToString();
      }
      return std::string();
    };
  }

  absl::StatusOr<PulledImage> PullOnce() {
    auto containerd = ContainerdClient::Connect(directory_.File("c.sock"), "test", cancel_);
    if (!containerd.ok()) return containerd.status();
    PullParts parts;
    parts.client = client_.get();
    parts.containerd = containerd->get();
    parts.call.cancel = cancel_;
    parts.prepare = prepare_;
    parts.warn = [this](absl::string_view line) { warnings_.emplace_back(line); };
    return Pull(options_, parts);
  }

  std::string LayerDigest(size_t i) const { return image_.layers[i].descriptor.digest.ToString(); }
  size_t LayerRequests() {
    size_t count = 0;
    for (const support::Layer& layer : image_.layers) {
      count += registry_.Count({.path_contains = "/blobs/" + layer.descriptor.digest.ToString()});
    }
    return count;
  }

  support::TempDir directory_;
  support::TestRegistry registry_;
  FakeContainerd containerd_{directory_.File("c.sock")};
  support::Image image_ = support::MakeImage({LayerWith("a"), LayerWith("b"), LayerWith("c")});
  std::shared_ptr<base::CancelToken> cancel_ = std::make_shared<base::CancelToken>();
  std::unique_ptr<registry::Client> client_;
  std::function<absl::Status(const std::string&)> prepare_;
  std::vector<std::string> warnings_;
  PullOptions options_;
};

TEST_F(PullTest, LazyLayersAreNotFetched) {
  auto pulled = PullOnce();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(LayerRequests(), 0u);
  ASSERT_EQ(pulled->layers.size(), 3u);
  for (const PulledLayer& layer : pulled->layers) EXPECT_TRUE(layer.lazy);
  EXPECT_EQ(containerd_.blobs().size(), 2u) << "manifest and config";
  EXPECT_EQ(containerd_.images().at(options_.reference.ToString()),
            image_.manifest_descriptor.digest.ToString());
  EXPECT_EQ(containerd_.namespaces(), std::vector<std::string>{"test"});
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(PullTest, DocumentsHaveTheLabelsThatKeepThem) {
  ASSERT_TRUE(PullOnce().ok());
  auto blobs = containerd_.blobs();
  const FakeContainerd::Blob& manifest = blobs.at(image_.manifest_descriptor.digest.ToString());
  EXPECT_EQ(manifest.bytes, image_.manifest);
  EXPECT_EQ(manifest.labels,
            (FakeContainerd::Labels{
                {"containerd.io/distribution.source.127.0.0.1", "test/image"},
                {"containerd.io/gc.ref.content.config", image_.config_descriptor.digest.ToString()},
                {"containerd.io/gc.ref.content.l.0", LayerDigest(0)},
                {"containerd.io/gc.ref.content.l.1", LayerDigest(1)},
                {"containerd.io/gc.ref.content.l.2", LayerDigest(2)}}));
  auto chain_ids = ChainIds({image_.layers[0].diff_id, image_.layers[1].diff_id, image_.layers[2].diff_id});
  const FakeContainerd::Blob& config = blobs.at(image_.config_descriptor.digest.ToString());
  EXPECT_EQ(config.labels.at("containerd.io/gc.ref.snapshot.lazyblob"), chain_ids.back());
}

TEST_F(PullTest, EveryWriteIsUnderALeaseThatIsGoneAfterwards) {
  ASSERT_TRUE(PullOnce().ok());
  for (const auto& [digest, blob] : containerd_.blobs()) EXPECT_NE(blob.lease, "") << digest;
  EXPECT_TRUE(containerd_.leases().empty());
  std::vector<std::string> log = containerd_.log();
  EXPECT_EQ(log.back(), "Delete lease");
  EXPECT_EQ(log[log.size() - 2], absl::StrCat("Create image ", options_.reference.ToString()))
      << "the record comes last";
}

TEST_F(PullTest, SnapshotterIsToldWhichLayerItIs) {
  ASSERT_TRUE(PullOnce().ok());
  auto chain_ids = ChainIds({image_.layers[0].diff_id, image_.layers[1].diff_id, image_.layers[2].diff_id});
  auto snapshot = containerd_.snapshots().at(chain_ids[1]);
  EXPECT_EQ(snapshot.parent, chain_ids[0]);
  EXPECT_EQ(snapshot.labels.at("containerd.io/snapshot.ref"), chain_ids[1]);
  EXPECT_EQ(snapshot.labels.at("containerd.io/snapshot/cri.image-ref"), options_.reference.ToString());
  EXPECT_EQ(snapshot.labels.at("containerd.io/snapshot/cri.layer-digest"), LayerDigest(1));
  EXPECT_EQ(snapshot.labels.at("containerd.io/snapshot/cri.image-layers"),
            absl::StrCat(LayerDigest(1), ",", LayerDigest(2)));
  EXPECT_EQ(snapshot.labels.at("containerd.io/snapshot/cri.manifest-digest"),
            image_.manifest_descriptor.digest.ToString());
  EXPECT_EQ(snapshot.labels.at("containerd.io/snapshot/diff-id"), image_.layers[1].diff_id.ToString());
}

TEST_F(PullTest, LayerThatIsNotTakenLazilyIsFetchedAndUnpacked) {
  containerd_.lazy = [this](const std::string& layer) { return layer != LayerDigest(1); };
  auto pulled = PullOnce();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_TRUE(pulled->layers[0].lazy);
  EXPECT_FALSE(pulled->layers[1].lazy);
  EXPECT_TRUE(pulled->layers[2].lazy);
  EXPECT_EQ(LayerRequests(), 1u);
  const auto blob = containerd_.blobs().at(LayerDigest(1));
  EXPECT_EQ(blob.bytes, image_.layers[1].blob);
  EXPECT_EQ(blob.labels.at("containerd.io/uncompressed"), image_.layers[1].diff_id.ToString());
  for (const auto& [key, snapshot] : containerd_.snapshots()) EXPECT_TRUE(snapshot.committed) << key;
}

TEST_F(PullTest, LayerThatUnpacksToSomethingElseIsRefused) {
  containerd_.lazy = [](const std::string&) { return false; };
  containerd_.unpacks_to = [](const std::string& blob) { return blob; };
  auto pulled = PullOnce();
  EXPECT_TRUE(absl::IsDataLoss(pulled.status())) << pulled.status();
  EXPECT_TRUE(containerd_.snapshots().empty()) << "the active snapshot is taken back";
  EXPECT_TRUE(containerd_.images().empty());
  EXPECT_TRUE(containerd_.leases().empty());
}

TEST_F(PullTest, WhatAnInterruptedPullHasFetchedIsNotFetchedAgain) {
  containerd_.lazy = [](const std::string&) { return false; };
  const std::string& bytes = image_.layers[0].blob;
  containerd_.PutIngest("layer-" + LayerDigest(0), bytes.substr(0, 10));
  auto pulled = PullOnce();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(registry_.BodyBytes({.path_contains = LayerDigest(0)}), bytes.size() - 10);
}

TEST_F(PullTest, WrongLeftoversAreThrownAwayAndTheNextPullSucceeds) {
  containerd_.lazy = [](const std::string&) { return false; };
  containerd_.PutIngest("layer-" + LayerDigest(0), "wrong");
  EXPECT_FALSE(PullOnce().ok());
  auto pulled = PullOnce();
  EXPECT_TRUE(pulled.ok()) << pulled.status();
}

TEST_F(PullTest, SecondPullChangesNothing) {
  ASSERT_TRUE(PullOnce().ok());
  auto before = containerd_.snapshots();
  auto pulled = PullOnce();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(containerd_.snapshots().size(), before.size());
  EXPECT_EQ(containerd_.images().size(), 1u);
  EXPECT_TRUE(pulled->layers[0].lazy);
}

TEST_F(PullTest, RecordThatPointedElsewhereIsMoved) {
  containerd_.PutImage(options_.reference.ToString(), "sha256:old");
  ASSERT_TRUE(PullOnce().ok());
  EXPECT_EQ(containerd_.images().at(options_.reference.ToString()),
            image_.manifest_descriptor.digest.ToString());
}

TEST_F(PullTest, SourcesOfABlobThatIsThereAreKept) {
  containerd_.PutBlob(image_.config_descriptor.digest.ToString(), image_.config,
                      {{"containerd.io/distribution.source.127.0.0.1", "other/image"}, {"mine", "kept"}});
  ASSERT_TRUE(PullOnce().ok());
  auto labels = containerd_.blobs().at(image_.config_descriptor.digest.ToString()).labels;
  EXPECT_EQ(labels.at("containerd.io/distribution.source.127.0.0.1"), "other/image,test/image");
  EXPECT_EQ(labels.at("mine"), "kept");
}

TEST_F(PullTest, IndexIsKeptWithAllItsManifests) {
  support::ImageOptions other;
  other.platform = {"linux", "arm64", "", ""};
  support::ImageIndex index = support::MakeIndex({image_, support::MakeImage({LayerWith("d")}, other)});
  registry_.PutIndex("test/image", "v1", index);
  auto pulled = PullOnce();
  ASSERT_TRUE(pulled.ok()) << pulled.status();
  EXPECT_EQ(pulled->target.digest, index.descriptor.digest);
  EXPECT_EQ(pulled->manifest, image_.manifest_descriptor.digest);
  auto blobs = containerd_.blobs();
  EXPECT_EQ(blobs.size(), 3u);
  auto labels = blobs.at(index.descriptor.digest.ToString()).labels;
  EXPECT_EQ(labels.at("containerd.io/gc.ref.content.m.0"),
            index.images[0].manifest_descriptor.digest.ToString());
  EXPECT_EQ(labels.at("containerd.io/gc.ref.content.m.1"),
            index.images[1].manifest_descriptor.digest.ToString());
}

TEST_F(PullTest, SnapshotThatVanishesIsPreparedAgain) {
  containerd_.vanishing = 2;
  EXPECT_TRUE(PullOnce().ok());
  containerd_.vanishing = 1000;
  image_ = support::MakeImage({LayerWith("e")});
  registry_.PutImage("test/image", "v1", image_);
  auto pulled = PullOnce();
  EXPECT_TRUE(absl::IsNotFound(pulled.status())) << pulled.status();
}

TEST_F(PullTest, AnotherWriterIsWaitedFor) {
  containerd_.locked = 3;
  auto pulled = PullOnce();
  EXPECT_TRUE(pulled.ok()) << pulled.status();
}

TEST_F(PullTest, SeveralPullsOfOneImageAllSucceed) {
  containerd_.lazy = [this](const std::string& layer) { return layer != LayerDigest(2); };
  std::vector<std::thread> threads;
  std::vector<absl::Status> results(6);
  for (absl::Status& result : results) threads.emplace_back([&] { result = PullOnce().status(); });
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& result : results) EXPECT_TRUE(result.ok()) << result;
  for (const auto& [key, snapshot] : containerd_.snapshots()) EXPECT_TRUE(snapshot.committed) << key;
  EXPECT_TRUE(containerd_.leases().empty());
}

TEST_F(PullTest, DaemonIsAskedForTheVeryManifest) {
  std::string asked;
  prepare_ = [&](const std::string& reference) {
    asked = reference;
    return absl::OkStatus();
  };
  ASSERT_TRUE(PullOnce().ok());
  EXPECT_EQ(asked,
            absl::StrCat(options_.reference.ToString(), "@", image_.manifest_descriptor.digest.ToString()));
}

TEST_F(PullTest, DaemonThatCannotPrepareIsOnlyAWarning) {
  prepare_ = [](const std::string&) { return absl::UnavailableError("no daemon"); };
  EXPECT_TRUE(PullOnce().ok());
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_TRUE(absl::StartsWith(warnings_[0], "no daemon")) << warnings_[0];
}

TEST_F(PullTest, CancelledWhileTheSnapshotterWorksItGivesItsLeaseBack) {
  containerd_.prepare_gate = std::make_shared<absl::Notification>();
  absl::Status result;
  std::thread pull([&] { result = PullOnce().status(); });
  EXPECT_TRUE(containerd_.AwaitLog("Prepare in lazyblob"));
  cancel_->Cancel();
  pull.join();
  EXPECT_TRUE(absl::IsCancelled(result)) << result;
  EXPECT_TRUE(containerd_.leases().empty());
  EXPECT_TRUE(containerd_.images().empty());
}

TEST_F(PullTest, MissingImageLeavesContainerdAlone) {
  options_.reference.tag = "none";
  EXPECT_TRUE(absl::IsNotFound(PullOnce().status()));
  EXPECT_TRUE(containerd_.log().empty());
}

TEST(PrepareLabelsTest, AuthorsAnnotationsDoNotReplaceOurs) {
  ResolvedImage image;
  image.manifest_digest = base::Digest::Of(absl::string_view("m"));
  image.diff_ids = {base::Digest::Of(absl::string_view("d"))};
  oci::Descriptor layer;
  layer.digest = base::Digest::Of(absl::string_view("l"));
  layer.annotations = {{"containerd.io/snapshot/cri.image-ref", "evil.example/x"},
                       {"containerd.io/snapshot/stargz/toc.digest", "sha256:x"},
                       {"containerd.io/snapshot/long", std::string(4096, 'x')},
                       {"containerd.io/snapshot.ref", "other"},
                       {"org.example", "not inherited"}};
  image.layers = {layer};
  auto labels = PrepareLabels(image, "host/name:tag", 0, "chain");
  EXPECT_EQ(labels.at("containerd.io/snapshot/cri.image-ref"), "host/name:tag");
  EXPECT_EQ(labels.at("containerd.io/snapshot.ref"), "chain");
  EXPECT_EQ(labels.at("containerd.io/snapshot/stargz/toc.digest"), "sha256:x");
  EXPECT_FALSE(labels.contains("containerd.io/snapshot/long"));
  EXPECT_FALSE(labels.contains("org.example"));
}

TEST(PrepareLabelsTest, ListOfLayersFitsALabel) {
  ResolvedImage image;
  for (int i = 0; i < 200; ++i) {
    oci::Descriptor layer;
    layer.digest = base::Digest::Of(absl::StrCat(i));
    image.layers.push_back(layer);
    image.diff_ids.push_back(layer.digest);
  }
  auto labels = PrepareLabels(image, "host/name:tag", 10, "chain");
  const std::string& list = labels.at("containerd.io/snapshot/cri.image-layers");
  EXPECT_TRUE(absl::StartsWith(list, image.layers[10].digest.ToString()));
  EXPECT_LE(list.size() + strlen("containerd.io/snapshot/cri.image-layers"), 4096u);
  EXPECT_GT(list.size(), 3900u);
  EXPECT_EQ((list.size() + 1) % 72, 0u) << "whole digests only";
}

TEST(ChainIdsTest, AreThoseOfTheImageSpecification) {
  // From image-spec config.md: ChainID(L0) = DiffID(L0), ChainID(L0|L1) = Digest(ChainID(L0) + " " +
  // DiffID(L1)).
  auto a = *base::Digest::Parse("sha256:" + std::string(64, 'a'));
  auto b = *base::Digest::Parse("sha256:" + std::string(64, 'b'));
  auto chain = ChainIds({a, b});
  EXPECT_EQ(chain[0], a.ToString());
  EXPECT_EQ(chain[1], base::Digest::Of(absl::StrCat(a.ToString(), " ", b.ToString())).ToString());
}

TEST(AppendSourceTest, ListIsSortedAndHasEachOnce) {
  EXPECT_EQ(AppendSource("", "b"), "b");
  EXPECT_EQ(AppendSource("a,c", "b"), "a,b,c");
  EXPECT_EQ(AppendSource("a,b", "b"), "a,b");
}

}  // namespace
}  // namespace lazyblob::daemon
