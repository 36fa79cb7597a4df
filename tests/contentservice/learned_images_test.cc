#include "contentservice/learned_images.h"

#include <gtest/gtest.h>

namespace lazyblob::contentservice {
namespace {

oci::Descriptor Layer(absl::string_view bytes) {
  oci::Descriptor layer;
  layer.media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
  layer.digest = base::Digest::Of(bytes);
  layer.size = bytes.size();
  return layer;
}

TEST(LearnedImagesTest, ConfigOfAnotherNumberOfLayersGivesNoChain) {
  LearnedImages images;
  oci::Manifest manifest;
  manifest.config.digest = base::Digest::Of("config");
  manifest.layers = {Layer("a"), Layer("b")};
  LearnedImage* image = images.Add(base::Digest::Of("manifest"), manifest);
  ASSERT_NE(image, nullptr);
  const base::Digest a = base::Digest::Of("tar a"), b = base::Digest::Of("tar b");
  images.AddConfig(manifest.config.digest, {a});
  EXPECT_TRUE(images.WithChain(a, {}).empty());
  images.AddConfig(manifest.config.digest, {a, b});
  ASSERT_EQ(images.WithChain(a, {}).size(), 1u);
  ASSERT_EQ(images.WithChain(ChainIds({a, b})[1], b).size(), 1u);
  EXPECT_EQ(images.WithChain(ChainIds({a, b})[1], b)[0].second, 1u);
  images.Remove(image->manifest);
  EXPECT_TRUE(images.WithChain(a, {}).empty());
  EXPECT_TRUE(images.WithLayer(Layer("a").digest).empty());
  EXPECT_FALSE(images.IsConfig(manifest.config.digest));
}

TEST(LearnedImagesTest, LayersThatAreElsewhereOrNoneAreNoCandidates) {
  EXPECT_TRUE(LearnedImages::IsCandidate(Layer("a")));
  oci::Descriptor foreign = Layer("a");
  foreign.urls = {"https://elsewhere.test/layer"};
  EXPECT_FALSE(LearnedImages::IsCandidate(foreign));
  oci::Descriptor encrypted = Layer("a");
  encrypted.media_type += "+encrypted";
  EXPECT_FALSE(LearnedImages::IsCandidate(encrypted));
  EXPECT_FALSE(LearnedImages::IsCandidate(Layer("")));
}

TEST(LearnedImagesTest, NamesOfContainerdTellTheNamespace) {
  EXPECT_EQ(NamespaceOf("k8s.io/12/manifest-sha256:ab/c"), "k8s.io");
  EXPECT_EQ(NamespaceOf("k8s.io/x/ref"), "");
  EXPECT_EQ(NamespaceOf("ref"), "");
  EXPECT_EQ(NamespaceOf(""), "");
}

TEST(LearnedImagesTest, LabelsTellHostsAndRepositories) {
  const auto sources = LabelledSources({{"containerd.io/distribution.source.docker.io", "library/a,b"},
                                        {"containerd.io/distribution.source.", "x"},
                                        {"containerd.io/gc.ref.content.0", "y"}});
  ASSERT_EQ(sources.size(), 2u);
  EXPECT_EQ(sources[0].host_name, "docker.io");
  EXPECT_EQ(sources[0].repository, "library/a");
  EXPECT_EQ(sources[1].repository, "b");
  EXPECT_EQ(SourceLabels({"docker.io/b", "[::1]:5000/c", "docker.io/library/a"}),
            (Labels{{"containerd.io/distribution.source.docker.io", "b,library/a"},
                    {"containerd.io/distribution.source.::1", "c"}}));
}

}  // namespace
}  // namespace lazyblob::contentservice
