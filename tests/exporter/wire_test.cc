// What an export says while it runs, and what goes over the wire for it, where registries are slow or busy.

#include <gmock/gmock.h>

#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "oci/layout.h"
#include "oci/manifest.h"
#include "tests/exporter/wire_fixture.h"
#include "tests/support/eventually.h"

namespace lazyblob::exporter {
namespace {

using support::Directory;
using support::File;
using support::Gate;
using support::Image;
using support::Layer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

class WireTest : public WireFixture {
 protected:
  static Layer MakeOne(uint64_t seed, uint64_t size = kLayer) {
    return support::MakeLayer(
        support::MakeTar({Directory("."), File("data", support::RandomBytes(size, seed))}),
        oci::Compression::kGzip);
  }
  // An image in the repository "src" of the cache's registry, to be pushed to the other one.
  Image PutSource(size_t layers) {
    std::vector<Layer> all;
    for (size_t i = 0; i < layers; ++i) all.push_back(MakeOne(i));
    const Image image = support::MakeImage(std::move(all));
    cache_->PutImage("src", "1", image);
    return image;
  }
  v1::ExportRequest Push(const std::string& to) {
    v1::ExportRequest request;
    request.add_images()->set_base(cache_->host() + "/src:1");
    request.mutable_images(0)->set_all_platforms(true);
    request.add_destinations(image_->host() + to);
    return request;
  }
};

TEST_F(WireTest, L11_L12_TheImageCanBePulledBeforeTheCacheHasItsLastByte) {
  auto gate = std::make_shared<Gate>();
  cache_->AddFault({.method = "PATCH", .skip = 1}, {.gate = gate});
  std::future<absl::Status> running = Start(ImageAndCache());
  auto is_ready = [](const v1::ExportEvent& event) { return event.has_image_ready(); };
  EXPECT_TRUE(events_.Await(is_ready));
  EXPECT_TRUE(gate->AwaitWaiting(1));
  EXPECT_FALSE(cache_->Manifest("cache", "1").has_value());
  std::string reference;
  for (const v1::ExportEvent& event : events_.all()) {
    if (event.has_image_ready()) reference = event.image_ready().ready(0).reference();
  }
  EXPECT_THAT(reference, HasSubstr("/app@sha256:"));
  v1::ExportRequest pull;
  pull.add_images()->set_base(reference);
  pull.mutable_images(0)->set_all_platforms(true);
  pull.add_destinations("oci:" + directory_.File("pulled") + ":x");
  Events pulling;
  const absl::Status pulled = Run(pull, &pulling);
  EXPECT_TRUE(pulled.ok()) << pulled;
  EXPECT_EQ(pulling.all().back().done().images_size(), 1);
  EXPECT_EQ(gate->waiting(), 1u);
  gate->Open();
  const absl::Status status = running.get();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(cache_->Manifest("cache", "1").has_value());
}

TEST_F(WireTest, L14_WhatHasNoEffectIsToldAndReported) {
  v1::ExportRequest request = ImageAndCache();
  request.clear_cache();
  request.set_parallel(v1::ON);
  const absl::Status status = Run(request, &events_);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(Report().warnings(), ElementsAre(HasSubstr("parallel has no effect")));
  EXPECT_EQ(events_.Count([](const v1::ExportEvent& event) {
    return absl::StrContains(event.warning(), "parallel has no effect");
  }),
            1u);
}

TEST_F(WireTest, B12_B13_LayersOfALazyPushAreReadAtTheSameTimeAndEachEndsOnce) {
  const Image image = PutSource(6);
  auto gate = std::make_shared<Gate>();
  for (const Layer& layer : image.layers) {
    cache_->AddFault({.method = "GET", .path_contains = layer.descriptor.digest.hex()}, {.gate = gate});
  }
  std::future<absl::Status> running = Start(Push("/app:1"));
  EXPECT_TRUE(gate->AwaitWaiting(4));
  gate->Open();
  const absl::Status status = running.get();
  EXPECT_TRUE(status.ok()) << status;
  ExpectOneEndEach();
  EXPECT_EQ(events_.Count(State("pushed", false)), 7u);
  for (const Layer& layer : image.layers) {
    EXPECT_EQ(cache_->Count({.method = "GET", .path_contains = layer.descriptor.digest.hex()}), 1u);
    EXPECT_EQ(events_.Count([&](const v1::ExportEvent& event) {
      return event.progress().digest() == layer.descriptor.digest.ToString() &&
             event.progress().state() == "pushed" && event.progress().bytes() == layer.descriptor.size;
    }),
              1u);
  }
}

TEST_F(WireTest, B13_ALayerThatFailsIsShownAsFailed) {
  const Image image = PutSource(6);
  const std::string lost = image.layers[3].descriptor.digest.ToString();
  cache_->AddFault({.method = "GET", .path_contains = image.layers[3].descriptor.digest.hex()},
                   {.status = 404});
  const absl::Status status = Run(Push("/app:1"), &events_);
  EXPECT_THAT(std::string(status.message()), HasSubstr(lost));
  ExpectOneEndEach();
  std::string end;
  for (const v1::ExportEvent& event : events_.all()) {
    if (event.progress().digest() == lost) end = event.progress().state();
  }
  EXPECT_EQ(end, "failed");
  EXPECT_FALSE(image_->Manifest("app", "1").has_value());
  placer_.reset();
  EXPECT_EQ(image_->upload_sessions(), 0u);
}

TEST_F(WireTest, B15_WhereALayerCameFromIsInNoManifestThatIsMade) {
  Layer layer = MakeOne(1);
  layer.descriptor.annotations = {{"containerd.io/distribution.source.other.test:5001", "secret/base"},
                                  {"org.example.kept", "yes"}};
  support::ImageOptions options;
  options.annotations = {{"containerd.io/distribution.source.other.test", "secret/base"}};
  options.platform = oci::HostPlatform();
  cache_->PutImage("src", "1", support::MakeImage({layer}, options));
  v1::ExportRequest request = ImageAndCache();
  request.mutable_images(0)->set_base(cache_->host() + "/src:1");
  request.mutable_cache()->clear_layers();
  request.mutable_cache()->set_format(v1::BUILDKIT);
  v1::LayerSource* cached = request.mutable_cache()->add_layers();
  cached->set_source(request.images(0).layers(0).source());
  cached->add_records()->set_digest(base::Digest::Of("step").ToString());
  const absl::Status status = Run(request, &events_);
  ASSERT_TRUE(status.ok()) << status;
  const std::string image = image_->Manifest("app", "1").value_or("");
  const std::string cache = cache_->Manifest("cache", "1").value_or("");
  EXPECT_THAT(image, HasSubstr("org.example.kept"));
  EXPECT_THAT(cache, HasSubstr("sha256:"));
  for (const std::string& document : {image, cache}) {
    EXPECT_THAT(document, Not(HasSubstr("distribution.source")));
    EXPECT_THAT(document, Not(HasSubstr("secret")));
    EXPECT_THAT(document, Not(HasSubstr("127.0.0.1")));
  }
}

TEST_F(WireTest, E5_NoBodyIsOpenWhileTheSourceIsWaitedFor) {
  const Image image = PutSource(2);
  auto gate = std::make_shared<Gate>();
  for (const Layer& layer : image.layers) {
    cache_->AddFault({.method = "GET", .path_contains = layer.descriptor.digest.hex()},
                     {.body_gate = gate, .body_gate_at = 2 * kChunk + kChunk / 2});
  }
  std::future<absl::Status> running = Start(Push("/app:1"));
  EXPECT_TRUE(gate->AwaitWaiting(2));
  // Two chunks of each layer can be sent, and the config.
  const support::RequestMatcher bodies{.path_regex = "/blobs/uploads/.+"};
  const auto open = [&] {
    const auto log = image_->Log(bodies);
    return std::count_if(log.begin(), log.end(), [](const auto& request) { return !request.finished; });
  };
  EXPECT_TRUE(support::Eventually([&] { return image_->Count(bodies) >= 5 && open() == 0; }));
  EXPECT_EQ(running.wait_for(std::chrono::milliseconds(200)), std::future_status::timeout);
  EXPECT_EQ(open(), 0);
  EXPECT_EQ(image_->Count(bodies), 5u);
  gate->Open();
  const absl::Status status = running.get();
  EXPECT_TRUE(status.ok()) << status;
  for (const support::LoggedRequest& request : image_->Log(bodies)) {
    EXPECT_TRUE(request.status == 201 || request.status == 202) << request.method << " " << request.status;
  }
  EXPECT_EQ(cache_->Count({.method = "GET", .path_regex = "/blobs/"}), 3u);  // the config too
}

TEST_F(WireTest, ABlobThatTheRegistryOnlySeemsToHaveIsSentWhenItRefusesTheManifest) {
  const Image image = PutSource(3);
  const Layer& lost = image.layers[1];
  image_->PutBlob("app", lost.blob);
  image_->MakeOrphan("app", lost.descriptor.digest);
  const absl::Status status = Run(Push("/app:1"), &events_);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(image_->Manifest("app", "1").has_value());
  EXPECT_EQ(image_->Count({.method = "PUT", .path_contains = "/manifests/"}), 2u);
  EXPECT_EQ(
      image_->ReceivedBytes({.path_regex = "/blobs/uploads/.+"}),
      image.config.size() + image.layers[0].blob.size() + lost.blob.size() + image.layers[2].blob.size());
}

// Bodies that were refused count too: what is not asked at all is what a busy registry is spared.
TEST_F(WireTest, E11_ABusyHostIsLeftAloneByAllForAsLongAsItAsks) {
  constexpr size_t kLayers = 12;
  constexpr size_t kSlots = 5;  // four, and the small lane
  constexpr absl::Duration kPause = absl::Seconds(2);
  PutSource(kLayers);
  const support::RequestMatcher bodies{.path_regex = "/blobs/uploads/.+"};
  image_->AddFault(bodies, {.status = 429, .headers = {{"Retry-After", "2"}}});
  const absl::Duration start = base::SystemClock().Monotonic();
  std::future<absl::Status> running = Start(Push("/app:1"));
  EXPECT_TRUE(image_->AwaitRequests(bodies, 1));
  EXPECT_EQ(running.wait_for(std::chrono::milliseconds(1000)), std::future_status::timeout);
  const size_t asked = image_->Count(bodies);
  if (base::SystemClock().Monotonic() - start < kPause) {
    EXPECT_LE(asked, kSlots);
  }
  image_->ClearFaults();
  const absl::Status status = running.get();
  EXPECT_TRUE(status.ok()) << status;
  const auto log = image_->Log(bodies);
  const auto refused = static_cast<size_t>(
      std::count_if(log.begin(), log.end(), [](const auto& request) { return request.status == 429; }));
  // Of each layer four chunks and the commit; of the config one body.
  EXPECT_LE(image_->Count({.method = "PATCH"}) + image_->Count({.method = "PUT", .path_contains = "/blobs/"}),
            refused + kLayers * 5 + 1);
  EXPECT_TRUE(image_->Manifest("app", "1").has_value());
}

}  // namespace
}  // namespace lazyblob::exporter
