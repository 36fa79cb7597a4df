#include "daemon/blobs_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "base/file.h"
#include "daemon/control_service.h"
#include "daemon/error_details.h"
#include "daemon/recorded_sources.h"
#include "exporter/export_job.h"
#include "proto/blobs.grpc.pb.h"
#include "tests/support/eventually.h"
#include "tests/support/gate.h"
#include "tests/support/layer_maker.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::daemon {
namespace {

using support::Directory;
using support::File;
using support::Gate;
using support::Layer;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

// One Unlazy, on a thread of its own.
class Waiter {
 public:
  Waiter(v1::Blobs::Stub* stub, v1::UnlazyBlobsRequest request)
      : thread_([this, stub, request = std::move(request)] {
          auto reader = stub->Unlazy(&context_, request);
          v1::Progress progress;
          while (reader->Read(&progress)) {
            if (!begun_.HasBeenNotified()) begun_.Notify();
            if (progress.bytes() > 0 && !receives_.HasBeenNotified()) receives_.Notify();
            last_[progress.digest()] = progress.state();
          }
          status_ = reader->Finish();
        }) {}
  ~Waiter() { Join().IgnoreError(); }

  void Cancel() { context_.TryCancel(); }
  // The call has come to the daemon; it has joined those who wait for the layer's bytes.
  bool AwaitBegun() { return begun_.WaitForNotificationWithTimeout(support::kPatience); }
  bool AwaitBytes() { return receives_.WaitForNotificationWithTimeout(support::kPatience); }
  absl::Status Join() {
    if (thread_.joinable()) thread_.join();
    return WithErrorDetails(
        absl::Status(static_cast<absl::StatusCode>(status_.error_code()), status_.error_message()),
        status_.error_details());
  }
  // After Join: the state each layer ended with.
  const std::map<std::string, std::string>& last() const { return last_; }

 private:
  grpc::ClientContext context_;
  absl::Notification begun_;
  absl::Notification receives_;
  grpc::Status status_;
  std::map<std::string, std::string> last_;
  std::thread thread_;
};

class BlobsServiceTest : public ::testing::Test {
 protected:
  BlobsServiceTest() {
    registry::ClientOptions client;
    client.plain_http = true;
    client_ = std::make_unique<registry::Client>(std::move(client));
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("store");
    store.log = [](absl::string_view) {};
    store_ = contentstore::ContentStore::Open(std::move(store)).value();
    exporter::LeasesOptions leases;
    leases.directory = directory_.File("leases");
    leases.store = store_.get();
    leases.sources = RecordedSources(client_.get(), {});
    leases_ = exporter::Leases::Open(std::move(leases)).value();
    BlobsParts parts;
    parts.store = store_.get();
    parts.leases = leases_.get();
    parts.sources = RecordedSources(client_.get(), {});
    parts.plain_http = &plain_http_;
    parts.activity = &activity_;
    service_ = BlobsService::Create(std::move(parts));
    ControlParts control;
    control.beside = {service_->service()};
    server_ = ControlServer::Start(directory_.File("control.sock"), control).value();
    stub_ = v1::Blobs::NewStub(
        grpc::CreateChannel("unix:" + directory_.File("control.sock"), grpc::InsecureChannelCredentials()));
  }

  static Layer MakeOne(uint64_t seed, uint64_t size = 3000) {
    return support::MakeLayer(support::MakeTar({File("data", support::RandomBytes(size, seed))}),
                              oci::Compression::kGzip);
  }
  Layer Put(support::TestRegistry& registry, const std::string& repository, Layer layer) {
    registry.PutBlob(repository, layer.blob);
    return layer;
  }
  static v1::Blob BlobOf(const Layer& layer, const std::vector<std::string>& sources) {
    v1::Blob blob;
    blob.set_digest(layer.descriptor.digest.ToString());
    blob.set_size(layer.descriptor.size);
    blob.set_media_type(layer.descriptor.media_type);
    blob.set_diff_id(layer.diff_id.ToString());
    for (const std::string& source : sources) blob.add_sources(source);
    return blob;
  }
  std::string In(const support::TestRegistry& registry, const std::string& repository) {
    return absl::StrCat("registry:", registry.host(), "/", repository);
  }

