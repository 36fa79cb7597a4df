#include "daemon/mount_manager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "layer/erofs.h"
#include "tests/support/fake_mounter.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::daemon {
namespace {

using support::Directory;
using support::File;
using support::Layer;
using support::MakeTar;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Layer GzipLayer(const std::vector<support::TarMember>& members) {
  return support::MakeLayer(MakeTar(members), oci::Compression::kGzip);
}

class MountManagerTest : public ::testing::Test {
 protected:
  MountManagerTest() { Start(); }

  void Start() {
    registry::ClientOptions client;
    client.is_plain_http = [this](const std::string& host) { return plain_http_.Contains(host); };
    client_ = std::make_unique<registry::Client>(std::move(client));
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("store");
    store.log = [](absl::string_view) {};
    auto opened = contentstore::ContentStore::Open(std::move(store));
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
    ASSERT_TRUE(plain_http_.Load(directory_.File("plain_http_hosts.json")).ok());
    ASSERT_EQ(mkdir(directory_.File("mnt").c_str(), 0755), 0);
    manager_ = Manager();
    ASSERT_TRUE(manager_->Restore({}).ok());
  }

  // One that has just been started, while `mounted` is what the keeper holds.
  std::unique_ptr<MountManager> Manager(const std::set<std::string>& mounted = {}) {
    ImageLayers::Parts shared;
    shared.root = directory_.path();
    shared.client = client_.get();
    shared.store = store_.get();
    shared.mounter = &mounter_;
    shared.reads = {[](const base::Digest&) {}, [](const base::Digest&) {}};
    shared.plain_http = &plain_http_;
    shared.crashes = crashes_.get();
    manager_.reset();
    layers_ = std::make_unique<ImageLayers>(shared);
    layers_->mounts().Inherit(mounted);
    MountManager::Parts parts;
    parts.layers = layers_.get();
    parts.mounter = &mounter_;
    parts.requesters = &requesters_;
    return std::make_unique<MountManager>(parts);
  }

  absl::StatusOr<MountedImage> Mount(const std::vector<Layer>& layers, const std::string& mode = "auto") {
    registry_.PutImage("test/image", "latest", support::MakeImage(layers));
    return MountReference(registry_.host() + "/test/image", mode);
  }
  absl::StatusOr<MountedImage> MountReference(const std::string& reference,
                                              const std::string& mode = "auto") {
    ImageRequest request;
    request.reference = reference;
    request.platform = "linux/amd64";
    request.plain_http = true;
    return manager_->Mount(request, directory_.File("mnt"), mode, std::make_shared<base::CancelToken>(),
                           [](const oci::Descriptor&, uint64_t) {});
  }
  // Mount points of layers that exist now.
  std::vector<std::string> MountPoints() { return base::ListDirectory(directory_.File("m")).value(); }

