// Prepare of layers that may be lazy, on fake layers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "base/fault.h"
#include "tests/snapshotter/snapshotter_harness.h"

namespace lazyblob::snapshotter {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;
using testing::SizeIs;
using testing::StartsWith;

class LazySnapshotsTest : public SnapshotterTest {
 protected:
  // The search of containerd's metadata layer after AlreadyExists.
  std::vector<std::string> FindByRef(const std::string& ref, const std::string& parent) {
    return Names({absl::StrCat("kind==committed,labels.\"", kLabelSnapshotRef, "\"==\"", ref, "\",parent==\"",
                               parent, "\"")});
  }
};

TEST_F(LazySnapshotsTest, ALazyLayerIsCommittedUnderItsRef) {
  Labels labels = LazyLabels("sha256:chain", LayerDigest("a"));
  labels["containerd.io/snapshot/stargz/toc.digest"] = "";
  const absl::Status status = Prepare("extract-1 sha256:chain", "", labels).status();
  EXPECT_TRUE(absl::IsAlreadyExists(status));
  EXPECT_EQ(status.message(), "target snapshot \"sha256:chain\": already exists");
  EXPECT_TRUE(absl::IsNotFound(snapshotter_->Stat("extract-1 sha256:chain").status()));
  Info info = snapshotter_->Stat("sha256:chain").value();
  EXPECT_EQ(info.kind, Kind::kCommitted);
  EXPECT_EQ(info.parent, "");
  EXPECT_EQ(info.created, info.updated);
  EXPECT_THAT(info.labels, Contains(Pair(kLabelRemote, "remote snapshot")));
  info.labels.erase(kLabelRemote);
  EXPECT_EQ(info.labels, labels);  // every one of them, the empty one too
  EXPECT_THAT(FindByRef("sha256:chain", ""), ElementsAre("sha256:chain"));
  EXPECT_THAT(Directories(), IsEmpty());
  EXPECT_EQ(layers_->users(LayerDigest("a")), 1);
  EXPECT_EQ(layers_->last_claim().reference, "registry.test/app:1");
  EXPECT_EQ(layers_->last_claim().chain, "sha256:chain");
  ASSERT_THAT(snapshotter_->LazyMounts(), SizeIs(1));
  EXPECT_EQ(snapshotter_->GetUsage("sha256:chain")->bytes, layers_->cache_usage.bytes);
}

TEST_F(LazySnapshotsTest, TheSecondPullFindsItAtOnce) {
  MakeLazy("a");
  EXPECT_TRUE(absl::IsAlreadyExists(Prepare("again", "", LazyLabels("a", LayerDigest("a"))).status()));
  EXPECT_EQ(layers_->mount_calls(), 1);
  EXPECT_EQ(layers_->users(LayerDigest("a")), 1);
  EXPECT_THAT(Names(), ElementsAre("a"));
}

TEST_F(LazySnapshotsTest, ChildrenStandOnTheMountedLayers) {
  MakeLazy("a");
  MakeLazy("b", "a");
  ASSERT_THAT(layers_->last_lowers(), SizeIs(1));
  EXPECT_EQ(std::get<LayerMount>(layers_->last_lowers()[0]).layer, LayerDigest("a"));
  ASSERT_TRUE(Prepare("up", "b").ok());
  ASSERT_TRUE(Commit("local", "up").ok());
  MakeLazy("c", "local");
  ASSERT_THAT(layers_->last_lowers(), SizeIs(3));
  EXPECT_THAT(std::get<std::string>(layers_->last_lowers()[0]), HasSubstr("/s/"));
  EXPECT_EQ(std::get<LayerMount>(layers_->last_lowers()[1]).layer, LayerDigest("b"));

  auto mounts = Prepare("container", "c").value();
  std::vector<LayerMount> lazy = snapshotter_->LazyMounts();
  ASSERT_THAT(lazy, SizeIs(3));
  EXPECT_EQ(Option(mounts[0], "lowerdir"),
            absl::StrCat(lazy[2].target, ":", std::get<std::string>(layers_->last_lowers()[0]), ":",
                         lazy[1].target, ":", lazy[0].target));
  auto view = snapshotter_->View("view", "a", {}).value();
  EXPECT_EQ(view[0].type, "bind");
  EXPECT_EQ(view[0].source, lazy[0].target);
}

TEST_F(LazySnapshotsTest, NothingBelowAnOpaqueRootIsUsed) {
  MakeLazy("a");
  layers_->MakeOpaque(LayerDigest("b"));
  MakeLazy("b", "a");
  MakeLazy("c", "b");
  ASSERT_THAT(layers_->last_lowers(), SizeIs(1));
  layers_->Kill(LayerDigest("a"));  // does not matter
  auto view = snapshotter_->View("view", "b", {});
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->at(0).type, "bind");
  EXPECT_FALSE(
      absl::StrContains(Option(Prepare("x", "c")->at(0), "lowerdir"), LayerDigest("a").hex().substr(0, 12)));
}