  absl::StatusOr<v1::StatBlobsResponse> Register(const std::string& lease,
                                                 const std::vector<v1::Blob>& blobs) {
    v1::RegisterBlobsRequest request;
    request.set_lease(lease);
    request.mutable_blobs()->Add(blobs.begin(), blobs.end());
    grpc::ClientContext context;
    v1::StatBlobsResponse response;
    const grpc::Status status = stub_->Register(&context, request, &response);
    if (!status.ok()) return absl::Status(absl::StatusCode(status.error_code()), status.error_message());
    return response;
  }
  std::vector<v1::BlobStatus> Stat(const std::vector<Layer>& layers) {
    v1::StatBlobsRequest request;
    for (const Layer& layer : layers) request.add_digests(layer.descriptor.digest.ToString());
    grpc::ClientContext context;
    v1::StatBlobsResponse response;
    EXPECT_TRUE(stub_->Stat(&context, request, &response).ok());
    return {response.blobs().begin(), response.blobs().end()};
  }
  std::unique_ptr<Waiter> Unlazy(const std::vector<Layer>& layers, const std::string& docker_config = "") {
    v1::UnlazyBlobsRequest request;
    for (const Layer& layer : layers) request.add_digests(layer.descriptor.digest.ToString());
    request.mutable_access()->set_docker_config(docker_config);
    return std::make_unique<Waiter>(stub_.get(), std::move(request));
  }
  // A config.json with one user of the registry.
  std::string UserOf(const support::TestRegistry& registry, const std::string& name) {
    const std::string path = directory_.File(name + ".json");
    EXPECT_TRUE(
        base::WriteFileAtomically(path, absl::StrCat(R"({"auths":{")", registry.host(), R"(":{"auth":")",
                                                     absl::Base64Escape(name + ":secret"), "\"}}}"))
            .ok());
    return path;
  }
  static void AdmitOnly(support::TestRegistry& registry, const std::string& name) {
    support::AuthOptions auth;
    auth.kind = support::AuthOptions::Kind::kBasic;
    auth.username = name;
    auth.password = "secret";
    registry.SetAuth(auth);
  }
  static size_t Requests(const support::TestRegistry& registry, const Layer& layer) {
    return registry.Count({.method = "GET", .path_contains = layer.descriptor.digest.hex()});
  }
  bool IsHeld(const Layer& layer) {
    return absl::IsFailedPrecondition(store_->Remove(layer.descriptor.digest));
  }

  support::TempDir directory_;
  support::TestRegistry first_;
  support::TestRegistry second_;
  PlainHttpHosts plain_http_;
  Activity activity_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<exporter::Leases> leases_;
  std::unique_ptr<BlobsService> service_;
  std::unique_ptr<ControlServer> server_;
  std::unique_ptr<v1::Blobs::Stub> stub_;
};

TEST_F(BlobsServiceTest, WhatIsRegisteredIsLazyUntilItIsMadeLocal) {
  const Layer layer = Put(first_, "a", MakeOne(1));
  v1::Blob blob = BlobOf(layer, {});
  (*blob.mutable_labels())["containerd.io/distribution.source." + first_.host()] = "a,b/c";
  EXPECT_EQ(Stat({layer})[0].state(), v1::ABSENT);
  auto known = Register("build-1", {blob});
  ASSERT_TRUE(known.ok()) << known.status();
  ASSERT_THAT(known->blobs(), SizeIs(1));
  EXPECT_EQ(known->blobs(0).state(), v1::LAZY);
  EXPECT_THAT(known->blobs(0).blob().sources(), ElementsAre(In(first_, "a"), In(first_, "b/c")));
  EXPECT_EQ(Requests(first_, layer), 0u);
  auto waiter = Unlazy({layer, layer});
  ASSERT_TRUE(waiter->Join().ok()) << waiter->Join();
  EXPECT_THAT(waiter->last(), ElementsAre(::testing::Pair(layer.descriptor.digest.ToString(), "written")));
  const v1::BlobStatus local = Stat({layer})[0];
  EXPECT_EQ(local.state(), v1::LOCAL);
  EXPECT_EQ(local.blob().size(), layer.descriptor.size);
  EXPECT_GT(local.cached_bytes(), 3000u);
  waiter = Unlazy({layer});
  ASSERT_TRUE(waiter->Join().ok());
  EXPECT_THAT(waiter->last(), ElementsAre(::testing::Pair(layer.descriptor.digest.ToString(), "exists")));
}

