// What is no image is told from an image that is damaged.

#include "daemon/image_resolver.h"

#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/test_registry.h"

namespace lazyblob::daemon {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

absl::Status ResolveWithConfig(const std::string& media_type) {
  support::TestRegistry registry;
  const support::Layer layer =
      support::MakeLayer(support::MakeTar({support::File("f", "x")}), oci::Compression::kGzip);
  const std::string config = R"({"layers":[],"records":[]})";
  registry.PutBlob("app", layer.blob);
  registry.PutBlob("app", config);
  const auto descriptor = [](const std::string& type, const std::string& bytes) {
    return nlohmann::json{
        {"mediaType", type}, {"digest", base::Digest::Of(bytes).ToString()}, {"size", bytes.size()}};
  };
  const nlohmann::json manifest = {{"schemaVersion", 2},
                                   {"mediaType", oci::kMediaTypeOciManifest},
                                   {"config", descriptor(media_type, config)},
                                   {"layers", {descriptor(layer.descriptor.media_type, layer.blob)}}};
  registry.PutManifest("app", "1", manifest.dump(), oci::kMediaTypeOciManifest);
  registry::ClientOptions options;
  options.plain_http = true;
  registry::Client client(options);
  const auto reference = oci::ParseImageReference(registry.host() + "/app:1");
  return ResolveImage(&client, *reference, oci::HostPlatform(), {}).status();
}

TEST(ImageResolverTest, ABuildCacheIsNoDamagedImage) {
  const absl::Status cache = ResolveWithConfig("application/vnd.buildkit.cacheconfig.v0");
  EXPECT_THAT(cache.message(), AllOf(HasSubstr("no image but application/vnd.buildkit.cacheconfig.v0"),
                                     Not(HasSubstr("damaged"))));
  for (const char* type :
       {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}) {
    EXPECT_THAT(ResolveWithConfig(type).message(),
                HasSubstr("0 diff_ids for 1 layers: the image is damaged"));
  }
}

}  // namespace
}  // namespace lazyblob::daemon
