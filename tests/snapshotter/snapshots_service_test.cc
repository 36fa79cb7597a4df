// The wire and the server, over a Snapshotter that tests control; the real one is judged in suite/.

#include "snapshotter/snapshots_service.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <stdexcept>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "base/file.h"
#include "base/status.h"
#include "containerd/grpc_server.h"
#include "containerd/wire_status.h"
#include "tests/snapshotter/suite/wire_client.h"
#include "tests/support/gate.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::snapshotter {
namespace {

namespace api = ::containerd::services::snapshots::v1;
using suite::WireClient;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Le;
using ::testing::SizeIs;

// Answers what a test tells it to; remembers what it was asked.
class ScriptedSnapshotter final : public Snapshotter {
 public:
  absl::StatusOr<std::vector<MountSpec>> Prepare(const std::string& key, const std::string& parent,
                                                 const Labels& labels,
                                                 std::shared_ptr<base::CancelToken> cancel) override {
    return on_prepare(key, parent, labels, std::move(cancel));
  }
  absl::StatusOr<std::vector<MountSpec>> View(const std::string& key, const std::string& parent,
                                              const Labels& labels) override {
    return on_prepare(key, parent, labels, nullptr);
  }
  absl::StatusOr<std::vector<MountSpec>> Mounts(const std::string& key) override {
    return on_prepare(key, "", {}, nullptr);
  }
  absl::Status Commit(const std::string& name, const std::string& key, const Labels& labels,
                      const std::string& parent) override {
    return on_commit(name, key, labels, parent);
  }
  absl::Status Remove(const std::string&) override { return on_status(); }
  absl::StatusOr<Info> Stat(const std::string& key) override { return on_stat(key); }
  absl::StatusOr<Info> Update(const Info& info, const std::vector<std::string>& paths) override {
    return on_update(info, paths);
  }
  absl::Status List(const std::vector<std::string>& filters,
                    absl::FunctionRef<absl::Status(const Info&)> visit) override {
    return on_list(filters, visit);
  }
  absl::StatusOr<Usage> GetUsage(const std::string&) override { return Usage{~uint64_t{0}, 7}; }
  absl::Status Cleanup() override { return on_status(); }
  std::vector<NotLazyLayer> NotLazyLayers() const override { return {}; }
  std::vector<LayerMount> LazyMounts() const override { return {}; }
  absl::StatusOr<RecordedFiles> Recorded() const override { return RecordedFiles(); }