  support::TempDir directory_;
  support::TestRegistry registry_;
  support::FakeMounter mounter_;
  LivingRequesters requesters_;
  PlainHttpHosts plain_http_;
  std::unique_ptr<base::CrashRecord> crashes_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<ImageLayers> layers_;
  std::unique_ptr<MountManager> manager_;
};

TEST_F(MountManagerTest, LayersAreStackedTopmostFirst) {
  auto image =
      Mount({GzipLayer({Directory("."), File("a", "1")}), GzipLayer({Directory("."), File("b", "2")})});
  ASSERT_TRUE(image.ok()) << image.status();
  ASSERT_EQ(image->layers.size(), 2u);
  ASSERT_EQ(mounter_.overlays.size(), 1u);
  EXPECT_EQ(mounter_.overlays[0].target, directory_.File("mnt"));
  EXPECT_THAT(mounter_.overlays[0].lowers, ElementsAre(image->layers[1].target, image->layers[0].target));
  EXPECT_EQ(image->mode, fuse::Mode::kErofs);
  EXPECT_EQ(image->mode_reason, "made up");
}

TEST_F(MountManagerTest, AnImageWhoseManifestCrashedItThriceIsNotResolved) {
  const std::string bad = registry_.host() + "/test/image";
  ASSERT_TRUE(
      base::WriteFileAtomically(directory_.File("crashes"), absl::StrCat(bad, "\n", bad, "\n", bad, "\n"))
          .ok());
  crashes_ = base::CrashRecord::Open(directory_.File("crashes")).value();
  manager_ = Manager();
  ASSERT_TRUE(manager_->Restore({}).ok());
  const auto image = Mount({GzipLayer({Directory("."), File("a", "1")})});
  EXPECT_TRUE(absl::IsFailedPrecondition(image.status())) << image.status();
  EXPECT_THAT(std::string(image.status().message()), HasSubstr(bad + " is not read any more"));
  registry_.PutImage("test/other", "latest",
                     support::MakeImage({GzipLayer({Directory("."), File("a", "1")})}));
  EXPECT_TRUE(MountReference(registry_.host() + "/test/other").ok());
}

TEST_F(MountManagerTest, AStreamedLayerIsMountedOnItsCacheFile) {
  auto image = Mount({GzipLayer({Directory("."), File("a", "1")})});
  ASSERT_TRUE(image.ok()) << image.status();
  ASSERT_EQ(mounter_.layers.size(), 1u);
  EXPECT_THAT(mounter_.layers[0].data_path, HasSubstr("/data"));
  EXPECT_THAT(layers_->mounts().DirectFiles(), ElementsAre(mounter_.layers[0].data_path));
}

TEST_F(MountManagerTest, WithoutSafeDirectMountsEverythingGoesThroughFuse) {
  mounter_.probe.direct = false;
  ASSERT_TRUE(Mount({GzipLayer({Directory("."), File("a", "1")})}).ok());
  EXPECT_EQ(mounter_.layers[0].data_path, "");
  EXPECT_THAT(layers_->mounts().DirectFiles(), IsEmpty());
}

TEST_F(MountManagerTest, AnIndexedLayerIsLazy) {
  registry_.PutImage("test/image", "latest",
                     support::MakeImage({GzipLayer({Directory("."), File("a", "1")})}));
  ImageRequest request{registry_.host() + "/test/image", "linux/amd64", true, ""};
  ASSERT_TRUE(manager_->Index(request, nullptr, [](const oci::Descriptor&, uint64_t) {}).ok());
  EXPECT_THAT(mounter_.layers, IsEmpty());
  ASSERT_TRUE(MountReference(request.reference).ok());
  EXPECT_EQ(mounter_.layers[0].data_path, "");
}

TEST_F(MountManagerTest, TheSameLayerTwiceIsOneLower) {
  Layer same = GzipLayer({Directory("."), File("a", "1")});
  auto image = Mount({same, GzipLayer({Directory("."), File("b", "2")}), same});
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_THAT(mounter_.overlays[0].lowers, ElementsAre(image->layers[2].target, image->layers[1].target));
}

TEST_F(MountManagerTest, AnOpaqueRootHidesTheLayersBelow) {
  auto image = Mount({GzipLayer({Directory("."), File("a", "1")}),
                      GzipLayer({Directory("."), support::OpaqueMarker(""), File("b", "2")})});
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(mounter_.overlays[0].lowers[0], image->layers[1].target);
  for (const std::string& lower : mounter_.overlays[0].lowers) EXPECT_NE(lower, image->layers[0].target);
}

TEST_F(MountManagerTest, WhiteoutsOfAnOnlyLayerNeedAFloor) {
  auto image = Mount({GzipLayer({Directory("."), support::Whiteout("gone")})});
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_THAT(mounter_.overlays[0].lowers, ElementsAre(image->layers[0].target, directory_.File("empty")));
}

TEST_F(MountManagerTest, AnImageWithoutLayersIsAnEmptyDirectory) {
  ASSERT_TRUE(Mount({}).ok());
  EXPECT_THAT(mounter_.overlays[0].lowers, ElementsAre(directory_.File("empty")));
}

TEST_F(MountManagerTest, ImpliedDirectoriesLookLikeTheLowerLayers) {
  auto image = Mount({GzipLayer({Directory("."), Directory("tmp", 01777)}), GzipLayer({File("tmp/a", "1")})});
  ASSERT_TRUE(image.ok()) << image.status();
  const std::string& meta = image->layers[1].meta_path;
  EXPECT_THAT(meta, HasSubstr("/meta-1-"));
  auto tree = (*layer::ErofsImage::Open(meta))->ToTree();
  ASSERT_TRUE(tree.ok());
  for (const auto& [name, inode] : tree->inodes[0].children) {
    if (name == "tmp") {
      EXPECT_EQ(tree->inodes[inode].mode & 07777, 01777u);
    }
  }
  // The same chain again finds the image that was made.
  ASSERT_TRUE(manager_->Unmount(directory_.File("mnt")).ok());
  auto again = MountReference(registry_.host() + "/test/image");
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->layers[1].meta_path, meta);
}

