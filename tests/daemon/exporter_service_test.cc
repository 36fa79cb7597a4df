#include "daemon/exporter_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <future>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "daemon/control_client.h"
#include "daemon/error_details.h"
#include "daemon/event_stream.h"
#include "proto/exporter.grpc.pb.h"
#include "tests/support/gate.h"
#include "tests/support/layer_maker.h"
#include "tests/support/tar_maker.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::daemon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

// Somebody's credentials, once there are any.
struct Given final : registry::CredentialsProvider {
  std::optional<registry::Credentials> credentials;
  absl::StatusOr<std::optional<registry::Credentials>> Lookup(absl::string_view) const override {
    return credentials;
  }
};

class ExporterServiceTest : public ::testing::Test {
 protected:
  ExporterServiceTest() {
    registry::ClientOptions client;
    client.plain_http = true;
    client.credentials = of_mounts_;
    client_ = std::make_unique<registry::Client>(std::move(client));
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("store");
    store.log = [](absl::string_view) {};
    store_ = contentstore::ContentStore::Open(std::move(store)).value();
    exporter::PlacerOptions placer;
    placer.client = client_.get();
    placer_ = exporter::Placer::Create(std::move(placer)).value();
    ExporterParts parts;
    parts.exporter.client = client_.get();
    parts.exporter.store = store_.get();
    parts.exporter.placer = placer_.get();
    parts.exporter.put = exporter::MakePutDocument(client_.get());
    parts.exporter.staging = directory_.File("staging");
    parts.plain_http = &plain_http_;
    parts.activity = &activity_;
    parts.credentials = configured_;
    service_ = ExporterService::Create(std::move(parts));
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + directory_.File("control.sock"), grpc::InsecureServerCredentials());
    builder.RegisterService(service_->service());
    server_ = builder.BuildAndStart();
    stub_ = v1::Exporter::NewStub(
        grpc::CreateChannel("unix:" + directory_.File("control.sock"), grpc::InsecureChannelCredentials()));
  }

  v1::ExportRequest OneLayer() {
    EXPECT_TRUE(base::MakeDirectories(directory_.File("tree")).ok());
    EXPECT_TRUE(
        base::WriteFileAtomically(directory_.File("tree/data"), support::RandomBytes(50'000, 1)).ok());
    v1::ExportRequest request;
    request.set_id("mine");
    request.add_images()->set_base("scratch");
    request.mutable_images(0)->add_layers()->set_source("dir:" + directory_.File("tree"));
    request.add_destinations(registry_.host() + "/app:1");
    return request;
  }
  void RequireLogin() {
    support::AuthOptions auth;
    auth.kind = support::AuthOptions::Kind::kBasic;
    auth.username = good_.username;
    auth.password = good_.password;
    registry_.SetAuth(auth);
  }
  // What it comes to, and its events.
  absl::Status Export(const v1::ExportRequest& request, std::vector<v1::ExportEvent>* events) {
    grpc::ClientContext context;
    auto reader = stub_->Export(&context, request);
    v1::ExportEvent event;
    while (reader->Read(&event)) events->push_back(event);
    const grpc::Status status = reader->Finish();
    return WithErrorDetails(
        absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message()),
        status.error_details());
  }
  std::vector<v1::Report> Running() {
    grpc::ClientContext context;
    v1::ListExportsResponse response;
    EXPECT_TRUE(stub_->List(&context, {}, &response).ok());
    return {response.running().begin(), response.running().end()};
  }
  grpc::StatusCode Cancel(const std::string& id) {
    grpc::ClientContext context;
    v1::CancelExportRequest request;
    request.set_id(id);
    v1::CancelExportResponse response;
    return stub_->Cancel(&context, request, &response).error_code();
  }

  const registry::Credentials good_{"user", "secret", "", ""};
  support::TempDir directory_;
  support::TestRegistry registry_;
  const std::shared_ptr<Given> of_mounts_ = std::make_shared<Given>();
  const std::shared_ptr<Given> configured_ = std::make_shared<Given>();
  PlainHttpHosts plain_http_;
  Activity activity_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<exporter::Placer> placer_;
  std::unique_ptr<ExporterService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Exporter::Stub> stub_;
};

TEST_F(ExporterServiceTest, L14_AWarningIsAnEventAndInTheReport) {
  v1::ExportRequest request = OneLayer();
  request.set_parallel(v1::ON);
  std::vector<v1::ExportEvent> events;
  const absl::Status status = Export(request, &events);
  ASSERT_TRUE(status.ok()) << status;
  std::vector<std::string> warnings;
  for (const v1::ExportEvent& event : events) {
    if (event.event_case() == v1::ExportEvent::kWarning) warnings.push_back(event.warning());
  }
  EXPECT_THAT(warnings, ElementsAre(HasSubstr("parallel has no effect")));
  EXPECT_THAT(events.back().done().warnings(), ElementsAre(warnings[0]));
  EXPECT_EQ(events.back().done().id(), "mine");
}

TEST_F(ExporterServiceTest, AnExportIsListedUntilItIsCancelledAndLeavesNoSession) {
  auto gate = std::make_shared<support::Gate>();
  registry_.AddFault({.method = "PUT"}, {.gate = gate});
  const v1::ExportRequest request = OneLayer();
  std::vector<v1::ExportEvent> events;
  auto running = std::async(std::launch::async, [&] { return Export(request, &events); });
  EXPECT_TRUE(gate->AwaitWaiting(1));
  EXPECT_THAT(Running(), SizeIs(1));
  std::vector<v1::ExportEvent> refused;
  EXPECT_TRUE(absl::IsAlreadyExists(Export(request, &refused)));
  EXPECT_EQ(Cancel("other"), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Cancel("mine"), grpc::StatusCode::OK);
  const absl::Status status = running.get();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_FALSE(events.back().done().image_error().empty());
  EXPECT_THAT(Running(), SizeIs(0));
  gate->Open();
  placer_.reset();  // waits for what was ended
  EXPECT_EQ(registry_.upload_sessions(), 0u);
  EXPECT_FALSE(registry_.Manifest("app", "1").has_value());
}

TEST_F(ExporterServiceTest, AnExportNeverHasTheCredentialsOfMounts) {
  RequireLogin();
  of_mounts_->credentials = good_;
  std::vector<v1::ExportEvent> events;
  EXPECT_TRUE(absl::IsUnauthenticated(Export(OneLayer(), &events)));
}

TEST_F(ExporterServiceTest, AnExportHasTheCredentialsOfItsFile) {
  RequireLogin();
  const std::string file = directory_.File("config.json");
  const std::string user = absl::Base64Escape("user:secret");
  const std::string config =
      absl::StrCat(R"({"auths":{")", registry_.host(), R"(":{"auth":")", user, "\"}}}");
  ASSERT_TRUE(base::WriteFileAtomically(file, config).ok());
  v1::ExportRequest request = OneLayer();
  request.mutable_access()->set_docker_config(file);
  std::vector<v1::ExportEvent> events;
  EXPECT_EQ(Export(request, &events), absl::OkStatus());
}