TEST_F(LazySnapshotsTest, AChainThatIsNotWhatItsLayersMakeIsNotUsed) {
  const base::Digest bottom = base::Digest::Of("diff 1");
  const base::Digest top = base::Digest::Of("diff 2");
  const std::string lower = bottom.ToString();
  const std::string upper = base::Digest::Of(absl::StrCat(lower, " ", top.ToString())).ToString();
  const auto make = [&](const std::string& name, const std::string& parent, absl::string_view layer) {
    return Prepare("extract " + name, parent, LazyLabels(name, LayerDigest(layer))).status();
  };
  ASSERT_TRUE(absl::IsAlreadyExists(make(lower, "", "a")));
  ASSERT_TRUE(absl::IsAlreadyExists(make(upper, lower, "b")));
  ASSERT_TRUE(Prepare("1", upper).ok());
  layers_->SetDiffId(LayerDigest("b"), base::Digest::Of("not diff 2"));
  EXPECT_TRUE(Prepare("2", upper).ok());  // of the layer below it nothing is known
  layers_->SetDiffId(LayerDigest("a"), bottom);
  const absl::Status refused = Prepare("3", upper).status();
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  EXPECT_THAT(refused.message(), HasSubstr(LayerDigest("b").ToString()));
  EXPECT_TRUE(absl::IsUnavailable(snapshotter_->Mounts("1").status()));
  EXPECT_TRUE(Prepare("4", lower).ok());
  layers_->SetDiffId(LayerDigest("b"), top);
  EXPECT_TRUE(Prepare("5", upper).ok());
}

TEST_F(LazySnapshotsTest, TheSameLayerTwiceInAChainIsMountedOnce) {
  MakeLazy("a");
  const Labels again = LazyLabels("a2", LayerDigest("a"));
  ASSERT_TRUE(absl::IsAlreadyExists(Prepare("k", "a", again).status()));
  EXPECT_EQ(layers_->users(LayerDigest("a")), 2);
  auto view = snapshotter_->View("view", "a2", {}).value();
  EXPECT_EQ(view[0].type, "bind");
  EXPECT_THAT(view[0].options, ElementsAre("ro", "rbind"));
  ASSERT_TRUE(snapshotter_->Remove("view").ok());
  ASSERT_TRUE(snapshotter_->Remove("a2").ok());
  EXPECT_EQ(layers_->users(LayerDigest("a")), 1);
}

TEST_F(LazySnapshotsTest, AFailedMountIsANormalSnapshot) {
  layers_->Fail(LayerDigest("a"), NotLazyError("layer-not-in-manifest", absl::NotFoundError("no \n such")));
  for (int i = 0; i < 3; ++i) {
    auto mounts = Prepare(absl::StrCat("key", i), "", LazyLabels("a", LayerDigest("a")));
    ASSERT_TRUE(mounts.ok()) << mounts.status();
    EXPECT_THAT(mounts->back().options, Contains("rw"));
  }
  EXPECT_EQ(snapshotter_->Stat("key0")->kind, Kind::kActive);
  EXPECT_FALSE(snapshotter_->Stat("key0")->labels.contains(kLabelRemote));
  ASSERT_THAT(snapshotter_->NotLazyLayers(), SizeIs(1));
  const NotLazyLayer noted = snapshotter_->NotLazyLayers()[0];
  EXPECT_EQ(noted.layer, LayerDigest("a").ToString());
  EXPECT_EQ(noted.reference, "registry.test/app:1");
  EXPECT_EQ(noted.reason, "layer-not-in-manifest");
  EXPECT_EQ(noted.times, 3u);
  EXPECT_EQ(noted.detail, "no \\x0a such");
  EXPECT_EQ(LoggedTimes("layer-not-in-manifest"), 1u);
  layers_->Fail(LayerDigest("a"), absl::UnavailableError("without a reason"));
  ASSERT_TRUE(Prepare("key9", "", LazyLabels("a", LayerDigest("a"))).ok());
  EXPECT_EQ(snapshotter_->NotLazyLayers()[0].reason, "mount-failed");
  EXPECT_EQ(LoggedTimes("mount-failed"), 1u);

  // The client unpacks it; later it is lazy after all, beside the unpacked one.
  ASSERT_TRUE(Commit("a", "key0", {{kLabelSnapshotRef, "a"}}).ok());
  layers_->StopFailing();
  EXPECT_TRUE(absl::IsAlreadyExists(Prepare("new", "", LazyLabels("a", LayerDigest("a"))).status()));
  EXPECT_THAT(FindByRef("a", ""), ElementsAre("a", StartsWith("a ")));
}

