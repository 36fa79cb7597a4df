#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <thread>

#include "tests/contentservice/lazy_blobs_harness.h"

namespace lazyblob::contentservice {
namespace {

TEST_F(LazyBlobsTest, LayersOfACommittedManifestAreKnownOnceItsLabelsTellTheRegistry) {
  Pull({"layer one", "layer two"});
  auto info = blobs_->Find(DigestOf("layer two"));
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->size, 9u);
  EXPECT_TRUE(absl::IsNotFound(blobs_->Find(DigestOf("something else")).status()));
  EXPECT_TRUE(absl::IsNotFound(blobs_->Find(DigestOf(Config({"layer one", "layer two"}))).status()))
      << "configs are fetched as ever";
}

TEST_F(LazyBlobsTest, FindWaitsForLabelsThatComeAMomentLater) {
  Commit(Manifest(Config({"layer"}), {"layer"}));
  std::thread client([&] {
    EXPECT_TRUE(namespaces_.Await([](FakeNamespaces& n) { return n.questions() >= 3; }));
    namespaces_.Put("default", DigestOf(Manifest(Config({"layer"}), {"layer"})), {{kLabel, "app"}});
  });
  EXPECT_TRUE(Known("layer"));
  client.join();
}

TEST_F(LazyBlobsTest, WithoutASourceTheLayerStaysUnknownAndNobodyWaitsLong) {
  find_patience_ = absl::Milliseconds(8);
  Reopen();
  Commit(Manifest(Config({"layer"}), {"layer"}));
  const absl::Time begin = absl::Now();
  EXPECT_FALSE(Known("layer"));
  EXPECT_LT(absl::Now() - begin, absl::Seconds(2));
}

TEST_F(LazyBlobsTest, OnlyFileSystemLayersOfTheRegistryAreLazy) {
  const std::string chart = "a helm chart";
  const base::Digest manifest =
      Commit(Manifest("{}", {chart}, "application/vnd.cncf.helm.chart.content.v1.tar"));
  namespaces_.Put("default", manifest, {{kLabel, "app"}});
  EXPECT_FALSE(Known(chart));
  Commit("{\"this is\": \"no manifest\"}");
  Commit("neither is this");
  Commit("");
  Pull({"layer"});
  EXPECT_TRUE(Known("layer"));
}

TEST_F(LazyBlobsTest, LazyBlobIsListedOnceANamespaceHoldsIt) {
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  EXPECT_FALSE(Listed("layer"));
  namespaces_.Put("default", DigestOf("layer"), {});
  EXPECT_TRUE(AwaitListed("layer"));
  ASSERT_TRUE(blobs_->SetLabels(DigestOf("layer"), {{"k", "v"}}, absl::FromUnixSeconds(7)).ok());
  Reopen();
  ASSERT_TRUE(Listed("layer")) << "remembered";
  auto info = blobs_->Find(DigestOf("layer"));
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->labels, (Labels{{"k", "v"}}));
  EXPECT_EQ(info->updated, absl::FromUnixSeconds(7));
}

TEST_F(LazyBlobsTest, ForgottenBlobIsNotListedAndAnotherPullFindsItAgain) {
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  namespaces_.Put("default", DigestOf("layer"), {});
  ASSERT_TRUE(AwaitListed("layer"));
  EXPECT_TRUE(blobs_->Forget(DigestOf("layer")).ok());
  EXPECT_FALSE(Listed("layer"));
  EXPECT_TRUE(absl::IsNotFound(blobs_->Forget(DigestOf("unknown"))));
  EXPECT_TRUE(Known("layer")) << "its manifest is still there";
}

TEST_F(LazyBlobsTest, DeletedManifestTakesWhatOnlyItTaught) {
  const base::Digest first = Pull({"base", "one"});
  const base::Digest second = Pull({"base", "two"});
  ASSERT_TRUE(Known("one"));
  ASSERT_TRUE(Known("two"));
  content_.Remove(first);
  blobs_->Deleted(first);
  EXPECT_FALSE(Known("one"));
  EXPECT_TRUE(Known("base"));
  content_.Remove(second);
  blobs_->Deleted(second);
  EXPECT_FALSE(Known("base"));
}

