// TOC images in a registry: found beside the image, read once, and nothing else taken for one.

#include "daemon/external_toc.h"

#include <nlohmann/json.hpp>

#include <thread>

#include "daemon/image_resolver.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "oci/manifest.h"
#include "tests/support/test_registry.h"

namespace lazyblob::daemon {
namespace {

using ::testing::HasSubstr;

constexpr char kRepository[] = "test/image";
constexpr char kLayerDigest[] = "containerd.io/snapshot/stargz/layer.digest";
constexpr char kGzip[] = "application/vnd.oci.image.layer.v1.tar+gzip";

class ExternalTocTest : public ::testing::Test {
 protected:
  ExternalTocTest() {
    registry::ClientOptions options;
    options.plain_http = true;
    options.max_attempts = 1;
    client_ = std::make_unique<registry::Client>(options);
  }

  // The image TAG-esgztoc with `tocs`, each for the layer it stands beside.
  base::Digest PutTocImage(const std::string& tag,
                           const std::vector<std::pair<base::Digest, std::string>>& tocs) {
    const std::string config = "{}";
    nlohmann::json layers = nlohmann::json::array();
    for (const auto& [layer, toc] : tocs) {
      registry_.PutBlob(kRepository, toc);
      layers.push_back({{"mediaType", kGzip},
                        {"digest", base::Digest::Of(toc).ToString()},
                        {"size", toc.size()},
                        {"annotations", {{kLayerDigest, layer.ToString()}}}});
    }
    registry_.PutBlob(kRepository, config);
    const nlohmann::json manifest = {{"schemaVersion", 2},
                                     {"mediaType", oci::kMediaTypeOciManifest},
                                     {"config",
                                      {{"mediaType", "application/vnd.oci.image.config.v1+json"},
                                       {"digest", base::Digest::Of(config).ToString()},
                                       {"size", config.size()}}},
                                     {"layers", layers}};
    return registry_.PutManifest(kRepository, tag + "-esgztoc", manifest.dump(), oci::kMediaTypeOciManifest);
  }
  contentstore::ExternalTocSource Source(const std::string& name) {
    auto reference = oci::ParseReference(registry_.host() + "/" + kRepository + name);
    EXPECT_TRUE(reference.ok()) << reference.status();
    return MakeExternalTocSource(client_.get(), *reference);
  }

  support::TestRegistry registry_;
  std::unique_ptr<registry::Client> client_;
  const base::Digest a_ = base::Digest::Of("layer a");
  const base::Digest b_ = base::Digest::Of("layer b");
};

TEST_F(ExternalTocTest, LayersFindTheirsWithOneManifest) {
  PutTocImage("1.0", {{a_, "toc of a"}, {b_, "toc of b"}});
  contentstore::ExternalTocSource source = Source(":1.0");
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      EXPECT_EQ(source(i % 2 == 0 ? a_ : b_, {}).value(), i % 2 == 0 ? "toc of a" : "toc of b");
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(registry_.Count({.path_contains = "/manifests/1.0-esgztoc"}), 1u);
  const absl::Status other = source(base::Digest::Of("layer c"), {}).status();
  EXPECT_TRUE(absl::IsNotFound(other));
  EXPECT_THAT(std::string(other.message()), HasSubstr(":1.0-esgztoc: it has no TOC for this layer"));
}

TEST_F(ExternalTocTest, WithoutATagNothingLeadsThere) {
  EXPECT_EQ(Source("@" + a_.ToString()), nullptr);
  EXPECT_NE(Source(":x@" + a_.ToString()), nullptr);
  EXPECT_NE(Source(""), nullptr);  // :latest
}

TEST_F(ExternalTocTest, AnImageThatComesLaterIsFound) {
  contentstore::ExternalTocSource source = Source(":1");
  EXPECT_TRUE(absl::IsNotFound(source(a_, {}).status()));
  PutTocImage("1", {{a_, "toc"}});
  EXPECT_EQ(source(a_, {}).value(), "toc");
}

TEST_F(ExternalTocTest, IndexesAreLookedInto) {
  const base::Digest manifest = PutTocImage("inner", {{a_, "toc"}});
  const oci::Platform host = oci::HostPlatform();
  auto entry = [&](const std::string& os) {
    return nlohmann::json{{"mediaType", oci::kMediaTypeOciManifest},
                          {"digest", manifest.ToString()},
                          {"size", 1000},
                          {"platform", {{"os", os}, {"architecture", host.architecture}}}};
  };
  auto put = [&](const std::string& tag, const std::string& os) {
    const nlohmann::json index = {{"schemaVersion", 2},
                                  {"mediaType", oci::kMediaTypeOciIndex},
                                  {"manifests", nlohmann::json::array({entry(os)})}};
    registry_.PutManifest(kRepository, tag + "-esgztoc", index.dump(), oci::kMediaTypeOciIndex);
  };
  put("1", host.os);
  EXPECT_EQ(Source(":1")(a_, {}).value(), "toc");
  put("2", "plan9");
  EXPECT_TRUE(absl::IsNotFound(Source(":2")(a_, {}).status()));
}

TEST_F(ExternalTocTest, WhatIsNoTocImageIsAnError) {
  registry_.PutManifest(kRepository, "1-esgztoc", "{\"schemaVersion\":", oci::kMediaTypeOciManifest);
  EXPECT_FALSE(Source(":1")(a_, {}).ok());
  PutTocImage("2", {{a_, "toc"}});
  registry_.RemoveBlob(kRepository, base::Digest::Of("toc"));
  EXPECT_TRUE(absl::IsNotFound(Source(":2")(a_, {}).status()));
  PutTocImage("3", {{a_, "toc"}});
  registry_.AddFault({.path_contains = "/blobs/"}, {.flip_bit_of_byte = 1});
  EXPECT_TRUE(absl::IsDataLoss(Source(":3")(a_, {}).status()));
}

TEST_F(ExternalTocTest, ImagesAreResolvedWithTheirSource) {
  const support::Layer layer =
      support::MakeLayer(support::MakeTar({support::File("f", "x")}), oci::Compression::kGzip);
  registry_.PutImage(kRepository, "1", support::MakeImage({layer}));
  PutTocImage("1", {{layer.descriptor.digest, "toc"}});
  auto reference = oci::ParseImageReference(registry_.host() + "/" + kRepository + ":1");
  auto image = ResolveImage(client_.get(), *reference, oci::HostPlatform(), {});
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(registry_.Count({.path_contains = "esgztoc"}), 0u);  // only when a layer asks for it
  EXPECT_EQ(image->external_toc(layer.descriptor.digest, {}).value(), "toc");
}

}  // namespace
}  // namespace lazyblob::daemon
