#include "daemon/exporter_service.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <future>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "daemon/error_details.h"
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

class ExporterServiceTest : public ::testing::Test {
 protected:
  ExporterServiceTest() {
    registry::ClientOptions client;
    client.plain_http = true;
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

  support::TempDir directory_;
  support::TestRegistry registry_;
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

}  // namespace
}  // namespace lazyblob::daemon