TEST_F(LazyBlobsTest, HeldBlobOutlivesItsManifestAndARestart) {
  const base::Digest manifest = Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  namespaces_.Put("default", DigestOf("layer"), {});
  ASSERT_TRUE(AwaitListed("layer"));
  content_.Remove(manifest);
  blobs_->Deleted(manifest);
  EXPECT_TRUE(Known("layer"));
  Reopen();
  EXPECT_TRUE(Known("layer"));
  EXPECT_TRUE(Listed("layer"));
}

TEST_F(LazyBlobsTest, WhatALaterImageToldOfAHeldBlobOutlivesThatImage) {
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  namespaces_.Put("default", DigestOf("layer"), {});
  ASSERT_TRUE(AwaitListed("layer"));
  const base::Digest later = Pull({"layer", "upper"}, "other");
  // Decided when the registry has answered.
  ASSERT_EQ(blobs_->WithChain(ChainOf({"layer", "upper"}), {}, nullptr).size(), 1u);
  content_.Remove(later);
  blobs_->Deleted(later);
  source_->PutBlob("layer");
  std::array<uint8_t, 5> bytes{};
  EXPECT_TRUE(blobs_->Read(DigestOf("layer"), 0, absl::MakeSpan(bytes), nullptr).ok());
  absl::MutexLock lock(&mutex_);
  EXPECT_THAT(asked_sources_,
              ::testing::UnorderedElementsAre("registry:registry.test/app", "registry:registry.test/other"));
}

TEST_F(LazyBlobsTest, ImagesAreLearnedAgainAfterARestartThoughContainerdIsNotThere) {
  Pull({"layer", "upper"});
  ASSERT_TRUE(Known("upper"));
  ASSERT_EQ(blobs_->WithChain(ChainOf({"layer", "upper"}), {}, nullptr).size(), 1u);
  namespaces_.set_down(true);
  find_patience_ = absl::Milliseconds(8);
  Reopen();
  EXPECT_TRUE(Known("upper"));
  EXPECT_EQ(blobs_->WithChain(ChainOf({"layer", "upper"}), {}, nullptr).size(), 1u);
}

TEST_F(LazyBlobsTest, ImageCommittedJustBeforeACrashIsLearnedAfterIt) {
  Close();
  const std::string config = Config({"layer"});
  const base::Digest manifest = content_.Put(Manifest(config, {"layer"}));
  content_.Put(config);
  namespaces_.Put("default", manifest, {{kLabel, "app"}});
  Open();
  EXPECT_TRUE(namespaces_.Await([&](FakeNamespaces&) { return Known("layer"); }));
  EXPECT_TRUE(namespaces_.Await(
      [&](FakeNamespaces&) { return blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).size() == 1; }));
}

TEST_F(LazyBlobsTest, ChainsNameTheImageAndTheLayer) {
  const base::Digest manifest = Pull({"layer", "upper"});
  auto layers = blobs_->WithChain(ChainOf({"layer", "upper"}), DigestOf("tar of upper"), nullptr);
  ASSERT_EQ(layers.size(), 1u);
  EXPECT_EQ(layers[0].layer, DigestOf("upper"));
  EXPECT_EQ(layers[0].manifest, manifest);
  EXPECT_EQ(layers[0].reference, "registry.test/app@" + manifest.ToString());
  EXPECT_TRUE(blobs_->WithChain(ChainOf({"layer", "upper"}), DigestOf("tar of layer"), nullptr).empty());
  EXPECT_TRUE(blobs_->WithChain(ChainOf({"upper"}), {}, nullptr).empty());
}

TEST_F(LazyBlobsTest, ConfigThatCameBeforeItsManifestIsFound) {
  const std::string config = Config({"layer"});
  Commit(config);
  const base::Digest manifest = Commit(Manifest(config, {"layer"}));
  namespaces_.Put("default", manifest, {{kLabel, "app"}});
  EXPECT_EQ(blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).size(), 1u);
}

