#include "daemon/mount_table.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

MountedImage Example() {
  MountedImage image;
  image.reference = "localhost:5000/debian:12";
  image.manifest_digest = base::Digest::Of("manifest");
  image.directory = "/mnt/with \"quotes\" and \xc3\xa4";
  image.mode = fuse::Mode::kLoop;
  image.mode_reason = "asked for";
  image.docker_config = "/root/.docker/config.json";
  image.layers = {{base::Digest::Of("one"), "/r/layers/1/meta.erofs", "/r/m/1", true},
                  {base::Digest::Of("two"), "/r/layers/2/meta.erofs", "/r/m/2", false}};
  return image;
}

TEST(MountTableTest, ComesBackAsItWas) {
  support::TempDir directory;
  std::string path = directory.path() + "/mounts.json";
  ASSERT_TRUE(SaveMountTable(path, {Example()}).ok());
  auto loaded = LoadMountTable(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ(loaded->size(), 1u);
  const MountedImage& image = loaded->front();
  const MountedImage expected = Example();
  EXPECT_EQ(image.reference, expected.reference);
  EXPECT_EQ(image.manifest_digest, expected.manifest_digest);
  EXPECT_EQ(image.directory, expected.directory);
  EXPECT_EQ(image.mode, expected.mode);
  EXPECT_EQ(image.mode_reason, expected.mode_reason);
  EXPECT_EQ(image.docker_config, expected.docker_config);
  ASSERT_EQ(image.layers.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(image.layers[i].digest, expected.layers[i].digest);
    EXPECT_EQ(image.layers[i].meta_path, expected.layers[i].meta_path);
    EXPECT_EQ(image.layers[i].target, expected.layers[i].target);
    EXPECT_EQ(image.layers[i].direct, expected.layers[i].direct);
  }
}

TEST(MountTableTest, AMissingFileIsNoMounts) {
  support::TempDir directory;
  auto loaded = LoadMountTable(directory.path() + "/mounts.json");
  ASSERT_TRUE(loaded.ok());
  EXPECT_TRUE(loaded->empty());
}

TEST(MountTableTest, DamageIsToldWithThePath) {
  support::TempDir directory;
  std::string path = directory.path() + "/mounts.json";
  for (const char* text :
       {"", "{}", "[{}]", "[{\"reference\": 1}]", "[", "[{\"reference\":\"a\",\"manifest\":\"x\"}]"}) {
    ASSERT_TRUE(base::WriteFileAtomically(path, text).ok());
    auto loaded = LoadMountTable(path);
    EXPECT_FALSE(loaded.ok()) << text;
  }
}

}  // namespace
}  // namespace lazyblob::daemon