TEST_F(MountManagerTest, AFailureLeavesNothingMounted) {
  mounter_.fail_overlay = absl::InternalError("no overlay here");
  auto image =
      Mount({GzipLayer({Directory("."), File("a", "1")}), GzipLayer({Directory("."), File("b", "2")})});
  EXPECT_THAT(std::string(image.status().message()), HasSubstr("no overlay here"));
  EXPECT_THAT(std::string(image.status().message()), HasSubstr("test/image"));
  EXPECT_THAT(MountPoints(), IsEmpty());
  EXPECT_THAT(manager_->List(), IsEmpty());
}

TEST_F(MountManagerTest, AMountThatCannotBeRecordedIsTakenDown) {
  ASSERT_EQ(unlink(directory_.File("mounts.json").c_str()), 0);
  ASSERT_EQ(mkdir(directory_.File("mounts.json").c_str(), 0700), 0);  // no file can take this name
  EXPECT_FALSE(Mount({GzipLayer({Directory("."), File("a", "1")})}).ok());
  EXPECT_THAT(mounter_.log, ::testing::Contains("lazy umount " + directory_.File("mnt")));
  EXPECT_THAT(MountPoints(), IsEmpty());
  EXPECT_THAT(manager_->List(), IsEmpty());
}

TEST_F(MountManagerTest, BadMountPointsAreRefusedBeforeAnythingIsFetched) {
  ASSERT_TRUE(base::WriteFileAtomically(directory_.File("mnt") + "/file", "x").ok());
  auto image = Mount({GzipLayer({Directory(".")})});
  EXPECT_THAT(std::string(image.status().message()), HasSubstr("not empty"));
  auto root = manager_->Mount({registry_.host() + "/test/image", "", true, ""}, "/proc", "auto", nullptr, {});
  EXPECT_THAT(std::string(root.status().message()), HasSubstr("busy"));
  EXPECT_EQ(registry_.Count({}), 0u);
}

TEST_F(MountManagerTest, UnknownImagesAndArtifactsAreClearErrors) {
  auto unknown = MountReference(registry_.host() + "/no/such:image");
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("no/such:image"));
  Layer odd = GzipLayer({Directory(".")});
  odd.descriptor.media_type = "application/vnd.example.model";
  auto artifact = Mount({odd});
  EXPECT_THAT(std::string(artifact.status().message()), HasSubstr("application/vnd.example.model"));
  EXPECT_THAT(MountPoints(), IsEmpty());
}

TEST_F(MountManagerTest, UnmountForgetsAndMayBeRepeatedOnlyOnce) {
  ASSERT_TRUE(Mount({GzipLayer({Directory("."), File("a", "1")})}).ok());
  ASSERT_EQ(MountPoints().size(), 1u);
  ASSERT_TRUE(manager_->Unmount(directory_.File("mnt")).ok());
  EXPECT_THAT(MountPoints(), IsEmpty());
  EXPECT_TRUE(absl::IsNotFound(manager_->Unmount(directory_.File("mnt"))));
}

TEST_F(MountManagerTest, ABusyMountStays) {
  ASSERT_TRUE(Mount({GzipLayer({Directory("."), File("a", "1")})}).ok());
  mounter_.busy = true;
  EXPECT_TRUE(absl::IsFailedPrecondition(manager_->Unmount(directory_.File("mnt"))));
  EXPECT_EQ(manager_->List().size(), 1u);
  EXPECT_EQ(MountPoints().size(), 1u);
}

TEST_F(MountManagerTest, ASuccessorAdoptsWhatTheKeeperHolds) {
  auto image = Mount({GzipLayer({Directory("."), File("a", "1")})});
  ASSERT_TRUE(image.ok());
  const size_t mounts = mounter_.layers.size();
  const std::set<std::string> held = {directory_.File("mnt"), image->layers[0].target};
  manager_ = Manager(held);
  ASSERT_TRUE(manager_->Restore(held).ok());
  EXPECT_THAT(layers_->mounts().DirectFiles(), ElementsAre(mounter_.layers[0].data_path));
  ASSERT_EQ(manager_->List().size(), 1u);
  EXPECT_EQ(mounter_.layers.size(), mounts);
  ASSERT_TRUE(manager_->Unmount(directory_.File("mnt")).ok());
  EXPECT_THAT(MountPoints(), IsEmpty());
}

TEST_F(MountManagerTest, WhatTheKeeperDoesNotHoldIsForgotten) {
  ASSERT_TRUE(Mount({GzipLayer({Directory("."), File("a", "1")})}).ok());
  manager_ = Manager();
  ASSERT_TRUE(manager_->Restore({}).ok());
  EXPECT_THAT(manager_->List(), IsEmpty());
}

}  // namespace
}  // namespace lazyblob::daemon