TEST_F(BlobsServiceTest, WhatCannotBeRegisteredIsNamedAndNothingIs) {
  const Layer layer = MakeOne(1);
  const v1::Blob good = BlobOf(layer, {In(first_, "a")});
  std::vector<std::pair<v1::Blob, std::string>> bad(6, {good, ""});
  bad[0].first.set_digest("sha256:1");
  bad[0].second = "sha256:1";
  bad[1].first.set_size(0);
  bad[1].second = "size";
  bad[2].first.set_media_type("application/vnd.oci.image.config.v1+json");
  bad[2].second = "media type";
  bad[3].first.set_sources(0, "layout:relative");
  bad[3].second = "absolute";
  bad[4].first.set_sources(0, "url:https://elsewhere.test/x");
  bad[4].second = "url_hosts";
  bad[5].first.set_sources(0, "ftp:x");
  bad[5].second = "ftp:x";
  for (const auto& [blob, names] : bad) {
    const absl::Status status = Register("build-1", {good, blob}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(names));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Register("../x", {good}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Register("build-1", {}).status()));
  EXPECT_EQ(Stat({layer})[0].state(), v1::ABSENT);
}

TEST_F(BlobsServiceTest, B3_EveryDigestWithoutAHandlerIsListedBeforeAnythingIsFetched) {
  std::vector<Layer> layers;
  for (uint64_t i = 0; i < 5; ++i) layers.push_back(Put(first_, "a", MakeOne(i)));
  auto missing = [&] {
    std::vector<std::string> digests;
    const absl::Status status = Unlazy(layers)->Join();
    for (const auto& one : contentstore::GetMissingProviders(status))
      digests.push_back(one.digest.ToString());
    return digests;
  };
  EXPECT_THAT(missing(), SizeIs(5));
  ASSERT_TRUE(Register("w", {BlobOf(layers[0], {In(first_, "a")}), BlobOf(layers[2], {In(first_, "a")}),
                             BlobOf(layers[3], {})})
                  .ok());
  EXPECT_THAT(missing(), UnorderedElementsAre(layers[1].descriptor.digest.ToString(),
                                              layers[3].descriptor.digest.ToString(),
                                              layers[4].descriptor.digest.ToString()));
  EXPECT_EQ(first_.Count({}), 0u);
  ASSERT_TRUE(Register("w", {BlobOf(layers[1], {In(first_, "a")}), BlobOf(layers[3], {In(first_, "a")}),
                             BlobOf(layers[4], {In(first_, "a")})})
                  .ok());
  EXPECT_TRUE(Unlazy(layers)->Join().ok());
  for (const v1::BlobStatus& status : Stat(layers)) EXPECT_EQ(status.state(), v1::LOCAL);
}

TEST_F(BlobsServiceTest, B5_EachLayerHasItsOwnHandlers) {
  const Layer a = MakeOne(1), b = MakeOne(2), c = MakeOne(3), d = MakeOne(4);
  for (const Layer& layer : {a, b, c}) Put(first_, "one", layer);
  for (const Layer& layer : {a, b, c, d}) Put(second_, "two", layer);
  second_.AddFault({.path_contains = b.descriptor.digest.hex()}, {.status = 403});
  ASSERT_TRUE(Register("abc", {BlobOf(a, {In(first_, "one")}), BlobOf(b, {In(first_, "one")}),
                               BlobOf(c, {In(first_, "one")})})
                  .ok());
  ASSERT_TRUE(Register("adc", {BlobOf(a, {In(second_, "two")}), BlobOf(d, {In(second_, "two")}),
                               BlobOf(c, {In(second_, "two")})})
                  .ok());
  auto abc = Unlazy({a, b, c});
  auto adc = Unlazy({a, d, c});
  EXPECT_TRUE(abc->Join().ok()) << abc->Join();
  EXPECT_TRUE(adc->Join().ok()) << adc->Join();
  EXPECT_EQ(Requests(second_, b), 0u);
  EXPECT_EQ(Requests(first_, b), 1u);
  EXPECT_EQ(Requests(first_, c) + Requests(second_, c), 1u);
  EXPECT_EQ(Requests(first_, d), 0u);
}

TEST_F(BlobsServiceTest, B5_WhereOneSourceDeniesTheNextServes) {
  const Layer b = Put(second_, "two", Put(first_, "one", MakeOne(2)));
  second_.AddFault({.path_contains = b.descriptor.digest.hex()}, {.status = 403});
  ASSERT_TRUE(Register("w", {BlobOf(b, {In(second_, "two"), In(first_, "one")})}).ok());
  EXPECT_TRUE(Unlazy({b})->Join().ok());
  EXPECT_EQ(Requests(first_, b), 1u);
}

