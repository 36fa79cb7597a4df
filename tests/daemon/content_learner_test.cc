#include "daemon/content_learner.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/file.h"
#include "daemon/containerd_namespaces.h"
#include "oci/manifest_writer.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_containerd.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::daemon {
namespace {

using support::FakeContainerd;

class ContainerdNamespacesTest : public ::testing::Test {
 protected:
  void StartContainerd() { containerd_ = std::make_unique<FakeContainerd>(socket_); }
  ptrdiff_t Logged(const std::string& line) {
    const std::vector<std::string> log = containerd_->log();
    return std::count(log.begin(), log.end(), line);
  }

  support::TempDir directory_;
  std::string socket_ = directory_.File("c.sock");
  std::unique_ptr<FakeContainerd> containerd_;
  support::FakeClock clock_;
  ContainerdNamespaces namespaces_{socket_, &clock_};
  const oci::Descriptor layer_ = oci::DescriptorOf("layer", "");
  const std::string digest_ = layer_.digest.ToString();
};

TEST_F(ContainerdNamespacesTest, BlobsAreHeldWithoutAByteUnderALeaseThatEnds) {
  StartContainerd();
  const oci::Descriptor other = oci::DescriptorOf("other", "");
  containerd_->shared = {{digest_, "layer"}, {other.digest.ToString(), "other"}};
  ASSERT_TRUE(namespaces_.Hold("k8s.io", layer_, {{"label", "value"}}).ok());
  ASSERT_TRUE(namespaces_.Hold("k8s.io", other, {}).ok());
  const FakeContainerd::Blob blob = containerd_->blobs().at(digest_);
  EXPECT_EQ(blob.labels.at("label"), "value");
  ASSERT_EQ(containerd_->leases().size(), 1u) << "one for both";
  EXPECT_EQ(containerd_->leases().begin()->first, blob.lease);
  EXPECT_EQ(containerd_->namespaces(), std::vector<std::string>{"k8s.io"});
  EXPECT_TRUE(namespaces_.BlobLabels("k8s.io", layer_.digest).ok());
  clock_.Advance(absl::Hours(2));
  ASSERT_TRUE(namespaces_.Drop("k8s.io", layer_.digest).ok());
  ASSERT_TRUE(namespaces_.Drop("k8s.io", layer_.digest).ok()) << "gone is as good";
  EXPECT_TRUE(absl::IsNotFound(namespaces_.BlobLabels("k8s.io", layer_.digest).status()));
  ASSERT_TRUE(namespaces_.Hold("k8s.io", layer_, {}).ok());
  EXPECT_EQ(containerd_->leases().size(), 2u) << "an old one may end before the blob is referred to";
}

TEST_F(ContainerdNamespacesTest, BlobThatTheStoreBehindDoesNotKnowIsNotWritten) {
  StartContainerd();
  const absl::Status status = namespaces_.Hold("default", layer_, {});
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_TRUE(containerd_->blobs().empty());
  EXPECT_EQ(Logged("Abort lazyblob-" + digest_), 1) << "no ingest stays";
}

TEST_F(ContainerdNamespacesTest, LeaseThatSomebodyDeletedIsMadeAgain) {
  StartContainerd();
  const oci::Descriptor other = oci::DescriptorOf("other", "");
  containerd_->shared = {{digest_, "layer"}, {other.digest.ToString(), "other"}};
  ASSERT_TRUE(namespaces_.Hold("default", layer_, {}).ok());
  containerd_->DeleteLeases();
  ASSERT_TRUE(namespaces_.Hold("default", other, {}).ok());
  EXPECT_EQ(containerd_->leases().size(), 1u);
}

TEST_F(ContainerdNamespacesTest, ContainerdMayComeLaterAndComeAgain) {
  EXPECT_TRUE(absl::IsUnavailable(namespaces_.List().status()));
  EXPECT_TRUE(absl::IsUnavailable(namespaces_.Hold("default", layer_, {})));
  StartContainerd();
  EXPECT_TRUE(namespaces_.List().ok());
  EXPECT_TRUE(absl::IsNotFound(namespaces_.BlobLabels("default", layer_.digest).status()));
  containerd_.reset();
  EXPECT_TRUE(absl::IsUnavailable(namespaces_.List().status()));
  EXPECT_TRUE(absl::IsUnavailable(namespaces_.BlobLabels("default", layer_.digest).status()));
  StartContainerd();
  EXPECT_TRUE(namespaces_.List().ok());
  EXPECT_TRUE(absl::IsNotFound(namespaces_.BlobLabels("default", layer_.digest).status()));
}

TEST_F(ContainerdNamespacesTest, NothingIsAskedOnceItIsCancelled) {
  StartContainerd();
  namespaces_.Cancel();
  EXPECT_TRUE(absl::IsCancelled(namespaces_.List().status()));
}

TEST_F(ContainerdNamespacesTest, HostsAreThoseOfDirectoriesAndImages) {
  StartContainerd();
  containerd_->PutBlob(digest_, "layer", {});
  EXPECT_TRUE(namespaces_.BlobLabels("default", layer_.digest).ok()) << "there is a namespace now";
  containerd_->PutImage("registry.test:5000/app:1", digest_);
  containerd_->PutImage("other.test/app:1", digest_);
  for (const char* name :
       {"hosts/registry.test_6000_", "hosts/registry.test:7000", "hosts/[::1]:80", "hosts/_default"}) {
    ASSERT_TRUE(base::MakeDirectories(directory_.File(name)).ok());
  }
  ContentLearnerOptions options;
  options.root = directory_.File("content");
  options.containerd = socket_;
  options.hosts_path = directory_.File("hosts");
  auto learner = ContentLearner::Create(options);
  ASSERT_TRUE(learner.ok()) << learner.status();
  std::vector<std::string> hosts = (*learner)->HostsNamed("registry.test");
  std::sort(hosts.begin(), hosts.end());
  EXPECT_EQ(hosts,
            (std::vector<std::string>{"registry.test:5000", "registry.test:6000", "registry.test:7000"}));
  EXPECT_EQ((*learner)->HostsNamed("::1"), std::vector<std::string>{"[::1]:80"});
  EXPECT_EQ((*learner)->HostsNamed("nowhere.test"), std::vector<std::string>());
  EXPECT_TRUE((*learner)->ClaimsOf("an id of BuildKit's", {}, nullptr).empty());
}

}  // namespace
}  // namespace lazyblob::daemon