TEST_F(LazySnapshotsTest, WithoutLayerOrReferenceItIsANormalSnapshotAndSaysWhy) {
  ASSERT_TRUE(Prepare("key", "", {{kLabelSnapshotRef, "chain"}}).ok());
  ASSERT_TRUE(Prepare("key2", "", {{kLabelSnapshotRef, "chain"}}).ok());
  EXPECT_EQ(layers_->mount_calls(), 0);
  ASSERT_THAT(snapshotter_->NotLazyLayers(), SizeIs(1));
  EXPECT_EQ(snapshotter_->NotLazyLayers()[0].layer, "chain");
  EXPECT_EQ(snapshotter_->NotLazyLayers()[0].reason, "no-reference");
  EXPECT_EQ(LoggedTimes("no-reference"), 1u);
  // Children of containers carry no such labels, and nothing is said of them.
  ASSERT_TRUE(Prepare("key3").ok());
  EXPECT_THAT(Log(), SizeIs(1));
}

TEST_F(LazySnapshotsTest, LabelsWithoutARefAreNoRemotePrepare) {
  Labels labels = LazyLabels("a", LayerDigest("a"));
  labels.erase(kLabelSnapshotRef);
  EXPECT_TRUE(Prepare("key", "", labels).ok());
  EXPECT_EQ(layers_->mount_calls(), 0);
}

TEST_F(LazySnapshotsTest, AMalformedDigestIsInvalid) {
  Labels labels = LazyLabels("a", LayerDigest("a"));
  labels[kLabelCriLayerDigest] = "sha256:zz";
  EXPECT_TRUE(absl::IsInvalidArgument(Prepare("key", "", labels).status()));
}

TEST_F(LazySnapshotsTest, AnotherLayerUnderTheSameChainIsNotBelieved) {
  MakeLazy("a");
  auto mounts = Prepare("key", "", LazyLabels("a", LayerDigest("evil")));
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_EQ(snapshotter_->NotLazyLayers()[0].reason, "chain-conflict");
  EXPECT_EQ(layers_->mount_calls(), 1);
  EXPECT_THAT(FindByRef("a", ""), ElementsAre("a"));
}

// What a content service knows of chains.
class FakeChains final : public LearnedChains {
 public:
  std::vector<LayerClaim> ClaimsOf(const std::string& chain, const base::Digest&,
                                   const std::shared_ptr<base::CancelToken>&) override {
    std::vector<LayerClaim> claims;
    for (const base::Digest& layer : layers[chain]) {
      LayerClaim claim;
      claim.reference = "registry.test/learned@sha256:...";
      claim.layer = layer;
      claim.chain = chain;
      claims.push_back(claim);
    }
    return claims;
  }
  void Prepared(const std::string& key, const LayerClaim& claim) override {
    prepared.push_back(key + " " + claim.layer.ToString());
  }
  std::map<std::string, std::vector<base::Digest>> layers;
  std::vector<std::string> prepared;
};