TEST_F(BlobsServiceTest, B7_E8_OfAHundredWaitersAnyOneIsEnough) {
  constexpr size_t kWaiters = 100;
  constexpr uint64_t kHalf = 40'000;
  const Layer layer = Put(first_, "a", MakeOne(1, 2 * kHalf));
  auto gate = std::make_shared<Gate>();
  first_.AddFault({.method = "GET"}, {.body_gate = gate, .body_gate_at = kHalf});
  ASSERT_TRUE(Register("owner", {BlobOf(layer, {In(first_, "a")})}).ok());
  std::vector<std::unique_ptr<Waiter>> waiters;
  for (size_t i = 0; i < kWaiters; ++i) waiters.push_back(Unlazy({layer}));
  for (auto& waiter : waiters) ASSERT_TRUE(waiter->AwaitBytes());  // each has joined
  std::mt19937 random(20261123);
  std::shuffle(waiters.begin(), waiters.end(), random);
  for (size_t i = 1; i < kWaiters; ++i) waiters[i]->Cancel();
  for (size_t i = 1; i < kWaiters; ++i) EXPECT_TRUE(absl::IsCancelled(waiters[i]->Join()));
  EXPECT_TRUE(IsHeld(layer));
  gate->Open();
  EXPECT_TRUE(waiters[0]->Join().ok()) << waiters[0]->Join();
  EXPECT_EQ(Requests(first_, layer), 1u);
  EXPECT_EQ(Stat({layer})[0].state(), v1::LOCAL);
  EXPECT_EQ(leases_->List()[0].layers_size(), 1);
}

