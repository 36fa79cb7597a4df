#include "snapshotter/mount_specs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace lazyblob::snapshotter {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

std::vector<std::string> Paths(const std::vector<Lower>& lowers) {
  std::vector<std::string> paths;
  for (const Lower& lower : lowers) paths.push_back(lower.path);
  return paths;
}

MountParts Parts(bool writable, std::vector<std::string> lowers) {
  MountParts parts;
  parts.writable = writable;
  parts.fs = "/r/s/9/fs";
  parts.work = "/r/s/9/work";
  parts.lowers = std::move(lowers);
  return parts;
}

TEST(VisibleLowers, EndBelowAnOpaqueRoot) {
  EXPECT_THAT(Paths(VisibleLowers({{"/a", false}, {"/b", true}, {"/c", false}})), ElementsAre("/a", "/b"));
  EXPECT_THAT(Paths(VisibleLowers({{"/a", true}, {"/b", false}})), ElementsAre("/a"));
}

TEST(VisibleLowers, TheSameDirectoryOnlyAtItsUppermostPlace) {
  EXPECT_THAT(Paths(VisibleLowers({{"/a", false}, {"/b", false}, {"/a", false}, {"/c", false}})),
              ElementsAre("/a", "/b", "/c"));
}

TEST(VisibleLowers, ARepeatedOpaqueLayerStillEndsTheChain) {
  // Its upper place ends it already.
  EXPECT_THAT(Paths(VisibleLowers({{"/a", true}, {"/b", false}, {"/a", true}, {"/c", false}})),
              ElementsAre("/a"));
}

TEST(BuildMounts, WithoutAParentItIsABindOfItsOwnDirectory) {
  auto mounts = BuildMounts(Parts(true, {}));
  ASSERT_THAT(mounts, SizeIs(1));
  EXPECT_EQ(mounts[0].type, "bind");
  EXPECT_EQ(mounts[0].source, "/r/s/9/fs");
  EXPECT_THAT(mounts[0].options, ElementsAre("rw", "rbind"));
  EXPECT_THAT(BuildMounts(Parts(false, {}))[0].options, ElementsAre("ro", "rbind"));
}

TEST(BuildMounts, AViewOfOneLayerIsABindOfIt) {
  auto mounts = BuildMounts(Parts(false, {"/m/1"}));
  ASSERT_THAT(mounts, SizeIs(1));
  EXPECT_EQ(mounts[0].type, "bind");
  EXPECT_EQ(mounts[0].source, "/m/1");
  EXPECT_THAT(mounts[0].options, ElementsAre("ro", "rbind"));
}

TEST(BuildMounts, AViewOfMoreIsAnOverlayWithoutUpper) {
  auto mounts = BuildMounts(Parts(false, {"/m/2", "/m/1"}));
  ASSERT_THAT(mounts, SizeIs(1));
  EXPECT_EQ(mounts[0].type, "overlay");
  EXPECT_EQ(mounts[0].source, "overlay");
  EXPECT_THAT(mounts[0].options, ElementsAre("lowerdir=/m/2:/m/1"));
}

TEST(BuildMounts, AnActiveSnapshotIsAnOverlayEvenOnOneLayer) {
  EXPECT_THAT(BuildMounts(Parts(true, {"/m/1"}))[0].options,
              ElementsAre("workdir=/r/s/9/work", "upperdir=/r/s/9/fs", "lowerdir=/m/1"));
}

TEST(BuildMounts, TheIndexIsTurnedOffWhereThereIsOne) {
  MountParts parts = Parts(true, {"/m/1"});
  parts.index_off = true;
  EXPECT_EQ(BuildMounts(parts)[0].options.front(), "index=off");
  parts.lowers.clear();
  EXPECT_THAT(BuildMounts(parts)[0].options, ElementsAre("rw", "rbind"));
}

TEST(BuildMounts, AHundredLayersFitOnePage) {
  MountParts parts = Parts(true, {});
  parts.index_off = true;
  parts.fs = "/var/lib/lazyblob/s/1000000/fs";
  parts.work = "/var/lib/lazyblob/s/1000000/work";
  for (int i = 0; i < 100; ++i)
    parts.lowers.push_back(absl::StrCat("/var/lib/lazyblob/s/", 1000000 + i, "/fs"));
  size_t bytes = 0;
  const std::vector<MountSpec> mounts = BuildMounts(parts);
  for (const std::string& option : mounts[0].options) bytes += option.size() + 1;
  EXPECT_LT(bytes, 4096u);
}

TEST(CheckRoot, RefusesWhatAnOptionCannotHold) {
  EXPECT_TRUE(CheckRoot("/var/lib/lazyblob").ok());
  EXPECT_TRUE(CheckRoot("/var/lib/with space").ok());
  for (const char* root : {"", "relative", "/a,b", "/a:b", "/a\\b", "/a\nb"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckRoot(root))) << root;
  }
}

}  // namespace
}  // namespace lazyblob::snapshotter