TEST_F(LazySnapshotsTest, AChainThatWasLearnedNeedsNoLabels) {
  FakeChains chains;
  chains.layers["chain"] = {LayerDigest("a")};
  options_.chains = &chains;
  snapshotter_.reset();
  Open();
  const Labels labels = {{kLabelSnapshotRef, "chain"}};
  EXPECT_TRUE(absl::IsAlreadyExists(Prepare("ns/1/one", "", labels).status()));
  EXPECT_EQ(layers_->last_claim().layer, LayerDigest("a"));
  EXPECT_EQ(layers_->last_claim().chain, "chain");
  EXPECT_TRUE(absl::IsAlreadyExists(Prepare("ns/2/two", "", labels).status()));
  const std::string layer = LayerDigest("a").ToString();
  EXPECT_EQ(chains.prepared, (std::vector<std::string>{"ns/1/one " + layer, "ns/2/two " + layer}))
      << "nobody else writes the blob";
  EXPECT_TRUE(Prepare("ns/3/three", "", {{kLabelSnapshotRef, "another chain"}}).ok());
  EXPECT_EQ(chains.prepared.size(), 2u);
  EXPECT_EQ(snapshotter_->NotLazyLayers().at(0).reason, "no-reference");
}

TEST_F(LazySnapshotsTest, AChainOfTwoLayersIsNotBelievedThoughOneIsThere) {
  FakeChains chains;
  chains.layers["chain"] = {LayerDigest("a"), LayerDigest("b")};
  options_.chains = &chains;
  snapshotter_.reset();
  Open();
  EXPECT_TRUE(Prepare("one", "", {{kLabelSnapshotRef, "chain"}}).ok());
  EXPECT_EQ(layers_->mount_calls(), 0);
  EXPECT_EQ(snapshotter_->NotLazyLayers().at(0).reason, "chain-ambiguous");
  ASSERT_TRUE(absl::IsAlreadyExists(Prepare("two", "", LazyLabels("chain", LayerDigest("b"))).status()));
  EXPECT_TRUE(Prepare("three", "", {{kLabelSnapshotRef, "chain"}}).ok())
      << "whoever was first decides nothing";
  EXPECT_EQ(chains.prepared.size(), 1u) << "two, whose labels tell the layer";
  // The only one that is known may still be another than the one that is there.
  chains.layers["chain"] = {LayerDigest("a")};
  EXPECT_TRUE(Prepare("four", "", {{kLabelSnapshotRef, "chain"}}).ok());
  EXPECT_EQ(layers_->mount_calls(), 1);
}

TEST_F(LazySnapshotsTest, TheSameRefOnAnotherParentIsAnotherSnapshot) {
  MakeCommitted("ns1/1/base");
  MakeCommitted("ns2/2/base");
  const Labels labels = LazyLabels("chain", LayerDigest("a"));
  EXPECT_TRUE(absl::IsAlreadyExists(Prepare("k1", "ns1/1/base", labels).status()));
  EXPECT_TRUE(absl::IsAlreadyExists(Prepare("k2", "ns2/2/base", labels).status()));
  EXPECT_THAT(FindByRef("chain", "ns1/1/base"), ElementsAre("chain"));
  const std::vector<std::string> second = FindByRef("chain", "ns2/2/base");
  ASSERT_THAT(second, ElementsAre(StartsWith("chain ")));
  EXPECT_EQ(snapshotter_->Stat(second[0])->labels.at(kLabelSnapshotRef), "chain");
  EXPECT_EQ(layers_->users(LayerDigest("a")), 2);
}

TEST_F(LazySnapshotsTest, TheRemoteLabelStaysOnALazySnapshot) {
  MakeLazy("a");
  Info change;
  change.name = "a";
  const std::string path = std::string("labels.") + kLabelRemote;
  EXPECT_TRUE(snapshotter_->Update(change, {path})->labels.contains(kLabelRemote));
  change.labels = {{"containerd.io/snapshot/remote/stargz.session.0.x", "s"}};
  EXPECT_THAT(snapshotter_->Update(change, {"labels"})->labels, SizeIs(2));
  change.labels.clear();
  EXPECT_THAT(snapshotter_->Update(change, {})->labels, ElementsAre(Pair(kLabelRemote, "remote snapshot")));
}

TEST_F(LazySnapshotsTest, ARestartMountsEverythingAgain) {
  MakeLazy("a");
  MakeLazy("b", "a");
  ASSERT_TRUE(Prepare("container", "b").ok());
  const int mounts = layers_->mount_calls();
  Restart();
  EXPECT_EQ(layers_->mount_calls(), mounts);  // no registry is asked
  EXPECT_EQ(layers_->restore_calls(), 2);
  EXPECT_EQ(layers_->users(LayerDigest("a")), 1);
  EXPECT_TRUE(snapshotter_->Mounts("container").ok());
  EXPECT_TRUE(snapshotter_->Stat("a")->labels.contains(kLabelRemote));
  EXPECT_TRUE(absl::IsAlreadyExists(Prepare("again", "", LazyLabels("a", LayerDigest("a"))).status()));
}

