// Whom lazy blobs are had from: registries that refuse, images that contradict each other, and what becomes
// of blobs that turn out to be nowhere.

#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_replace.h"
#include "absl/synchronization/notification.h"
#include "tests/contentservice/lazy_blobs_harness.h"
#include "tests/support/gate.h"

namespace lazyblob::contentservice {
namespace {

class LazySourcesTest : public LazyBlobsTest {
 protected:
  ~LazySourcesTest() override { Close(); }
  bool AwaitKnown(const std::string& layer, bool known) {
    return namespaces_.Await([&](FakeNamespaces&) { return Known(layer) == known; });
  }
  bool AwaitHolds(const base::Digest& digest, bool holds) {
    return namespaces_.Await([&](FakeNamespaces& n) { return n.Holds("default", digest) == holds; });
  }
  size_t Checks() {
    absl::MutexLock lock(&mutex_);
    return checked_.size();
  }

  support::Gate gate_;
};

TEST_F(LazySourcesTest, LayerSharedBeforeItsRegistryRefusedIsLetGoSoThatAnotherPullHeals) {
  SetAnswer([this](const auto&) {
    EXPECT_TRUE(gate_.Pass());
    return absl::UnauthenticatedError("log in");
  });
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  namespaces_.Put("default", DigestOf("layer"), {});
  ASSERT_TRUE(AwaitListed("layer"));
  gate_.Open();
  EXPECT_TRUE(AwaitHolds(DigestOf("layer"), false));
  EXPECT_FALSE(Listed("layer"));
  EXPECT_FALSE(Known("layer"));
  Reopen();
  EXPECT_FALSE(Known("layer"));
  EXPECT_FALSE(Listed("layer"));
}

TEST_F(LazySourcesTest, RegistryThatRefusedIsNotBelievedAgainUnasked) {
  SetAnswer([](const auto&) { return absl::PermissionDeniedError("log in"); });
  Pull({"layer"});
  EXPECT_TRUE(blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).empty());
  SetAnswer([this](const auto&) {
    EXPECT_TRUE(gate_.Pass());
    return absl::OkStatus();
  });
  EXPECT_FALSE(Known("layer"));
  ASSERT_TRUE(gate_.AwaitWaiting(1));
  EXPECT_FALSE(Known("layer")) << "it is being asked";
  gate_.Open();
  EXPECT_TRUE(AwaitKnown("layer", true));
}

TEST_F(LazySourcesTest, LayerOfARegistryThatWasDownIsLetGoWhenItRefuses) {
  SetAnswer([](const auto&) { return absl::UnavailableError("down"); });
  Pull({"layer"});
  ASSERT_EQ(blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).size(), 1u);
  ASSERT_TRUE(Known("layer"));
  namespaces_.Put("default", DigestOf("layer"), {});
  ASSERT_TRUE(AwaitListed("layer"));
  SetAnswer([](const auto&) { return absl::UnauthenticatedError("log in"); });
  source_->SetDefault(support::GatedBlobSource::Fail(absl::UnauthenticatedError("log in")));
  std::vector<uint8_t> piece(100);
  EXPECT_FALSE(blobs_->Read(DigestOf("layer"), 0, absl::MakeSpan(piece), nullptr).ok());
  EXPECT_TRUE(AwaitHolds(DigestOf("layer"), false));
  EXPECT_FALSE(Known("layer"));
}

TEST_F(LazySourcesTest, ImagesThatTellDifferentSizesMakeALayerUnknown) {
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  const std::string forged = absl::StrReplaceAll(
      Manifest(Config({"layer"}), {"layer"}), {{R"("size":5,"annotations")", R"("size":6,"annotations")"}});
  namespaces_.Put("default", DigestOf(forged), {{kLabel, "app"}});
  Commit(forged);
  EXPECT_TRUE(AwaitKnown("layer", false));
  content_.Remove(DigestOf(forged));
  blobs_->Deleted(DigestOf(forged));
  EXPECT_TRUE(Known("layer"));
  EXPECT_EQ(blobs_->Find(DigestOf("layer"))->size, 5u);
}

TEST_F(LazySourcesTest, HeldLayerStaysThoughAnotherImageTellsAnotherSize) {
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  namespaces_.Put("default", DigestOf("layer"), {});
  ASSERT_TRUE(AwaitListed("layer"));
  const std::string forged =
      absl::StrReplaceAll(Manifest(Config({"layer"}), {"layer", "other"}),
                          {{R"("size":5,"annotations")", R"("size":6,"annotations")"}});
  namespaces_.Put("default", Commit(forged), {{kLabel, "app"}});
  EXPECT_TRUE(AwaitKnown("other", true));
  EXPECT_EQ(blobs_->Find(DigestOf("layer"))->size, 5u);
}

TEST_F(LazySourcesTest, PreparesAskNothingOfImagesWhoseRegistryIsKnown) {
  Pull({"layer"});
  ASSERT_EQ(blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).size(), 1u);
  const size_t questions = namespaces_.questions(), checks = Checks();
  SetAnswer([](const auto&) { return absl::UnauthenticatedError("not for a moment"); });
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).size(), 1u);
  }
  Close();
  EXPECT_EQ(namespaces_.questions(), questions);
  EXPECT_EQ(Checks(), checks);
}

