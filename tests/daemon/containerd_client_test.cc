#include "daemon/containerd_client.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "oci/manifest_writer.h"
#include "tests/support/fake_containerd.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

using support::FakeContainerd;

class ContainerdClientTest : public ::testing::Test {
 protected:
  std::unique_ptr<ContainerdClient> Connect() {
    auto client = ContainerdClient::Connect(socket_, "default", cancel_);
    EXPECT_TRUE(client.ok()) << client.status();
    return client.ok() ? *std::move(client) : nullptr;
  }
  absl::Status Write(ContainerdClient& client, const std::string& bytes) {
    return client.WriteContent("ref", oci::DescriptorOf(bytes, ""), {{"label", "value"}},
                               [&](uint64_t offset, ContainerdClient::ContentSink sink) {
                                 asked_.push_back(offset);
                                 return sink(absl::string_view(bytes).substr(offset));
                               });
  }

  support::TempDir directory_;
  std::string socket_ = directory_.File("c.sock");
  FakeContainerd containerd_{socket_};
  std::shared_ptr<base::CancelToken> cancel_ = std::make_shared<base::CancelToken>();
  std::vector<uint64_t> asked_;
};

TEST_F(ContainerdClientTest, NobodyThereIsOneLineThatSaysWhatToDo) {
  auto client = ContainerdClient::Connect(directory_.File("none.sock"), "default", nullptr);
  EXPECT_TRUE(absl::IsUnavailable(client.status()));
  EXPECT_TRUE(absl::StrContains(client.status().message(), "none.sock"));
  EXPECT_TRUE(absl::StrContains(client.status().message(), "--containerd"));
}

TEST_F(ContainerdClientTest, SocketPathThatNoSocketCanHaveIsRefused) {
  auto client = ContainerdClient::Connect("/" + std::string(200, 'a'), "default", nullptr);
  EXPECT_TRUE(absl::IsInvalidArgument(client.status())) << client.status();
}

TEST_F(ContainerdClientTest, NamespacesAreContainerdsIdentifiers) {
  for (const char* good : {"default", "k8s.io", "a", "a-b_c.d", "0"}) {
    EXPECT_TRUE(ContainerdClient::Connect(socket_, good, nullptr).ok()) << good;
  }
  for (const std::string& bad :
       {std::string(), std::string("a b"), std::string(".a"), std::string("a."), std::string("a..b"),
        std::string("a/b"), std::string("a\nb"), std::string(77, 'a')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ContainerdClient::Connect(socket_, bad, nullptr).status())) << bad;
  }
}

TEST_F(ContainerdClientTest, BlobOfManyMessagesArrivesWhole) {
  auto client = Connect();
  std::string bytes(5 << 20, 'x');
  for (size_t i = 0; i < bytes.size(); i += 1000) bytes[i] = static_cast<char>('a' + i % 26);
  ASSERT_TRUE(Write(*client, bytes).ok());
  auto blob = containerd_.blobs().at(oci::DescriptorOf(bytes, "").digest.ToString());
  EXPECT_TRUE(blob.bytes == bytes);
  EXPECT_EQ(blob.labels.at("label"), "value");
}

TEST_F(ContainerdClientTest, BlobThatIsThereGetsTheLabelsOnly) {
  containerd_.PutBlob(oci::DescriptorOf("bytes", "").digest.ToString(), "bytes", {{"old", "kept"}});
  auto client = Connect();
  ASSERT_TRUE(Write(*client, "bytes").ok());
  EXPECT_TRUE(asked_.empty());
  auto labels = containerd_.blobs().at(oci::DescriptorOf("bytes", "").digest.ToString()).labels;
  EXPECT_EQ(labels, (FakeContainerd::Labels{{"label", "value"}, {"old", "kept"}}));
}

TEST_F(ContainerdClientTest, WriteGoesOnWhereAnEarlierOneEnded) {
  containerd_.PutIngest("ref", "byt");
  auto client = Connect();
  ASSERT_TRUE(Write(*client, "bytes").ok());
  EXPECT_EQ(asked_, std::vector<uint64_t>{3});
}

TEST_F(ContainerdClientTest, CompleteIngestIsOnlyCommitted) {
  containerd_.PutIngest("ref", "bytes");
  auto client = Connect();
  ASSERT_TRUE(Write(*client, "bytes").ok());
  EXPECT_TRUE(asked_.empty());
}