  std::function<absl::StatusOr<std::vector<MountSpec>>(const std::string&, const std::string&, const Labels&,
                                                       std::shared_ptr<base::CancelToken>)>
      on_prepare = [](auto&&...) { return std::vector<MountSpec>{{"bind", "/s", {"rw", "rbind"}}}; };
  std::function<absl::Status(const std::string&, const std::string&, const Labels&, const std::string&)>
      on_commit = [](auto&&...) { return absl::OkStatus(); };
  std::function<absl::Status()> on_status = [] { return absl::OkStatus(); };
  std::function<absl::StatusOr<Info>(const std::string&)> on_stat = [](const std::string& key) {
    Info info;
    info.name = key;
    return info;
  };
  std::function<absl::StatusOr<Info>(const Info&, const std::vector<std::string>&)> on_update =
      [](const Info& info, auto&&) { return info; };
  std::function<absl::Status(const std::vector<std::string>&, absl::FunctionRef<absl::Status(const Info&)>)>
      on_list = [](auto&&...) { return absl::OkStatus(); };
};

class SnapshotsServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(mkdir(Dir().c_str(), 0700), 0);
    Start();
  }
  std::string Dir() const { return temp_.File("run"); }
  std::string Address() const { return Dir() + "/s.sock"; }
  void Start() {
    auto server = containerd::GrpcServer::Start(Address(), {service_->service()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    client_ = std::make_unique<WireClient>(Address());
  }

  support::TempDir temp_;
  ScriptedSnapshotter snapshotter_;
  std::unique_ptr<SnapshotsService> service_ = SnapshotsService::Create(&snapshotter_);
  std::unique_ptr<containerd::GrpcServer> server_;
  std::unique_ptr<WireClient> client_;
};

TEST_F(SnapshotsServiceTest, CarriesAllFieldsOfACall) {
  std::vector<std::string> seen;
  snapshotter_.on_prepare = [&](const std::string& key, const std::string& parent, const Labels& labels,
                                auto&&) {
    seen = {key, parent, labels.begin()->first, labels.begin()->second};
    return std::vector<MountSpec>{{"overlay", "overlay", {"workdir=/w", "lowerdir=/a:/b"}}};
  };
  auto mounts = client_->Prepare("default/3/extract-1 sha256:ab", "default/2/p", {{"k", "v"}});
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_THAT(seen, ElementsAre("default/3/extract-1 sha256:ab", "default/2/p", "k", "v"));
  ASSERT_THAT(*mounts, SizeIs(1));
  EXPECT_EQ((*mounts)[0].type, "overlay");
  EXPECT_THAT((*mounts)[0].options, ElementsAre("workdir=/w", "lowerdir=/a:/b"));

  snapshotter_.on_commit = [&](const std::string& name, const std::string& key, const Labels& labels,
                               const std::string& parent) {
    seen = {name, key, parent, labels.begin()->second};
    return absl::OkStatus();
  };
  EXPECT_TRUE(client_->Commit("name", "key", {{"k", "w"}}, "parent").ok());
  EXPECT_THAT(seen, ElementsAre("name", "key", "parent", "w"));

  snapshotter_.on_update = [&](const Info& info, const std::vector<std::string>& paths) {
    seen = paths;
    return info;
  };
  Info info;
  info.name = "n";
  info.labels = {{"a.b/c", "x"}};
  auto updated = client_->Update(info, {"labels.a.b/c", "labels"});
  ASSERT_TRUE(updated.ok());
  EXPECT_THAT(seen, ElementsAre("labels.a.b/c", "labels"));
  EXPECT_EQ(updated->labels, info.labels);
  EXPECT_EQ(client_->GetUsage("k")->bytes, static_cast<uint64_t>(INT64_MAX)) << "the wire has signed numbers";
  EXPECT_EQ(client_->GetUsage("k")->inodes, 7u);
}

TEST_F(SnapshotsServiceTest, TimesKeepTheirNanosecondsAndStayValid) {
  Info info;
  snapshotter_.on_stat = [&](auto&&) { return info; };
  info.created = absl::FromUnixNanos(1'700'000'000'123'456'789);
  info.updated = absl::FromUnixNanos(-1);
  EXPECT_EQ(client_->Stat("k")->created, info.created);
  EXPECT_EQ(client_->Stat("k")->updated, info.updated);
  info.created = absl::InfinitePast();
  info.updated = absl::InfiniteFuture();
  EXPECT_EQ(client_->Stat("k")->created, absl::FromCivil(absl::CivilSecond(1), absl::UTCTimeZone()));
  EXPECT_EQ(client_->Stat("k")->updated,
            absl::FromCivil(absl::CivilSecond(9999, 12, 31, 23, 59, 59), absl::UTCTimeZone()));
}

TEST_F(SnapshotsServiceTest, AnExceptionIsAnErrorOfThatCall) {
  snapshotter_.on_stat = [](auto&&) -> absl::StatusOr<Info> { throw std::runtime_error("boom"); };
  snapshotter_.on_list = [](auto&&...) -> absl::Status { throw 1; };
  EXPECT_EQ(client_->Stat("k").status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(client_->List().status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(client_->Cleanup().ok());
}

TEST_F(SnapshotsServiceTest, ListStreamsAtMostAHundredPerMessage) {
  snapshotter_.on_list = [](const std::vector<std::string>& filters, auto visit) -> absl::Status {
    EXPECT_THAT(filters, ElementsAre("kind==view", ""));
    for (int i = 0; i < 250; ++i) {
      Info info;
      info.name = absl::StrCat(i);
      RETURN_IF_ERROR(visit(info));
    }
    return absl::OkStatus();
  };
  std::vector<int> messages;
  auto infos = client_->List({"kind==view", ""}, &messages);
  ASSERT_TRUE(infos.ok()) << infos.status();
  EXPECT_THAT(messages, ElementsAre(100, 100, 50));
  EXPECT_THAT(*infos, SizeIs(250));
  EXPECT_EQ(infos->back().name, "249");
}

TEST_F(SnapshotsServiceTest, ListSplitsMessagesThatWouldBeTooLarge) {
  Info heavy;
  for (int i = 0; i < 1000; ++i) heavy.labels[absl::StrCat("label", i)] = std::string(4000, 'x');
  snapshotter_.on_list = [&](auto&&, auto visit) -> absl::Status {
    for (int i = 0; i < 8; ++i) RETURN_IF_ERROR(visit(heavy));
    return absl::OkStatus();
  };
  std::vector<int> messages;
  auto infos = client_->List({}, &messages);
  ASSERT_TRUE(infos.ok()) << infos.status();
  EXPECT_THAT(*infos, SizeIs(8));
  EXPECT_THAT(messages, Each(Le(1)));
}

TEST_F(SnapshotsServiceTest, AListThatNobodyReadsHoldsNoThread) {
  Info heavy;
  for (int i = 0; i < 100; ++i) heavy.labels[absl::StrCat("label", i)] = std::string(4000, 'x');
  snapshotter_.on_list = [&](auto&&, auto visit) -> absl::Status {
    for (int i = 0; i < 4; ++i) RETURN_IF_ERROR(visit(heavy));
    return absl::OkStatus();
  };
  api::ListSnapshotsRequest request;
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<api::ListSnapshotsResponse>>> readers;
  for (int i = 0; i < 2 * kCallThreads; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(client_->stub().List(contexts.back().get(), request));
    api::ListSnapshotsResponse first;
    ASSERT_TRUE(readers.back()->Read(&first));
  }
  EXPECT_TRUE(client_->Stat("k").ok());
  for (auto& context : contexts) context->TryCancel();
  for (auto& reader : readers) EXPECT_FALSE(reader->Finish().ok());
  server_.reset();  // whoever lists still, lists `heavy`
}

TEST_F(SnapshotsServiceTest, TwoHundredWaitingLayersDelayNoOtherCall) {
  support::Gate gate;
  std::atomic<int> prepared = 0;
  snapshotter_.on_prepare = [&](const std::string&, const std::string&, const Labels& labels,
                                auto&&) -> absl::StatusOr<std::vector<MountSpec>> {
    if (labels.count("containerd.io/snapshot.ref") == 0) return std::vector<MountSpec>();
    if (!gate.Pass()) return absl::DeadlineExceededError("the gate stayed shut");
    ++prepared;
    return std::vector<MountSpec>();
  };
  constexpr int kWaiting = 200;
  std::vector<std::thread> threads;
  for (int i = 0; i < kWaiting; ++i) {
    threads.emplace_back([&, i] {
      EXPECT_TRUE(client_->Prepare(absl::StrCat("k", i), "", {{"containerd.io/snapshot.ref", "c"}}).ok());
    });
  }
  EXPECT_TRUE(gate.AwaitWaiting(kLayerThreads));
  EXPECT_TRUE(client_->Stat("k").ok());
  EXPECT_TRUE(client_->Prepare("container", "").ok());
  EXPECT_TRUE(client_->Commit("n", "k").ok());
  EXPECT_TRUE(client_->List().ok());
  EXPECT_EQ(prepared, 0);
  gate.Open();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(prepared, kWaiting);
}

TEST_F(SnapshotsServiceTest, AClientThatGoesAwayCancelsItsPrepare) {
  absl::Notification begun;
  absl::Notification cancelled;
  snapshotter_.on_prepare =
      [&](auto&&, auto&&, auto&&,
          std::shared_ptr<base::CancelToken> cancel) -> absl::StatusOr<std::vector<MountSpec>> {
    begun.Notify();
    absl::Notification wake;
    auto registration = cancel->OnCancel([&] { wake.Notify(); });
    if (!wake.WaitForNotificationWithTimeout(support::kPatience))
      return absl::DeadlineExceededError("no cancel");
    cancelled.Notify();
    return absl::CancelledError("cancelled");
  };
  grpc::ClientContext context;
  std::thread caller([&] {
    api::PrepareSnapshotRequest request;
    request.set_key("k");
    (*request.mutable_labels())["containerd.io/snapshot.ref"] = "c";
    api::PrepareSnapshotResponse response;
    EXPECT_EQ(client_->stub().Prepare(&context, request, &response).error_code(),
              grpc::StatusCode::CANCELLED);
  });
  begun.WaitForNotification();
  context.TryCancel();
  EXPECT_TRUE(cancelled.WaitForNotificationWithTimeout(support::kPatience));
  caller.join();
}

TEST_F(SnapshotsServiceTest, EndingCancelsWhatStillWaits) {
  absl::Notification begun;
  snapshotter_.on_prepare =
      [&](auto&&, auto&&, auto&&,
          std::shared_ptr<base::CancelToken> cancel) -> absl::StatusOr<std::vector<MountSpec>> {
    absl::Notification wake;
    auto registration = cancel->OnCancel([&] { wake.Notify(); });
    begun.Notify();
    EXPECT_TRUE(wake.WaitForNotificationWithTimeout(support::kPatience));
    return absl::CancelledError("cancelled");
  };
  std::thread caller([&] { EXPECT_FALSE(client_->Prepare("k", "").ok()); });
  begun.WaitForNotification();
  server_.reset();
  caller.join();
  EXPECT_FALSE(base::OpenFile(Address(), O_PATH).ok()) << "the socket is gone";
}

TEST_F(SnapshotsServiceTest, MessagesAreBounded) {
  std::string large(static_cast<size_t>(containerd::kMaxMessageBytes) + 1, 'x');
  EXPECT_EQ(client_->Stat(large).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(client_->Stat(std::string(1 << 20, 'x')).ok());
  snapshotter_.on_status = [] { return absl::NotFoundError(std::string(100'000, 'y')); };
  absl::Status status = client_->Remove("k");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message().size(), containerd::kMaxStatusMessage);
}

// What containerd would send, byte by byte: the numbers of the fields are the contract.
TEST(WireFormatTest, FieldsHaveContainerdsNumbers) {
  auto bytes = [](const google::protobuf::Message& message) { return message.SerializeAsString(); };
  api::PrepareSnapshotRequest prepare;
  prepare.set_snapshotter("s");
  prepare.set_key("k");
  prepare.set_parent("p");
  (*prepare.mutable_labels())["a"] = "b";
  EXPECT_EQ(bytes(prepare),
            "\x0a\x01s\x12\x01k\x1a\x01p\x22\x06\x0a\x01"
            "a\x12\x01"
            "b");
  api::CommitSnapshotRequest commit;
  commit.set_name("n");
  commit.set_key("k");
  commit.set_parent("p");
  EXPECT_EQ(bytes(commit), "\x12\x01n\x1a\x01k\x2a\x01p");
  api::Info info;
  info.set_name("n");
  info.set_parent("p");
  info.set_kind(api::COMMITTED);
  info.mutable_created_at()->set_seconds(1);
  info.mutable_updated_at()->set_nanos(2);
  (*info.mutable_labels())["a"] = "b";
  EXPECT_EQ(bytes(info),
            "\x0a\x01n\x12\x01p\x18\x03\x22\x02\x08\x01\x2a\x02\x10\x02\x32\x06\x0a\x01"
            "a\x12\x01"
            "b");
  api::UpdateSnapshotRequest update;
  update.mutable_info()->set_name("n");
  update.mutable_update_mask()->add_paths("x");
  EXPECT_EQ(bytes(update), "\x12\x03\x0a\x01n\x1a\x03\x0a\x01x");
  api::ListSnapshotsRequest list;
  list.add_filters("f");
  EXPECT_EQ(bytes(list),
            "\x12\x01"
            "f");
  api::MountsResponse mounts;
  auto* mount = mounts.add_mounts();
  mount->set_type("t");
  mount->set_source("s");
  mount->set_target("g");
  mount->add_options("o");
  EXPECT_EQ(bytes(mounts), "\x0a\x0c\x0a\x01t\x12\x01s\x1a\x01g\x22\x01o");
  EXPECT_EQ(std::string(api::Snapshots::service_full_name()), "containerd.services.snapshots.v1.Snapshots");
}

}  // namespace
}  // namespace lazyblob::snapshotter