TEST_F(BlobsServiceTest, B7_WhenTheLastWaiterLeavesTheSourceIsLeftAlone) {
  const Layer layer = Put(first_, "a", MakeOne(1, 80'000));
  auto gate = std::make_shared<Gate>();
  first_.AddFault({.method = "GET", .count = 1}, {.body_gate = gate, .body_gate_at = 40'000});
  ASSERT_TRUE(Register("owner", {BlobOf(layer, {In(first_, "a")})}).ok());
  std::vector<std::unique_ptr<Waiter>> waiters;
  for (int i = 0; i < 5; ++i) waiters.push_back(Unlazy({layer}));
  for (auto& waiter : waiters) ASSERT_TRUE(waiter->AwaitBytes());
  for (auto& waiter : waiters) waiter->Cancel();
  for (auto& waiter : waiters) EXPECT_TRUE(absl::IsCancelled(waiter->Join()));
  EXPECT_TRUE(IsHeld(layer));
  EXPECT_EQ(Stat({layer})[0].state(), v1::LAZY);
  // While the first request is still open at the registry, whoever comes now is served.
  auto late = Unlazy({layer});
  EXPECT_TRUE(late->Join().ok()) << late->Join();
  gate->Open();
  EXPECT_EQ(Requests(first_, layer), 2u);
}

TEST_F(BlobsServiceTest, AFailureEndsAllWaitersAndIsForgotten) {
  const Layer layer = Put(first_, "a", MakeOne(1));
  first_.AddFault({.method = "GET"}, {.status = 404});
  ASSERT_TRUE(Register("w", {BlobOf(layer, {In(first_, "a")})}).ok());
  auto one = Unlazy({layer});
  auto other = Unlazy({layer});
  EXPECT_FALSE(one->Join().ok());
  EXPECT_FALSE(other->Join().ok());
  EXPECT_THAT(one->last(), ElementsAre(::testing::Pair(layer.descriptor.digest.ToString(), "failed")));
  first_.ClearFaults();
  EXPECT_TRUE(Unlazy({layer})->Join().ok());
}

TEST_F(BlobsServiceTest, B11_TheRequestersCredentialsAreUsedNotTheCreators) {
  const Layer layer = Put(first_, "a", MakeOne(1));
  const std::string creator = UserOf(first_, "creator");
  const std::string requester = UserOf(first_, "requester");
  AdmitOnly(first_, "creator");
  ASSERT_TRUE(Register("w", {BlobOf(layer, {In(first_, "a")})}).ok());
  const Layer other = Put(first_, "a", MakeOne(2));
  ASSERT_TRUE(Register("w", {BlobOf(other, {In(first_, "a")})}).ok());
  ASSERT_TRUE(Unlazy({other}, creator)->Join().ok());  // the daemon has seen them
  AdmitOnly(first_, "requester");
  const absl::Status refused = Unlazy({layer}, creator)->Join();
  EXPECT_TRUE(absl::IsUnauthenticated(refused) || absl::IsPermissionDenied(refused)) << refused;
  const absl::Status nobody = Unlazy({layer})->Join();
  EXPECT_TRUE(absl::IsUnauthenticated(nobody) || absl::IsPermissionDenied(nobody)) << nobody;
  EXPECT_TRUE(Unlazy({layer}, requester)->Join().ok());
}

TEST_F(BlobsServiceTest, B11_ARequesterThatIsRevokedInTheMiddleIsReplacedByAnotherThatWaits) {
  const Layer layer = Put(first_, "a", MakeOne(1, 80'000));
  const std::string first = UserOf(first_, "first");
  const std::string next = UserOf(first_, "next");
  AdmitOnly(first_, "first");
  auto gate = std::make_shared<Gate>();
  // The first request is refused: it carries nobody's credentials.
  first_.AddFault({.method = "GET", .skip = 1, .count = 1},
                  {.body_gate = gate, .body_gate_at = 40'000, .reset_at = 60'000});
  ASSERT_TRUE(Register("w", {BlobOf(layer, {In(first_, "a")})}).ok());
  auto one = Unlazy({layer}, first);
  ASSERT_TRUE(one->AwaitBytes());
  auto other = Unlazy({layer}, next);
  ASSERT_TRUE(other->AwaitBytes());
  AdmitOnly(first_, "next");
  gate->Open();
  EXPECT_TRUE(one->Join().ok()) << one->Join();
  EXPECT_TRUE(other->Join().ok()) << other->Join();
  const auto log = first_.Log({.method = "GET", .path_contains = layer.descriptor.digest.hex()});
  EXPECT_EQ(log.back().authorization, "Basic " + absl::Base64Escape("next:secret"));
  EXPECT_THAT(log.back().range, ::testing::StartsWith("bytes="));
  EXPECT_THAT(log.back().range, ::testing::Not(::testing::StartsWith("bytes=0-")));  // goes on where it was
}

TEST_F(BlobsServiceTest, E8_WhoWantsALayerLocalAndWhoSendsItReadItOnceEach) {
  const Layer layer = MakeOne(1, 300'000);
  support::ImageOptions host;
  host.platform = oci::HostPlatform();
  first_.PutImage("src", "latest", support::MakeImage({layer}, host));
  ASSERT_TRUE(Register("w", {BlobOf(layer, {In(first_, "src")})}).ok());
  auto gate = std::make_shared<Gate>();
  first_.AddFault({.method = "GET", .path_contains = layer.descriptor.digest.hex()}, {.gate = gate});
  exporter::PlacerOptions options;
  options.client = client_.get();
  auto placer = exporter::Placer::Create(std::move(options)).value();
  exporter::ExportParts parts;
  parts.client = client_.get();
  parts.store = store_.get();
  parts.placer = placer.get();
  parts.put = exporter::MakePutDocument(client_.get());
  parts.staging = directory_.File("staging");
  parts.leases = leases_.get();
  auto push = [&](const std::string& destination) {
    v1::ExportRequest request;
    request.add_images()->set_base(first_.host() + "/src:latest");
    request.add_destinations(second_.host() + destination);
    return exporter::RunExport(request, parts, {nullptr, std::make_shared<base::CancelToken>()}, {});
  };
  absl::Status image, cache;
  std::vector<std::unique_ptr<Waiter>> waiters;
  for (int i = 0; i < 98; ++i) waiters.push_back(Unlazy({layer}));
  for (auto& waiter : waiters) ASSERT_TRUE(waiter->AwaitBegun());
  std::thread image_push([&] { image = push("/app:1"); });
  std::thread cache_push([&] { cache = push("/cache:1"); });
  gate->Open();
  image_push.join();
  cache_push.join();
  EXPECT_TRUE(image.ok()) << image;
  EXPECT_TRUE(cache.ok()) << cache;
  for (auto& waiter : waiters) EXPECT_TRUE(waiter->Join().ok()) << waiter->Join();
  for (uint64_t offset : {uint64_t{0}, layer.descriptor.size / 2, layer.descriptor.size - 1}) {
    EXPECT_THAT(first_.TimesFetched(layer.descriptor.digest, offset), AnyOf(1u, 2u));
  }
  EXPECT_EQ(second_.Blob("cache", layer.descriptor.digest), layer.blob);
}

TEST_F(BlobsServiceTest, AReleasedLeaseLetsGo) {
  const Layer layer = MakeOne(1);
  ASSERT_TRUE(Register("w", {BlobOf(layer, {In(first_, "a")})}).ok());
  EXPECT_TRUE(IsHeld(layer));
  v1::ReleaseLeaseRequest request;
  request.set_name("w");
  for (auto code : {grpc::StatusCode::OK, grpc::StatusCode::NOT_FOUND}) {
    grpc::ClientContext context;
    v1::ReleaseLeaseResponse response;
    EXPECT_EQ(stub_->Release(&context, request, &response).error_code(), code);
  }
  EXPECT_TRUE(support::Eventually([&] { return !IsHeld(layer); }));
}

}  // namespace
}  // namespace lazyblob::daemon