TEST_F(ContainerdClientTest, IngestThatCannotBecomeTheBlobIsAborted) {
  auto client = Connect();
  const std::string blobs[] = {"bytes", "other"};
  const std::string leftovers[] = {"wro", "longer than the blob"};
  for (int i = 0; i < 2; ++i) {
    containerd_.PutIngest("ref", leftovers[i]);
    absl::Status status = Write(*client, blobs[i]);
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_EQ(containerd_.log().back(), "Abort ref");
    EXPECT_TRUE(Write(*client, blobs[i]).ok());
  }
}

TEST_F(ContainerdClientTest, ErrorOfTheSourceIsToldAsItIs) {
  auto client = Connect();
  absl::Status status = client->WriteContent("ref", oci::DescriptorOf("bytes", ""), {},
                                             [](uint64_t, ContainerdClient::ContentSink sink) {
                                               EXPECT_TRUE(sink("by").ok());
                                               return absl::UnavailableError("the registry is down");
                                             });
  EXPECT_EQ(status, absl::UnavailableError("the registry is down"));
  EXPECT_TRUE(Write(*client, "bytes").ok());
  EXPECT_EQ(asked_, std::vector<uint64_t>{2}) << "what arrived before is used";
}

TEST_F(ContainerdClientTest, LockedReferenceIsWaitedForUntilCancelled) {
  containerd_.locked = 1'000'000;
  auto client = Connect();
  absl::Status status;
  std::thread writer([&] { status = Write(*client, "bytes"); });
  EXPECT_TRUE(containerd_.AwaitLog("Write "));
  cancel_->Cancel();
  writer.join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
}

TEST_F(ContainerdClientTest, LeaseExpiresByItself) {
  auto client = Connect();
  auto lease = client->CreateLease(absl::Hours(24));
  ASSERT_TRUE(lease.ok()) << lease.status();
  absl::Time expires;
  std::string error;
  ASSERT_TRUE(absl::ParseTime(absl::RFC3339_full, containerd_.leases().at(*lease), &expires, &error))
      << error;
  EXPECT_GT(expires, absl::Now() + absl::Hours(23));
  EXPECT_LT(expires, absl::Now() + absl::Hours(25));
  EXPECT_TRUE(client->DeleteLease(*lease).ok());
  EXPECT_TRUE(client->DeleteLease(*lease).ok()) << "gone is as good";
}

TEST_F(ContainerdClientTest, TidyingUpIsDoneAfterCancellation) {
  auto client = Connect();
  auto lease = client->CreateLease(absl::Hours(24));
  ASSERT_TRUE(lease.ok());
  cancel_->Cancel();
  EXPECT_TRUE(absl::IsCancelled(client->Version().status()));
  EXPECT_TRUE(client->DeleteLease(*lease).ok());
  EXPECT_TRUE(containerd_.leases().empty());
}

TEST_F(ContainerdClientTest, ErrorsNameTheCallAndTheSocket) {
  auto client = Connect();
  absl::Status status = client->StatSnapshot("overlayfs", "sha256:none").status();
  EXPECT_TRUE(absl::IsNotFound(status));
  for (absl::string_view part : {absl::string_view(socket_), absl::string_view("overlayfs"),
                                 absl::string_view("sha256:none"), absl::string_view("no such snapshot")}) {
    EXPECT_TRUE(absl::StrContains(status.message(), part)) << status;
  }
}

TEST_F(ContainerdClientTest, PluginsAreReadWithTheirErrors) {
  containerd_.plugins = {
      {"io.containerd.snapshotter.v1", "lazyblob", {{"address", "/x"}}, {"remap-ids"}, "broken"}};
  auto plugins = Connect()->Plugins();
  ASSERT_TRUE(plugins.ok()) << plugins.status();
  ASSERT_EQ(plugins->size(), 1u);
  EXPECT_EQ((*plugins)[0].id, "lazyblob");
  EXPECT_EQ((*plugins)[0].exports.at("address"), "/x");
  EXPECT_EQ((*plugins)[0].capabilities, std::vector<std::string>{"remap-ids"});
  EXPECT_EQ((*plugins)[0].init_error, "broken");
}

}  // namespace
}  // namespace lazyblob::daemon