TEST_F(LazyBlobsTest, TwoLayersOfOneChainAreBothTold) {
  const std::string config = Config({"layer"});
  Pull({"layer"});
  learn_patience_ = absl::ZeroDuration();
  Reopen();
  // Of the same chain by what its config says, and from nowhere.
  const std::string forged = Config({"layer"}) + " ";
  Commit(forged);
  Commit(Manifest(forged, {"another blob"}));
  const auto layers = blobs_->WithChain(ChainOf({"layer"}), {}, nullptr);
  ASSERT_EQ(layers.size(), 2u);
  EXPECT_NE(layers[0].layer, layers[1].layer);
}

TEST_F(LazyBlobsTest, NamespaceThatNoClientWritesToIsMadeToHoldTheLayer) {
  Pull({"layer"});
  ASSERT_EQ(blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).size(), 1u);
  namespaces_.set_down(true);
  blobs_->HoldLater("k8s.io", DigestOf("layer"));
  const size_t before = namespaces_.questions();
  EXPECT_TRUE(namespaces_.Await([&](FakeNamespaces& n) { return n.questions() > before; }));
  namespaces_.set_down(false);
  EXPECT_TRUE(namespaces_.Await([](FakeNamespaces& n) { return n.Holds("k8s.io", DigestOf("layer")); }));
  EXPECT_EQ(namespaces_.LabelsOf("k8s.io", DigestOf("layer")), (Labels{{kLabel, "app"}}));
  EXPECT_TRUE(AwaitListed("layer"));
}

TEST_F(LazyBlobsTest, NamespaceIsMadeToHoldABlobThatIsWhole) {
  Commit("layer");
  blobs_->HoldLater("k8s.io", DigestOf("layer"));
  EXPECT_TRUE(namespaces_.Await([](FakeNamespaces& n) { return n.Holds("k8s.io", DigestOf("layer")); }));
  EXPECT_FALSE(Listed("layer"));
}

TEST_F(LazyBlobsTest, WholeBlobIsLeftAloneAfterARestartThoughItsRegistryRefusesIt) {
  Pull({"layer"});
  Commit("layer");
  namespaces_.Put("default", DigestOf("layer"), {});
  Reopen();
  EXPECT_FALSE(Known("layer"));
  {
    absl::MutexLock lock(&mutex_);
    good_hosts_.clear();
  }
  Pull({"layer", "upper"});  // another image, of a registry that does not let the daemon in
  EXPECT_TRUE(blobs_->WithChain(ChainOf({"layer", "upper"}), {}, nullptr).empty());
  EXPECT_TRUE(namespaces_.Await([](FakeNamespaces& n) { return n.questions() > 0; }));
  Close();
  EXPECT_TRUE(namespaces_.Holds("default", DigestOf("layer")));
  Open();
  EXPECT_FALSE(Listed("layer"));
}

TEST_F(LazyBlobsTest, BlobThatAClientWroteIsNotLazy) {
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  namespaces_.Put("default", DigestOf("layer"), {});
  ASSERT_TRUE(AwaitListed("layer"));
  Commit("layer");
  EXPECT_FALSE(Listed("layer"));
  EXPECT_FALSE(Known("layer"));
  content_.Remove(DigestOf("layer"));
  blobs_->Deleted(DigestOf("layer"));
  EXPECT_TRUE(Known("layer"));
}