TEST_F(LazySnapshotsTest, ATargetThatMovedIsRecorded) {
  MakeLazy("a");
  ASSERT_TRUE(Prepare("container", "a").ok());
  const std::string before = snapshotter_->LazyMounts()[0].target;
  layers_->Move(LayerDigest("a"));
  Restart();
  const std::string after = snapshotter_->LazyMounts().at(0).target;
  EXPECT_NE(after, before);
  EXPECT_EQ(Option(snapshotter_->Mounts("container")->at(0), "lowerdir"), after);
}

TEST_F(LazySnapshotsTest, AMountThatVanishedIsMadeAgain) {
  MakeLazy("a");
  ASSERT_TRUE(Prepare("container", "a").ok());
  layers_->Move(LayerDigest("a"));
  auto mounts = snapshotter_->Mounts("container");
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_EQ(Option(mounts->at(0), "lowerdir"), snapshotter_->LazyMounts().at(0).target);
  EXPECT_EQ(layers_->users(LayerDigest("a")), 1);
}

TEST_F(LazySnapshotsTest, OnADeadLayerNothingIsPreparedButItCanBeRemoved) {
  MakeLazy("a");
  MakeLazy("b", "a");
  ASSERT_TRUE(Prepare("container", "b").ok());
  layers_->Lose(LayerDigest("a"));
  Restart();
  EXPECT_EQ(LoggedTimes(LayerDigest("a").ToString()), 1u);
  for (const absl::Status& status :
       {Prepare("new", "b").status(), snapshotter_->View("new", "a", {}).status(),
        snapshotter_->Mounts("container").status(),
        Prepare("new", "b", LazyLabels("c", LayerDigest("c"))).status()}) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(LayerDigest("a").ToString()));
  }
  EXPECT_THAT(snapshotter_->LazyMounts(), SizeIs(1));
  for (const char* name : {"container", "b", "a"}) EXPECT_TRUE(snapshotter_->Remove(name).ok()) << name;
  EXPECT_EQ(layers_->mounted(), 0u);
  EXPECT_EQ(layers_->unbalanced(), 0);
}

TEST_F(LazySnapshotsTest, ADeadLayerThatIsPulledAgainLivesAgain) {
  MakeLazy("a");
  layers_->Lose(LayerDigest("a"));
  Restart();
  EXPECT_TRUE(absl::IsUnavailable(Prepare("child", "a").status()));
  EXPECT_TRUE(absl::IsAlreadyExists(Prepare("again", "", LazyLabels("a", LayerDigest("a"))).status()));
  EXPECT_EQ(layers_->mount_calls(), 2);
  EXPECT_TRUE(Prepare("child", "a").ok());
  EXPECT_THAT(Names(), ElementsAre("a", "child"));
  EXPECT_EQ(layers_->users(LayerDigest("a")), 1);
  EXPECT_EQ(layers_->unbalanced(), 0);
}

TEST_F(LazySnapshotsTest, AQuarantinedLayerIsPreparedNormally) {
  MakeLazy("a");
  layers_->Kill(LayerDigest("a"));
  layers_->Fail(LayerDigest("a"), NotLazyError("quarantined", absl::DataLossError("its bytes are wrong")));
  ASSERT_TRUE(Prepare("again", "", LazyLabels("a", LayerDigest("a"))).ok());
  EXPECT_EQ(snapshotter_->NotLazyLayers().at(0).reason, "quarantined");
  ASSERT_TRUE(Commit("ns/1/a", "again").ok());
  EXPECT_EQ(layers_->users(LayerDigest("a")), 1);
}

TEST_F(LazySnapshotsTest, RemoveUnmounts) {
  MakeLazy("a");
  MakeLazy("b", "a");
  EXPECT_TRUE(absl::IsFailedPrecondition(snapshotter_->Remove("a")));
  ASSERT_TRUE(snapshotter_->Remove("b").ok());
  EXPECT_EQ(layers_->users(LayerDigest("b")), 0);
  ASSERT_TRUE(snapshotter_->Remove("a").ok());
  EXPECT_EQ(layers_->mounted(), 0u);
  EXPECT_EQ(layers_->unbalanced(), 0);
}

