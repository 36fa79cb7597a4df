#include "tests/support/layer_maker.h"

#include <zlib.h>
#include <zstd.h>

#include <cstdio>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::support {
namespace {

using nlohmann::json;

class LayerMakerTest : public ::testing::Test {
 protected:
  // What `command`, a program of the system, makes of `bytes`.
  std::string Filter(const std::string& command, const std::string& bytes) {
    EXPECT_TRUE(base::WriteFileAtomically(dir_.File("in"), bytes).ok());
    const std::string line = absl::StrCat(command, " < ", dir_.File("in"), " > ", dir_.File("out"));
    EXPECT_EQ(std::system(line.c_str()), 0) << line;
    auto out = base::ReadFile(dir_.File("out"), 64 << 20);
    EXPECT_TRUE(out.ok());
    return out.value_or("");
  }
  TempDir dir_;
};

TEST_F(LayerMakerTest, CompressorsAreUndoneByOtherPrograms) {
  const std::string text = TextBytes(300'000);
  for (const std::string& packed :
       {Gzip(text), Gzip(text, 0), Gzip(text, 6, Z_FIXED), Gzip(text, 9), GzipMembers(text, 70'000)}) {
    EXPECT_TRUE(Filter("gzip -dc", packed) == text);
  }
  for (const std::string& packed : {Zstd(text), ZstdFrames(text, 70'000)}) {
    EXPECT_TRUE(Filter("zstd -qdc", packed) == text);
  }
  EXPECT_EQ(Filter("gzip -dc", Gzip("")), "");
  EXPECT_EQ(Filter("zstd -qdc", Zstd("")), "");
}

TEST_F(LayerMakerTest, MembersAndFramesAreAsManyAsSaid) {
  const std::string text = TextBytes(1000);
  const std::string frames = ZstdFrames(text, 300);
  size_t count = 0;
  for (size_t at = 0; at < frames.size(); ++count) {
    EXPECT_EQ(ZSTD_getFrameContentSize(frames.data() + at, frames.size() - at), count < 3 ? 300U : 100U);
    at += ZSTD_findFrameCompressedSize(frames.data() + at, frames.size() - at);
  }
  EXPECT_EQ(count, 4U);
  EXPECT_EQ(GzipMembers(text, 300), Gzip(text.substr(0, 300)) + Gzip(text.substr(300, 300)) +
                                        Gzip(text.substr(600, 300)) + Gzip(text.substr(900)));
}

TEST_F(LayerMakerTest, DescriptorsNameTheBytes) {
  const std::string tar = MakeTar({File("a", "b")});
  const Layer layer = MakeLayer(tar, oci::Compression::kGzip);
  EXPECT_EQ(layer.descriptor.digest, base::Digest::Of(layer.blob));
  EXPECT_EQ(layer.descriptor.size, layer.blob.size());
  EXPECT_EQ(layer.diff_id, base::Digest::Of(tar));
  EXPECT_EQ(layer.descriptor.media_type, "application/vnd.oci.image.layer.v1.tar+gzip");
  EXPECT_EQ(MakeLayer(tar, oci::Compression::kNone).blob, tar);
}

TEST_F(LayerMakerTest, ImagesFitTogether) {
  const Layer lower = MakeLayer(MakeTar({File("a", "1")}), oci::Compression::kGzip);
  const Layer upper = MakeLayer(MakeTar({File("a", "2")}), oci::Compression::kZstd);
  const Image image = MakeImage({lower, upper});
  const json manifest = json::parse(image.manifest);
  EXPECT_EQ(manifest["layers"][1]["digest"], upper.descriptor.digest.ToString());
  EXPECT_EQ(manifest["config"]["digest"], base::Digest::Of(image.config).ToString());
  const json config = json::parse(image.config);
  EXPECT_EQ(config["rootfs"]["diff_ids"][0], lower.diff_id.ToString());
  EXPECT_EQ(config["os"], "linux");
  const ImageIndex index = MakeIndex({image});
  EXPECT_EQ(json::parse(index.raw)["manifests"][0]["digest"], image.manifest_descriptor.digest.ToString());
  EXPECT_EQ(json::parse(index.raw)["manifests"][0]["platform"]["architecture"], "amd64");
  const Image docker = MakeImage({lower}, {.docker = true});
  EXPECT_EQ(json::parse(docker.manifest)["layers"][0]["mediaType"],
            "application/vnd.docker.image.rootfs.diff.tar.gzip");
}

TEST_F(LayerMakerTest, LayoutsAreReadBySkopeo) {
  const std::string layout = dir_.File("layout");
  const Image first = MakeImage({MakeLayer(MakeTar({File("a", "1")}), oci::Compression::kGzip)});
  const Image second = MakeImage({MakeLayer(MakeTar({File("a", "2")}), oci::Compression::kZstd)});
  ASSERT_TRUE(WriteLayout(layout, "one", first).ok());
  ASSERT_TRUE(WriteLayout(layout, "two", second).ok());
  EXPECT_EQ(Filter(absl::StrCat("skopeo inspect --raw oci:", layout, ":one"), ""), first.manifest);
  EXPECT_EQ(Filter(absl::StrCat("skopeo inspect --raw oci:", layout, ":two"), ""), second.manifest);
  EXPECT_EQ(
      std::system(absl::StrCat("skopeo copy -q oci:", layout, ":one oci:", dir_.File("copy"), ":x").c_str()),
      0);
}

}  // namespace
}  // namespace lazyblob::support