TEST_F(LazyBlobsTest, OriginalBytesAreReadFromTheRegistry) {
  const std::string layer(100'000, 'x');
  source_->PutBlob(layer);
  Pull({layer});
  ASSERT_TRUE(Known(layer));
  std::string got;
  std::vector<uint8_t> piece(32 << 10);
  for (;;) {
    auto read = blobs_->Read(DigestOf(layer), got.size(), absl::MakeSpan(piece), nullptr);
    ASSERT_TRUE(read.ok()) << read.status();
    if (*read == 0) break;
    got.append(piece.begin(), piece.begin() + static_cast<ptrdiff_t>(*read));
  }
  EXPECT_TRUE(got == layer);
  EXPECT_TRUE(
      absl::IsNotFound(blobs_->Read(DigestOf("unknown"), 0, absl::MakeSpan(piece), nullptr).status()));
}

TEST_F(LazyBlobsTest, BlobThatNoRegistryHasIsDroppedEverywhereSoThatAnotherPullHeals) {
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  namespaces_.Put("default", DigestOf("layer"), {});
  ASSERT_TRUE(AwaitListed("layer"));
  source_->SetDefault(support::GatedBlobSource::Fail(absl::NotFoundError("no such blob")));
  std::vector<uint8_t> piece(100);
  EXPECT_FALSE(blobs_->Read(DigestOf("layer"), 0, absl::MakeSpan(piece), nullptr).ok());
  find_patience_ = absl::ZeroDuration();
  EXPECT_FALSE(Known("layer"));
  EXPECT_FALSE(Listed("layer"));
  EXPECT_TRUE(namespaces_.Await([](FakeNamespaces& n) { return !n.Holds("default", DigestOf("layer")); }));
  EXPECT_TRUE(blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).empty());
  Reopen();
  EXPECT_FALSE(Known("layer")) << "after a restart too";
}

TEST_F(LazyBlobsTest, RegistryThatIsDownOrLetsNobodyInForgetsNothing) {
  source_->PutBlob("layer");
  Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  for (const absl::Status& status :
       {absl::UnavailableError("down"), absl::UnauthenticatedError("password")}) {
    source_->SetDefault(support::GatedBlobSource::Fail(status));
    std::vector<uint8_t> piece(100);
    EXPECT_FALSE(blobs_->Read(DigestOf("layer"), 0, absl::MakeSpan(piece), nullptr).ok());
    EXPECT_TRUE(Known("layer"));
  }
}

TEST_F(LazyBlobsTest, LayersOfARegistryThatRefusesTheManifestAreLeftToTheClient) {
  find_patience_ = absl::ZeroDuration();
  {
    absl::MutexLock lock(&mutex_);
    good_hosts_.clear();
  }
  Reopen();
  namespaces_.Put("default", DigestOf("layer"), {});  // shared in the moment before that was known
  Pull({"layer"});
  EXPECT_TRUE(blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).empty());
  EXPECT_FALSE(Known("layer"));
  EXPECT_TRUE(namespaces_.Await([](FakeNamespaces& n) { return !n.Holds("default", DigestOf("layer")); }));
  EXPECT_FALSE(Listed("layer"));
}

// Labels leave the port out.
TEST_F(LazyBlobsTest, HostsOfTheNameAreUsedAtOnceAndTheOneThatHasTheManifestFirst) {
  hosts_ = {"registry.test:5000", "registry.test:5001"};
  {
    absl::MutexLock lock(&mutex_);
    good_hosts_ = {"registry.test:5001"};
  }
  const base::Digest manifest = Pull({"layer"});
  ASSERT_TRUE(Known("layer"));
  const auto layers = blobs_->WithChain(ChainOf({"layer"}), {}, nullptr);
  ASSERT_EQ(layers.size(), 1u);
  EXPECT_EQ(layers[0].reference, "registry.test:5001/app@" + manifest.ToString());
}

TEST_F(LazyBlobsTest, HostThatNothingIsKnownOfIsUsedOnceItHasShownTheManifest) {
  hosts_ = {};
  {
    absl::MutexLock lock(&mutex_);
    good_hosts_.clear();
  }
  find_patience_ = absl::ZeroDuration();
  Reopen();
  Pull({"layer"});
  EXPECT_TRUE(blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).empty());
  EXPECT_FALSE(Known("layer"));
  {
    absl::MutexLock lock(&mutex_);
    ASSERT_FALSE(checked_.empty());
    EXPECT_TRUE(absl::StartsWith(checked_[0], "registry.test/app@sha256:")) << checked_[0];
    good_hosts_ = {"registry.test"};
  }
  Pull({"layer", "upper"});
  EXPECT_EQ(blobs_->WithChain(ChainOf({"layer", "upper"}), {}, nullptr).size(), 1u);
  EXPECT_TRUE(Known("layer"));
}

}  // namespace
}  // namespace lazyblob::contentservice