TEST_F(LazySourcesTest, LostBlobIsLetGoByNamespacesThatHoldIt) {
  namespaces_.Put("default", Commit("a document"), {});
  content_.Remove(DigestOf("a document"));
  blobs_->Lost(DigestOf("a document"));
  EXPECT_TRUE(AwaitHolds(DigestOf("a document"), false));
}

TEST_F(LazySourcesTest, LostLayerThatHasASourceIsLazyAndStaysHeld) {
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  namespaces_.Put("default", Commit("layer"), {});
  EXPECT_FALSE(Known("layer"));
  content_.Remove(DigestOf("layer"));
  blobs_->Lost(DigestOf("layer"));
  EXPECT_TRUE(AwaitListed("layer"));
  EXPECT_TRUE(namespaces_.Holds("default", DigestOf("layer")));
}

TEST_F(LazySourcesTest, NobodyWaitsWhileWhatIsThereIsLookedThrough) {
  Close();
  content_.on_list = [this] { EXPECT_TRUE(gate_.Pass()); };
  Open();
  ASSERT_TRUE(gate_.AwaitWaiting(1));
  const absl::Time begin = absl::Now();
  EXPECT_FALSE(Known("something"));
  EXPECT_TRUE(blobs_->WithChain(ChainOf({"something"}), {}, nullptr).empty());
  EXPECT_LT(absl::Now() - begin, kPatience / 2) << "the gate is closed";
  gate_.Open();
}

TEST_F(LazySourcesTest, WhatANamespaceHoldsIsFoundThoughContainerdComesLate) {
  Pull({"layer"});
  ASSERT_EQ(blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).size(), 1u);
  Close();
  namespaces_.Put("default", DigestOf("layer"), {});
  namespaces_.set_down(true);
  const size_t before = namespaces_.questions();
  Open();
  ASSERT_TRUE(namespaces_.Await([&](FakeNamespaces& n) { return n.questions() > before; }));
  EXPECT_FALSE(Listed("layer"));
  ASSERT_EQ(blobs_->MayBeHeld().size(), 1u) << "an export would miss it";
  namespaces_.set_down(false);
  EXPECT_TRUE(AwaitListed("layer"));
}

TEST_F(LazySourcesTest, LayerThatIsFoundElsewhereIsNotDropped) {
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  namespaces_.Put("default", DigestOf("layer"), {});
  ASSERT_TRUE(AwaitListed("layer"));
  namespaces_.set_drops_fail(true);
  source_->SetDefault(support::GatedBlobSource::Fail(absl::NotFoundError("no such blob")));
  std::vector<uint8_t> piece(100);
  EXPECT_FALSE(blobs_->Read(DigestOf("layer"), 0, absl::MakeSpan(piece), nullptr).ok());
  EXPECT_FALSE(Listed("layer"));
  Pull({"layer", "upper"}, "other");
  ASSERT_EQ(blobs_->WithChain(ChainOf({"layer", "upper"}), {}, nullptr).size(), 1u);
  namespaces_.set_drops_fail(false);
  EXPECT_TRUE(AwaitListed("layer"));
  EXPECT_TRUE(namespaces_.Holds("default", DigestOf("layer")));
}

TEST_F(LazySourcesTest, LayerThatAnotherImageAnnotatesOtherwiseIsRead) {
  source_->PutBlob("layer");
  contentstore::DescriptorHandler handler;
  handler.descriptor.media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
  handler.descriptor.digest = DigestOf("layer");
  handler.descriptor.size = 5;
  handler.descriptor.annotations = {{"containerd.io/snapshot/stargz/toc.digest", "another"}};
  handler.sources = {source_};
  ASSERT_TRUE(store_->AddHandler(handler).ok());
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  std::vector<uint8_t> piece(5);
  auto read = blobs_->Read(DigestOf("layer"), 0, absl::MakeSpan(piece), nullptr);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(store_->Find(DigestOf("layer"))->descriptor().annotations, handler.descriptor.annotations)
      << "what a mount relies on";
}

TEST_F(LazySourcesTest, StopEndsQuestionsToRegistries) {
  absl::Notification asked;
  SetAnswer([&](const std::shared_ptr<base::CancelToken>& cancel) {
    absl::Notification cancelled;
    const auto registration = cancel->OnCancel([&] { cancelled.Notify(); });
    asked.Notify();
    EXPECT_TRUE(cancelled.WaitForNotificationWithTimeout(kPatience));
    return absl::CancelledError("cancelled");
  });
  hosts_ = {"registry.test", "registry.test:1", "registry.test:2"};
  Pull({"layer"});
  asked.WaitForNotification();
  Close();
  EXPECT_EQ(Checks(), 1u) << "the other hosts are not asked any more";
}

}  // namespace
}  // namespace lazyblob::contentservice