TEST_F(ExporterServiceTest, AnExportWithoutAFileHasTheAdministratorsCredentials) {
  RequireLogin();
  configured_->credentials = good_;
  std::vector<v1::ExportEvent> events;
  EXPECT_EQ(Export(OneLayer(), &events), absl::OkStatus());
}

TEST_F(ExporterServiceTest, AnExportWhoseClientDoesNotReadGoesOn) {
  auto gate = std::make_shared<support::Gate>();
  registry_.AddFault({.method = "PUT", .path_contains = "/manifests/"}, {.gate = gate});
  grpc::ChannelArguments arguments;  // hardly anything fits into the connection
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  auto narrow = v1::Exporter::NewStub(grpc::CreateCustomChannel(
      "unix:" + directory_.File("control.sock"), grpc::InsecureChannelCredentials(), arguments));
  v1::ExportRequest request = OneLayer();
  for (int i = 0; i < 20; ++i) {
    const std::string tree = directory_.File(absl::StrCat("tree", i));
    ASSERT_TRUE(base::MakeDirectories(tree).ok());
    ASSERT_TRUE(base::WriteFileAtomically(tree + "/data", support::RandomBytes(100, i)).ok());
    request.mutable_images(0)->add_layers()->set_source("dir:" + tree);
  }
  grpc::ClientContext context;
  auto reader = narrow->Export(&context, request);
  EXPECT_TRUE(gate->AwaitWaiting(1));
  EXPECT_EQ(Cancel("mine"), grpc::StatusCode::OK);
  v1::ExportEvent event;
  while (reader->Read(&event)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  gate->Open();
}

TEST_F(ExporterServiceTest, AnInterruptedCommandStillHearsHowItEnded) {
  auto gate = std::make_shared<support::Gate>();
  registry_.AddFault({.method = "PUT"}, {.gate = gate});
  v1::ExportRequest request = OneLayer();
  request.clear_id();
  auto cancel = std::make_shared<base::CancelToken>();
  std::vector<v1::ExportEvent> events;
  auto running = std::async(std::launch::async, [&] {
    auto client = ControlClient::Connect(directory_.path()).value();
    return client->Export(request, cancel, [&](const v1::ExportEvent& event) { events.push_back(event); });
  });
  EXPECT_TRUE(gate->AwaitWaiting(1));
  cancel->Cancel();
  const absl::Status status = running.get();
  gate->Open();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  ASSERT_FALSE(events.empty());
  EXPECT_FALSE(events.back().done().image_error().empty());
}

TEST_F(ExporterServiceTest, B3_TheErrorListsEveryBlobThatNobodyHas) {
  std::vector<support::Layer> layers;
  for (const char* name : {"a", "b", "c"}) {
    layers.push_back(
        support::MakeLayer(support::MakeTar({support::File("data", name)}), oci::Compression::kGzip));
  }
  const support::Image image = support::MakeImage(layers);
  const std::string layout = directory_.File("layout");
  ASSERT_TRUE(support::WriteLayout(layout, "t", image).ok());
  for (int i : {0, 2}) {
    ASSERT_EQ(unlink(absl::StrCat(layout, "/blobs/sha256/", layers[i].descriptor.digest.hex()).c_str()), 0);
  }
  v1::ExportRequest request;
  request.add_images()->set_base("oci:" + layout + ":t");
  request.mutable_images(0)->set_all_platforms(true);
  request.add_destinations(registry_.host() + "/app:1");
  std::vector<v1::ExportEvent> events;
  std::vector<std::string> missing;
  for (const auto& one : contentstore::GetMissingProviders(Export(request, &events))) {
    missing.push_back(one.digest.ToString());
  }
  EXPECT_THAT(missing, UnorderedElementsAre(layers[0].descriptor.digest.ToString(),
                                            layers[2].descriptor.digest.ToString()));
}

TEST_F(ExporterServiceTest, EveryLayerForADirectoryEndsOnceAlsoWhereItFails) {
  std::vector<support::Layer> layers;
  for (const char* name : {"a", "b"}) {
    layers.push_back(
        support::MakeLayer(support::MakeTar({support::File("data", name)}), oci::Compression::kGzip));
  }
  const std::string layout = directory_.File("layout");
  ASSERT_TRUE(support::WriteLayout(layout, "t", support::MakeImage(layers)).ok());
  const oci::Descriptor& broken = layers[1].descriptor;
  ASSERT_TRUE(base::WriteFileAtomically(absl::StrCat(layout, "/blobs/sha256/", broken.digest.hex()),
                                        std::string(broken.size, 'x'))
                  .ok());
  v1::ExportRequest request;
  request.add_images()->set_base("oci:" + layout + ":t");
  request.add_destinations("dir:" + directory_.File("unpacked"));
  std::vector<v1::ExportEvent> events;
  EXPECT_FALSE(Export(request, &events).ok());
  std::map<std::string, std::vector<std::string>> states;
  for (const v1::ExportEvent& event : events) {
    const std::string& state = event.progress().state();
    if (event.has_progress() && IsFinalState(state)) {
      states[event.progress().digest()].push_back(state);
    }
  }
  EXPECT_EQ(states.size(), 2u);
  for (const auto& [digest, of_layer] : states) EXPECT_EQ(of_layer.size(), 1u) << digest;
  EXPECT_THAT(states[broken.digest.ToString()], ElementsAre("failed"));
}

v1::Progress Layer(const std::string& name, const std::string& state, uint64_t bytes = 0) {
  v1::Progress progress;
  progress.set_name(name);
  progress.set_state(state);
  progress.set_bytes(bytes);
  return progress;
}

TEST(EventStreamTest, OfALayerOnlyTheLatestWaitsAndEveryEnd) {
  support::Gate gate;
  std::vector<std::string> written;
  auto write = [&](const v1::Progress& progress) {
    written.push_back(absl::StrCat(progress.name(), " ", progress.state(), " ", progress.bytes()));
    return gate.Pass();
  };
  EventStream<v1::Progress> stream(write, [] {});
  auto tell = [&](const v1::Progress& progress) { stream.Put(progress, progress); };
  tell(Layer("a", "making"));
  ASSERT_TRUE(gate.AwaitWaiting(1));
  for (uint64_t i = 0; i < 1000; ++i) {
    tell(Layer("b", "streaming", i));
    tell(Layer("c", "streaming", i));
  }
  tell(Layer("b", "pushed", 1000));
  tell(Layer("b", "mounting", 1001));
  gate.Open();
  stream.Finish(base::CancelToken());
  EXPECT_THAT(written, ElementsAre("a making 0", "c streaming 999", "b pushed 1000", "b mounting 1001"));
}

TEST(EventStreamTest, ACancelledCallWhoseClientDoesNotReadIsGivenUp) {
  support::Gate gate;
  bool given_up = false;
  EventStream<v1::Progress> stream([&](const v1::Progress&) { return gate.Pass() && !given_up; },
                                   [&] {
                                     given_up = true;
                                     gate.Open();
                                   },
                                   absl::Milliseconds(1));
  stream.Put(Layer("a", "pushed"));
  stream.Put(Layer("b", "pushed"));
  ASSERT_TRUE(gate.AwaitWaiting(1));
  base::CancelToken cancel;
  cancel.Cancel();
  stream.Finish(cancel);
  EXPECT_TRUE(given_up);
  EXPECT_EQ(gate.waiting(), 0u);
}

}  // namespace
}  // namespace lazyblob::daemon