TEST_F(LazySnapshotsTest, ManyPullsOfOneLayerMakeOneSnapshot) {
  constexpr int kPulls = 16;
  support::Gate gate;
  layers_->gate = &gate;
  std::vector<std::thread> threads;
  std::atomic<int> found{0};
  for (int i = 0; i < kPulls; ++i) {
    threads.emplace_back([&, i] {
      const absl::Status status =
          Prepare(absl::StrCat("key", i), "", LazyLabels("a", LayerDigest("a"))).status();
      if (absl::IsAlreadyExists(status)) ++found;
    });
  }
  EXPECT_TRUE(gate.AwaitWaiting(kPulls));  // all of them are in Mount at once; a Stat is not held up
  EXPECT_TRUE(absl::IsNotFound(snapshotter_->Stat("a").status()));
  gate.Open();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(found, kPulls);
  EXPECT_THAT(Names(), ElementsAre("a"));
  EXPECT_EQ(layers_->users(LayerDigest("a")), 1);
  EXPECT_EQ(layers_->unbalanced(), 0);
}

TEST_F(LazySnapshotsTest, ALayerWhoseParentVanishesMeanwhileIsUnmounted) {
  MakeLazy("a");
  support::Gate gate;
  layers_->gate = &gate;
  absl::Status status;
  std::thread pull([&] { status = Prepare("key", "a", LazyLabels("b", LayerDigest("b"))).status(); });
  ASSERT_TRUE(gate.AwaitWaiting(1));
  ASSERT_TRUE(snapshotter_->Remove("a").ok());
  gate.Open();
  pull.join();
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_EQ(layers_->mounted(), 0u);
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(LazySnapshotsTest, ACancelledPrepareLeavesNothing) {
  support::Gate gate;
  layers_->gate = &gate;
  auto cancel = std::make_shared<base::CancelToken>();
  absl::Status status;
  std::thread pull(
      [&] { status = snapshotter_->Prepare("key", "", LazyLabels("a", LayerDigest("a")), cancel).status(); });
  ASSERT_TRUE(gate.AwaitWaiting(1));
  cancel->Cancel();
  gate.Open();
  pull.join();
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_THAT(Directories(), IsEmpty());
  EXPECT_THAT(snapshotter_->NotLazyLayers(), IsEmpty());
}

TEST_F(LazySnapshotsTest, AFailedCommitUnmounts) {
  for (const char* point : {"snapshotter/lazy/mounted", "snapshotter/lazy/row-written"}) {
    base::ScopedFault fault(point, [] { return absl::ResourceExhaustedError("disk full"); });
    EXPECT_TRUE(absl::IsResourceExhausted(Prepare("key", "", LazyLabels("a", LayerDigest("a"))).status()));
    EXPECT_EQ(layers_->mounted(), 0u);
    EXPECT_THAT(Names(), IsEmpty());
  }
}

TEST_F(LazySnapshotsTest, IdMapsGoOverLazyLayers) {
  MakeLazy("a");
  MakeLazy("b", "a");
  constexpr char kRange[] = "0:100000:65536";
  auto mounts = Prepare("container", "b", {{kLabelUidMapping, kRange}, {kLabelGidMapping, kRange}}).value();
  EXPECT_EQ(layers_->views(), 2u);
  EXPECT_THAT(Option(mounts[0], "lowerdir"), HasSubstr("/view"));
  layers_->Move(LayerDigest("a"));  // the view of what was mounted there is of no use
  auto after = snapshotter_->Mounts("container");
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_NE(Option(after->at(0), "lowerdir"), Option(mounts[0], "lowerdir"));
  EXPECT_EQ(layers_->views(), 2u);
  ASSERT_TRUE(snapshotter_->Remove("container").ok());
  EXPECT_EQ(layers_->views(), 0u);
}

TEST_F(LazySnapshotsTest, ManyAreRestored) {
  constexpr int kLayers = 300;
  for (int i = 0; i < kLayers; ++i) MakeLazy(absl::StrCat("layer", i));
  layers_->Lose(LayerDigest("layer7"));
  Restart();
  EXPECT_EQ(layers_->restore_calls(), kLayers);
  EXPECT_THAT(snapshotter_->LazyMounts(), SizeIs(kLayers - 1));
}

}  // namespace
}  // namespace lazyblob::snapshotter
