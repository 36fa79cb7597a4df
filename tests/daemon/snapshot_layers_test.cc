#include "daemon/snapshot_layers.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "contentservice/learned_images.h"
#include "layer/erofs.h"
#include "layer/tar_stream.h"
#include "tests/layer/toc_maker.h"
#include "tests/support/eventually.h"
#include "tests/support/fake_mounter.h"
#include "tests/support/gate.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::daemon {
namespace {

using contentservice::ChainIds;
using snapshotter::LayerClaim;
using snapshotter::LayerMount;
using snapshotter::LowerLayer;
using snapshotter::NotLazyReason;
using support::Directory;
using support::File;
using support::Layer;
using support::MakeTar;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

Layer PlainLayer(const std::vector<support::TarMember>& members) {
  return support::MakeLayer(MakeTar(members), oci::Compression::kGzip);
}

// One with a table of contents.
Layer LazyLayer(const std::vector<support::TarMember>& members) {
  const layer::TocBlob made = layer::MakeTocBlob(members);
  return support::MakeLayerOf(MakeTar(members), made.blob, oci::Compression::kGzip, made.layer.annotations);
}

// … whose diffID is right.
Layer HonestLayer(const std::vector<support::TarMember>& members) {
  Layer made = LazyLayer(members);
  layer::StreamDecoder decoder(oci::Compression::kGzip);
  base::Hasher hasher;
  const absl::Span<const uint8_t> blob(reinterpret_cast<const uint8_t*>(made.blob.data()), made.blob.size());
  absl::Status status = decoder.Feed(blob, [&](absl::Span<const uint8_t> bytes) {
    hasher.Update(bytes);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  made.diff_id = hasher.Finish();
  return made;
}

class SnapshotLayersTest : public ::testing::Test {
 protected:
  SnapshotLayersTest() { Start(); }

  // A daemon that has just been started, while the keeper holds `mounted`.
  void Start(const std::set<std::string>& mounted = {}) {
    snapshots_.reset();
    prepared_.reset();
    layers_.reset();
    store_.reset();
    registry::ClientOptions client;
    client.plain_http = true;
    client.max_attempts = 1;
    client_ = std::make_unique<registry::Client>(std::move(client));
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("store");
    store.log = [](absl::string_view) {};
    auto opened = contentstore::ContentStore::Open(std::move(store));
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
    ImageLayers::Parts parts;
    parts.root = directory_.path();
    parts.client = client_.get();
    parts.store = store_.get();
    parts.mounter = &mounter_;
    parts.reads = {[](const base::Digest&) {}, [](const base::Digest&) {}};
    parts.plain_http = &plain_http_;
    layers_ = std::make_unique<ImageLayers>(parts);
    layers_->mounts().Inherit(mounted);
    prepared_ = std::make_unique<PreparedImages>(layers_.get(), prepared_options_);
    snapshots_ = std::make_unique<SnapshotLayers>(layers_.get(), prepared_.get(), options_);
  }

  void Put(const std::vector<Layer>& layers) {
    support::ImageOptions host;
    host.platform = oci::HostPlatform();
    image_ = support::MakeImage(layers, host);
    registry_.PutImage("test/image", "latest", image_);
    diff_ids_.clear();
    for (const Layer& layer : layers) diff_ids_.push_back(layer.diff_id);
  }

  // As containerd's client makes it for layer `i`.
  LayerClaim Claim(size_t i) {
    LayerClaim claim;
    claim.reference = registry_.host() + "/test/image:latest";
    claim.manifest = image_.manifest_descriptor.digest;
    claim.layer = image_.layers[i].descriptor.digest;
    claim.chain = ChainIds(diff_ids_)[i].ToString();
    return claim;
  }

  absl::StatusOr<LayerMount> Mount(const LayerClaim& claim, const std::vector<LowerLayer>& lowers = {}) {
    return snapshots_->Mount(claim, lowers, std::make_shared<base::CancelToken>());
  }
  std::string Reason(const LayerClaim& claim) {
    auto mounted = Mount(claim);
    return mounted.ok() ? "mounted" : NotLazyReason(mounted.status());
  }
  size_t BlobRequests(size_t i) {
    return registry_.Count({.path_contains = image_.layers[i].descriptor.digest.ToString()});
  }
  std::string MountPoint(size_t i, absl::string_view kind) {
    const uint32_t id = store_->Find(image_.layers[i].descriptor.digest)->id();
    return directory_.File(absl::StrCat("m/", id, kind));
  }
  std::string LayerDirectory(size_t i) {
    return store_->Find(image_.layers[i].descriptor.digest)->directory();
  }

  // Threads may hold a layer some moments longer than their last answer. The store itself holds it twice.
  bool AwaitUnused(size_t i) {
    return support::Eventually(
        [&] { return store_->Find(image_.layers[i].descriptor.digest).use_count() == 3; });
  }

  support::TempDir directory_;
  support::TestRegistry registry_;
  support::FakeMounter mounter_;
  PlainHttpHosts plain_http_;
  support::Image image_;
  std::vector<base::Digest> diff_ids_;
  PreparedImagesOptions prepared_options_;
  SnapshotLayers::Options options_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<ImageLayers> layers_;
  std::unique_ptr<PreparedImages> prepared_;
  std::unique_ptr<SnapshotLayers> snapshots_;
};

TEST(ChainIdsTest, AreThoseOfTheImageSpec) {
  const base::Digest a = base::Digest::Of("a");
  const base::Digest b = base::Digest::Of("b");
  EXPECT_THAT(ChainIds({}), IsEmpty());
  EXPECT_THAT(ChainIds({a, b}), ElementsAre(a, base::Digest::Of(a.ToString() + " " + b.ToString())));
}

TEST_F(SnapshotLayersTest, ALayerWithATableIsMountedThroughFuse) {
  Put({LazyLayer({Directory("."), File("a", "1")}), LazyLayer({Directory("."), File("b", "2")})});
  auto mount = Mount(Claim(0));
  ASSERT_TRUE(mount.ok()) << mount.status();
  EXPECT_EQ(mount->layer, image_.layers[0].descriptor.digest);
  EXPECT_EQ(mount->target, MountPoint(0, "e"));
  EXPECT_FALSE(mount->direct);
  EXPECT_FALSE(mount->opaque_root);
  EXPECT_TRUE(snapshots_->Check(*mount).ok());
  ASSERT_THAT(mounter_.layers, SizeIs(1));
  EXPECT_EQ(mounter_.layers[0].data_path, "");
  snapshots_->Unmount(*mount);
  EXPECT_TRUE(absl::IsUnavailable(snapshots_->Check(*mount)));
}

TEST_F(SnapshotLayersTest, TheFirstCallWorksOnAllLayersAtOnce) {
  auto gate = std::make_shared<support::Gate>();
  std::vector<Layer> layers;
  for (int i = 0; i < 4; ++i) {
    layers.push_back(LazyLayer({Directory("."), File("f", absl::StrCat(i))}));
  }
  Put(layers);
  for (const Layer& layer : layers) {
    registry_.AddFault({.path_contains = layer.descriptor.digest.ToString()}, {.gate = gate});
  }
  std::thread first([&] { EXPECT_TRUE(Mount(Claim(0)).ok()); });
  EXPECT_TRUE(gate->AwaitWaiting(4));
  gate->Open();
  first.join();
  for (size_t i = 1; i < 4; ++i) EXPECT_TRUE(Mount(Claim(i)).ok());
  EXPECT_EQ(registry_.Count({.path_contains = "/manifests/"}), 1u);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(BlobRequests(i), 1u);
}

TEST_F(SnapshotLayersTest, ManyAtOnceResolveOnce) {
  Put({LazyLayer({Directory("."), File("a", "1")})});
  std::vector<std::thread> threads;
  for (int i = 0; i < 16; ++i) threads.emplace_back([&] { EXPECT_TRUE(Mount(Claim(0)).ok()); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(registry_.Count({.path_contains = "/manifests/"}), 1u);
  EXPECT_EQ(BlobRequests(0), 1u);
  EXPECT_THAT(mounter_.layers, SizeIs(1));
}

TEST_F(SnapshotLayersTest, APlainLayerIsStreamedOnceAndMountedOnItsCacheFile) {
  Put({PlainLayer({Directory("."), File("a", "1")})});
  auto mount = Mount(Claim(0));
  ASSERT_TRUE(mount.ok()) << mount.status();
  EXPECT_TRUE(mount->direct);
  EXPECT_EQ(mount->target, MountPoint(0, "ed"));
  EXPECT_EQ(BlobRequests(0), 1u);
}

TEST_F(SnapshotLayersTest, APlainLayerIsLeftToTheClientIfSoConfigured) {
  prepared_options_.stream_plain = false;
  Start();
  Put({PlainLayer({Directory("."), File("a", "1")}), LazyLayer({Directory("."), File("b", "2")})});
  EXPECT_EQ(Reason(Claim(0)), "no-index");
  EXPECT_EQ(BlobRequests(0), 0u);
  EXPECT_EQ(Reason(Claim(1)), "mounted");
  // One that has an index is lazy.
  contentstore::FetchContext context;
  ASSERT_TRUE(store_->EnsureIndexed(*store_->Find(Claim(0).layer), false, context, {}).ok());
  EXPECT_EQ(Reason(Claim(0)), "mounted");
}

TEST_F(SnapshotLayersTest, TheManifestDecidesWhatBelongsToTheImage) {
  Put({LazyLayer({Directory("."), File("a", "1")})});
  LayerClaim claim = Claim(0);
  claim.layer = base::Digest::Of("another");
  EXPECT_EQ(Reason(claim), "layer-not-in-manifest");
  claim = Claim(0);
  claim.chain = base::Digest::Of("another").ToString();
  EXPECT_EQ(Reason(claim), "chain-mismatch");
  claim = Claim(0);
  claim.diff_id = base::Digest::Of("another");
  EXPECT_EQ(Reason(claim), "diff-id-mismatch");
  claim = Claim(0);
  claim.diff_id = diff_ids_[0];
  EXPECT_EQ(Reason(claim), "mounted");
  claim.chain = "x7f0opaque";  // BuildKit's, of what it has not pulled
  EXPECT_EQ(Reason(claim), "mounted");
  EXPECT_THAT(mounter_.layers, SizeIs(1));
}

TEST_F(SnapshotLayersTest, DiffIdsAreComparedFirstWhereThatIsConfigured) {
  prepared_options_.compare_first = true;
  Start();
  Put({HonestLayer({Directory("."), File("a", "1")})});
  EXPECT_EQ(Reason(Claim(0)), "mounted");
  EXPECT_EQ(snapshots_->VerifiedDiffId(image_.layers[0].descriptor.digest), diff_ids_[0]);
  Layer lie = HonestLayer({Directory("."), File("a", "2")});
  lie.diff_id = base::Digest::Of("another");
  Put({lie});
  EXPECT_EQ(Reason(Claim(0)), "quarantined");
  EXPECT_EQ(Reason(Claim(0)), "quarantined");
}

TEST_F(SnapshotLayersTest, OfImagesThatDisagreeAboutALayerTheWrongOneIsRefused) {
  const Layer honest = HonestLayer({Directory("."), File("a", "1")});
  Layer lie = honest;
  lie.diff_id = base::Digest::Of("another");
  Put({lie});
  const LayerClaim wrong = Claim(0);
  auto mounted = Mount(wrong);  // nobody knows better
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  EXPECT_EQ(snapshots_->VerifiedDiffId(wrong.layer), base::Digest());
  Put({honest});
  EXPECT_EQ(Reason(Claim(0)), "mounted");
  EXPECT_EQ(snapshots_->VerifiedDiffId(wrong.layer), honest.diff_id);
  EXPECT_EQ(Reason(wrong), "diff-id-mismatch");
  EXPECT_EQ(Reason(Claim(0)), "mounted");
}

TEST_F(SnapshotLayersTest, AQuarantinedLayerIsNotMounted) {
  Layer lie = HonestLayer({Directory("."), File("a", "1")});
  lie.diff_id = base::Digest::Of("another");
  Put({lie});
  auto mounted = Mount(Claim(0));
  ASSERT_TRUE(mounted.ok()) << mounted.status();
  EXPECT_TRUE(snapshots_->Check(*mounted).ok());
  EXPECT_TRUE(absl::IsDataLoss(store_->Unlazy(*store_->Find(lie.descriptor.digest), {}, {})));
  EXPECT_TRUE(absl::IsUnavailable(snapshots_->Check(*mounted)));
  EXPECT_EQ(Reason(Claim(0)), "quarantined");
}

TEST_F(SnapshotLayersTest, WhatCannotBeReachedIsAReasonAndNotRemembered) {
  Put({LazyLayer({Directory("."), File("a", "1")})});
  LayerClaim claim = Claim(0);
  claim.reference = "not a reference";
  EXPECT_EQ(Reason(claim), "bad-reference");
  claim = Claim(0);
  claim.reference = registry_.host() + "/no/such";
  EXPECT_EQ(Reason(claim), "resolve-failed");
  registry_.AddFault({.path_contains = "/manifests/", .count = 1}, {.status = 503});
  EXPECT_EQ(Reason(Claim(0)), "resolve-failed");
  EXPECT_EQ(Reason(Claim(0)), "mounted");
}

TEST_F(SnapshotLayersTest, ALayerThatFailsIsTriedAgainAndHurtsNoOther) {
  Put({LazyLayer({Directory("."), File("a", "1")}), LazyLayer({Directory("."), File("b", "2")})});
  registry_.AddFault({.path_contains = image_.layers[1].descriptor.digest.ToString(), .count = 1},
                     {.status = 404});
  EXPECT_EQ(Reason(Claim(0)), "mounted");
  EXPECT_EQ(Reason(Claim(1)), "index-failed");
  EXPECT_EQ(Reason(Claim(1)), "mounted");
  EXPECT_EQ(registry_.Count({.path_contains = "/manifests/"}), 1u);
}

TEST_F(SnapshotLayersTest, OneForeignLayerIsNotLazyTheOthersAre) {
  Layer odd = LazyLayer({Directory("."), File("a", "1")});
  odd.descriptor.media_type = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
  Put({odd, LazyLayer({Directory("."), File("b", "2")})});
  EXPECT_EQ(Reason(Claim(0)), "unsupported-format");
  EXPECT_EQ(Reason(Claim(1)), "mounted");
}

TEST_F(SnapshotLayersTest, ATagThatMovedIsAskedForAgain) {
  Put({LazyLayer({Directory("."), File("a", "1")})});
  LayerClaim claim = Claim(0);
  claim.manifest = base::Digest();
  EXPECT_EQ(Reason(claim), "mounted");
  EXPECT_EQ(Reason(claim), "mounted");
  EXPECT_EQ(registry_.Count({.path_contains = "/manifests/"}), 1u);
  Put({LazyLayer({Directory("."), File("b", "2")})});
  claim = Claim(0);
  claim.manifest = base::Digest();
  EXPECT_EQ(Reason(claim), "mounted");
  EXPECT_EQ(registry_.Count({.path_contains = "/manifests/"}), 2u);
}

TEST_F(SnapshotLayersTest, WhatATagGaveIsKnownByDigestToo) {
  Put({LazyLayer({Directory("."), File("a", "1")})});
  LayerClaim by_tag = Claim(0);
  by_tag.manifest = base::Digest();
  EXPECT_EQ(Reason(by_tag), "mounted");
  EXPECT_EQ(Reason(Claim(0)), "mounted");
  EXPECT_EQ(registry_.Count({.path_contains = "/manifests/"}), 1u);
}

TEST_F(SnapshotLayersTest, TheLastOneToLeaveCancelsTheWork) {
  auto gate = std::make_shared<support::Gate>();
  Put({LazyLayer({Directory("."), File("a", "1")})});
  // Every request, for the second one may come when the first has left.
  registry_.AddFault({.path_contains = "/manifests/"}, {.gate = gate});
  auto first = std::make_shared<base::CancelToken>();
  auto second = std::make_shared<base::CancelToken>();
  std::vector<std::thread> threads;
  for (const auto& token : {first, second}) {
    threads.emplace_back([&, token] {
      auto mounted = snapshots_->Mount(Claim(0), {}, token);
      EXPECT_EQ(NotLazyReason(mounted.status()), "resolve-failed");
      EXPECT_TRUE(absl::IsCancelled(mounted.status())) << mounted.status();
    });
  }
  ASSERT_TRUE(gate->AwaitWaiting(1));
  first->Cancel();
  threads[0].join();
  second->Cancel();
  threads[1].join();
  gate->Open();
  EXPECT_EQ(Reason(Claim(0)), "mounted");
}

TEST_F(SnapshotLayersTest, ImpliedDirectoriesLookLikeThoseBelowWhateverThatIs) {
  Put({LazyLayer({Directory("."), Directory("tmp", 01777)}),
       LazyLayer({Directory("."), File("tmp/a", "1")})});
  const auto mode_of_tmp = [&](const LayerMount& mount) {
    auto image = *layer::ErofsImage::Open(mount.meta_path);
    return image->GetInode(*image->Lookup(image->root(), "tmp"))->mode & 07777;
  };
  auto base = Mount(Claim(0));
  ASSERT_TRUE(base.ok()) << base.status();
  auto on_lazy = Mount(Claim(1), {*base});
  ASSERT_TRUE(on_lazy.ok()) << on_lazy.status();
  EXPECT_EQ(mode_of_tmp(*on_lazy), 01777u);
  EXPECT_THAT(on_lazy->target, HasSubstr(".1e"));
  // The same layer, unpacked by the client.
  const std::string local = directory_.File("s/1/fs");
  ASSERT_TRUE(base::MakeDirectories(local + "/tmp").ok());
  ASSERT_EQ(chmod((local + "/tmp").c_str(), 01700), 0);
  auto on_disk = Mount(Claim(1), {local});
  ASSERT_TRUE(on_disk.ok()) << on_disk.status();
  EXPECT_EQ(mode_of_tmp(*on_disk), 01700u);
  EXPECT_NE(on_disk->target, on_lazy->target);
  // Another directory that has taken its name is another one.
  ASSERT_TRUE(base::RemoveTree(local).ok());
  ASSERT_TRUE(base::MakeDirectories(local + "/tmp").ok());
  auto on_another = Mount(Claim(1), {local});
  ASSERT_TRUE(on_another.ok()) << on_another.status();
  EXPECT_EQ(mode_of_tmp(*on_another), 0700u);
}

TEST_F(SnapshotLayersTest, AnOpaqueRootIsTold) {
  Put({LazyLayer({Directory("."), support::OpaqueMarker(""), File("b", "2")})});
  auto mount = Mount(Claim(0));
  ASSERT_TRUE(mount.ok()) << mount.status();
  EXPECT_TRUE(mount->opaque_root);
}

TEST_F(SnapshotLayersTest, AFailedMountLeavesNothing) {
  Put({LazyLayer({Directory("."), File("a", "1")})});
  mounter_.fail = absl::InternalError("no erofs here");
  EXPECT_EQ(Reason(Claim(0)), "mount-failed");
  EXPECT_THAT(base::ListDirectory(directory_.File("m")).value(), IsEmpty());
}

TEST_F(SnapshotLayersTest, ASuccessorAdoptsWhatIsMountedWithoutARequest) {
  Put({LazyLayer({Directory("."), File("a", "1")}), PlainLayer({Directory("."), File("b", "2")})});
  auto lazy = Mount(Claim(0));
  auto direct = Mount(Claim(1));
  ASSERT_TRUE(lazy.ok() && direct.ok());
  mounter_.log.clear();
  registry_.ClearLog();
  Start({lazy->target, direct->target});
  EXPECT_TRUE(absl::IsUnavailable(snapshots_->Check(*lazy)));
  for (const LayerMount& mount : {*lazy, *direct}) {
    auto restored = snapshots_->Restore(mount);
    ASSERT_TRUE(restored.ok()) << restored.status();
    EXPECT_EQ(restored->target, mount.target);
    EXPECT_TRUE(snapshots_->Check(*restored).ok());
  }
  EXPECT_THAT(mounter_.log, IsEmpty());
  EXPECT_THAT(layers_->mounts().DirectFiles(), SizeIs(1));
  EXPECT_EQ(registry_.Count({}), 0u);
  snapshots_->Unmount(*lazy);
  EXPECT_THAT(mounter_.log, ElementsAre("umount " + lazy->target));
}

TEST_F(SnapshotLayersTest, AfterARebootLayersAreMountedAgainFromLocalFiles) {
  Put({LazyLayer({Directory("."), Directory("tmp", 01777)}),
       LazyLayer({Directory("."), File("tmp/a", "1")})});
  auto base = Mount(Claim(0));
  ASSERT_TRUE(base.ok());
  auto chained = Mount(Claim(1), {*base});
  ASSERT_TRUE(chained.ok());
  registry_.ClearLog();
  mounter_.layers.clear();
  Start();
  auto restored = snapshots_->Restore(*chained);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->target, chained->target);
  EXPECT_EQ(restored->meta_path, chained->meta_path);
  ASSERT_THAT(mounter_.layers, SizeIs(1));
  EXPECT_EQ(mounter_.layers[0].meta_path, chained->meta_path);
  // Another kernel can do less.
  mounter_.probe.mode = fuse::Mode::kLoop;
  Start();
  restored = snapshots_->Restore(*base);
  ASSERT_TRUE(restored.ok()) << restored.status();
  EXPECT_EQ(restored->mode, fuse::Mode::kLoop);
  EXPECT_EQ(restored->target, MountPoint(0, "l"));
  EXPECT_EQ(registry_.Count({}), 0u);
}

TEST_F(SnapshotLayersTest, WhatHasNoFilesAnyMoreCannotBeRestored) {
  Put({LazyLayer({Directory("."), File("a", "1")})});
  auto mount = Mount(Claim(0));
  ASSERT_TRUE(mount.ok());
  snapshots_->Unmount(*mount);
  ASSERT_TRUE(AwaitUnused(0));
  ASSERT_TRUE(store_->Remove(mount->layer).ok());
  EXPECT_TRUE(absl::IsNotFound(snapshots_->Restore(*mount).status()));
}

TEST_F(SnapshotLayersTest, ViewsHaveStableNames) {
  const fuse::IdMapping mapping{{{0, 100000, 65536}}, {{0, 100000, 65536}}};
  auto view = snapshots_->MapIds("/lower", mapping);
  ASSERT_TRUE(view.ok()) << view.status();
  Start({*view});
  EXPECT_EQ(snapshots_->MapIds("/lower", mapping).value(), *view);
  EXPECT_THAT(mounter_.mapped, SizeIs(1));
  snapshots_->UnmapIds("/lower", mapping);
  EXPECT_EQ(mounter_.log.back(), "umount " + *view);
}

TEST_F(SnapshotLayersTest, UsageIsWhatTheLayerOccupies) {
  Put({PlainLayer({Directory("."), File("a", support::RandomBytes(200'000, 1))})});
  ASSERT_TRUE(Mount(Claim(0)).ok());
  const snapshotter::Usage usage = snapshots_->CacheUsage(Claim(0).layer);
  EXPECT_GE(usage.bytes, 200'000u);
  EXPECT_LT(usage.bytes, 400'000u);
  EXPECT_GE(usage.inodes, 3u);
  EXPECT_EQ(snapshots_->CacheUsage(base::Digest::Of("another")).bytes, 0u);
}

TEST_F(SnapshotLayersTest, TrimDropsWhatNothingHoldsOldestFirst) {
  options_.max_cache_bytes = 300'000;
  Start();
  std::vector<Layer> layers;
  for (uint64_t i = 0; i < 3; ++i) {
    layers.push_back(PlainLayer({Directory("."), File("a", support::RandomBytes(200'000, i))}));
  }
  Put(layers);
  std::vector<LayerMount> mounts;
  for (size_t i = 0; i < 3; ++i) mounts.push_back(Mount(Claim(i)).value());
  ASSERT_TRUE(snapshots_->Trim().ok());
  for (size_t i = 0; i < 3; ++i) EXPECT_NE(store_->Find(Claim(i).layer), nullptr) << "mounted";
  for (const LayerMount& mount : mounts) snapshots_->Unmount(mount);
  // The first was used last.
  for (size_t i = 0; i < 3; ++i) {
    const timespec times[2] = {{1000 - static_cast<time_t>(i), 0}, {1000 - static_cast<time_t>(i), 0}};
    ASSERT_EQ(utimensat(AT_FDCWD, LayerDirectory(i).c_str(), times, 0), 0);
    ASSERT_TRUE(AwaitUnused(i));
  }
  ASSERT_TRUE(snapshots_->Trim().ok());
  EXPECT_NE(store_->Find(Claim(0).layer), nullptr);
  EXPECT_EQ(store_->Find(Claim(1).layer), nullptr);
  EXPECT_EQ(store_->Find(Claim(2).layer), nullptr);
  // What was dropped comes back when it is wanted.
  EXPECT_EQ(Reason(Claim(2)), "mounted");
}

TEST_F(SnapshotLayersTest, TrimNeitherCountsNorDropsWhatALeaseHolds) {
  options_.max_cache_bytes = 300'000;
  options_.held = [this] { return std::set<base::Digest>{Claim(2).layer}; };
  Start();
  std::vector<Layer> layers;
  for (uint64_t i = 0; i < 3; ++i) {
    layers.push_back(PlainLayer({Directory("."), File("a", support::RandomBytes(200'000, i))}));
  }
  Put(layers);
  for (size_t i = 0; i < 3; ++i) snapshots_->Unmount(Mount(Claim(i)).value());
  for (size_t i = 0; i < 3; ++i) {
    const timespec times[2] = {{1000 - static_cast<time_t>(i), 0}, {1000 - static_cast<time_t>(i), 0}};
    ASSERT_EQ(utimensat(AT_FDCWD, LayerDirectory(i).c_str(), times, 0), 0);
    ASSERT_TRUE(AwaitUnused(i));
  }
  ASSERT_TRUE(snapshots_->Trim().ok());
  EXPECT_NE(store_->Find(Claim(0).layer), nullptr);
  EXPECT_EQ(store_->Find(Claim(1).layer), nullptr);
  EXPECT_NE(store_->Find(Claim(2).layer), nullptr);
}

TEST_F(SnapshotLayersTest, WithoutALimitEverythingIsKept) {
  Put({PlainLayer({Directory("."), File("a", "1")})});
  snapshots_->Unmount(Mount(Claim(0)).value());
  ASSERT_TRUE(snapshots_->Trim().ok());
  EXPECT_NE(store_->Find(Claim(0).layer), nullptr);
}

}  // namespace
}  // namespace lazyblob::daemon
