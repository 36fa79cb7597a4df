#include "contentservice/lazy_blobs.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "contentservice/learned_images.h"
#include "tests/support/gated_blob_source.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::contentservice {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);
constexpr char kLabel[] = "containerd.io/distribution.source.registry.test";

base::Digest DigestOf(absl::string_view bytes) { return base::Digest::Of(bytes); }

// Whole blobs in memory.
class FakeContent final : public Content {
 public:
  LazyBlobs* lazy = nullptr;
  base::Digest Put(const std::string& bytes) {
    absl::MutexLock lock(&mutex_);
    blobs_[DigestOf(bytes)] = bytes;
    return DigestOf(bytes);
  }
  void Remove(const base::Digest& digest) {
    absl::MutexLock lock(&mutex_);
    blobs_.erase(digest);
  }
  absl::Status Read(const base::Digest& digest, uint64_t, uint64_t, ReadSink sink,
                    const std::shared_ptr<base::CancelToken>&) override {
    std::string bytes;
    {
      absl::MutexLock lock(&mutex_);
      if (!blobs_.contains(digest)) return absl::NotFoundError("no such blob");
      bytes = blobs_[digest];
    }
    return sink({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  }
  absl::StatusOr<std::string> HeldFile(const base::Digest& digest) override {
    absl::MutexLock lock(&mutex_);
    if (!blobs_.contains(digest)) return absl::NotFoundError("no such blob");
    return std::string("somewhere");
  }

  absl::StatusOr<Info> GetInfo(const base::Digest& digest) override {
    {
      absl::MutexLock lock(&mutex_);
      if (auto found = blobs_.find(digest); found != blobs_.end()) {
        Info info;
        info.digest = digest;
        info.size = found->second.size();
        return info;
      }
    }
    return lazy->Find(digest);
  }
  absl::StatusOr<Info> Update(const Info&, const std::vector<std::string>&) override { return Unused(); }
  absl::Status List(const std::vector<std::string>&,
                    absl::FunctionRef<absl::Status(const Info&)> visit) override {
    absl::MutexLock lock(&mutex_);
    for (const auto& [digest, bytes] : blobs_) {
      Info info;
      info.digest = digest;
      info.size = bytes.size();
      RETURN_IF_ERROR(visit(info));
    }
    return absl::OkStatus();
  }
  absl::Status Delete(const base::Digest&) override { return Unused(); }
  absl::StatusOr<std::unique_ptr<Writer>> OpenWriter(const std::string&, uint64_t,
                                                     const base::Digest&) override {
    return Unused();
  }
  absl::StatusOr<IngestStatus> Status(const std::string&) override { return Unused(); }
  absl::StatusOr<std::vector<IngestStatus>> ListStatuses(const std::vector<std::string>&) override {
    return Unused();
  }
  absl::Status Abort(const std::string&) override { return Unused(); }
  absl::StatusOr<size_t> Adopt(const std::string&, const std::vector<base::Digest>&) override {
    return Unused();
  }

 private:
  static absl::Status Unused() { return absl::UnimplementedError("not for lazy blobs"); }
  absl::Mutex mutex_;
  std::map<base::Digest, std::string> blobs_ ABSL_GUARDED_BY(mutex_);
};

// What containerd's namespaces hold.
class FakeNamespaces final : public Namespaces {
 public:
  void Put(const std::string& name_space, const base::Digest& digest, const Labels& labels) {
    absl::MutexLock lock(&mutex_);
    held_[name_space][digest] = labels;
  }
  void set_down(bool down) {
    absl::MutexLock lock(&mutex_);
    down_ = down;
  }
  bool Holds(const std::string& name_space, const base::Digest& digest) {
    absl::MutexLock lock(&mutex_);
    return held_[name_space].contains(digest);
  }
  Labels LabelsOf(const std::string& name_space, const base::Digest& digest) {
    absl::MutexLock lock(&mutex_);
    return held_[name_space][digest];
  }
  size_t questions() {
    absl::MutexLock lock(&mutex_);
    return questions_;
  }
  // Waits until the namespaces are as `what` wants them.
  bool Await(const std::function<bool(FakeNamespaces&)>& what) {
    const absl::Time end = absl::Now() + kPatience;
    while (!what(*this)) {
      const size_t before = questions();
      absl::MutexLock lock(&mutex_);
      const auto more = [&] { return questions_ > before; };
      mutex_.AwaitWithTimeout(absl::Condition(&more), absl::Milliseconds(20));
      if (absl::Now() > end) return false;
    }
    return true;
  }

  absl::StatusOr<std::vector<std::string>> List() override {
    absl::MutexLock lock(&mutex_);
    ++questions_;
    if (down_) return absl::UnavailableError("containerd is not there");
    std::vector<std::string> names;
    for (const auto& [name, blobs] : held_) names.push_back(name);
    return names;
  }
  absl::StatusOr<Labels> BlobLabels(const std::string& name_space, const base::Digest& digest) override {
    absl::MutexLock lock(&mutex_);
    ++questions_;
    if (down_) return absl::UnavailableError("containerd is not there");
    auto found = held_[name_space].find(digest);
    if (found == held_[name_space].end()) return absl::NotFoundError("not held");
    return found->second;
  }
  absl::Status Hold(const std::string& name_space, const oci::Descriptor& blob,
                    const Labels& labels) override {
    absl::MutexLock lock(&mutex_);
    ++questions_;
    if (down_) return absl::UnavailableError("containerd is not there");
    held_[name_space][blob.digest] = labels;
    return absl::OkStatus();
  }
  absl::Status Drop(const std::string& name_space, const base::Digest& digest) override {
    absl::MutexLock lock(&mutex_);
    ++questions_;
    if (down_) return absl::UnavailableError("containerd is not there");
    held_[name_space].erase(digest);
    return absl::OkStatus();
  }

 private:
  absl::Mutex mutex_;
  std::map<std::string, std::map<base::Digest, Labels>> held_ ABSL_GUARDED_BY(mutex_);
  bool down_ ABSL_GUARDED_BY(mutex_) = false;
  size_t questions_ ABSL_GUARDED_BY(mutex_) = 0;
};

std::string Config(const std::vector<std::string>& contents) {
  std::vector<std::string> diff_ids;
  for (const std::string& layer : contents) {
    diff_ids.push_back(absl::StrCat("\"", DigestOf("tar of " + layer).ToString(), "\""));
  }
  return absl::StrCat(R"({"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[)",
                      absl::StrJoin(diff_ids, ","), "]}}");
}
std::string Manifest(const std::string& config, const std::vector<std::string>& blobs,
                     const std::string& type = "application/vnd.oci.image.layer.v1.tar+gzip") {
  std::vector<std::string> layers;
  for (const std::string& blob : blobs) {
    layers.push_back(absl::StrCat(R"({"mediaType":")", type, R"(","digest":")", DigestOf(blob).ToString(),
                                  R"(","size":)", blob.size(), R"(,"annotations":{"a":"b"}})"));
  }
  return absl::StrCat(
      R"({"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":)",
      R"({"mediaType":"application/vnd.oci.image.config.v1+json","digest":")", DigestOf(config).ToString(),
      R"(","size":)", config.size(), R"(},"layers":[)", absl::StrJoin(layers, ","), "]}");
}

class LazyBlobsTest : public ::testing::Test {
 protected:
  LazyBlobsTest() { Open(); }
  ~LazyBlobsTest() override { Close(); }

  void Open() {
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("layers");
    auto opened = contentstore::ContentStore::Open(std::move(store));
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
    LearnedBlobsOptions options;
    options.root = directory_.path();
    options.store = store_.get();
    options.namespaces = &namespaces_;
    options.sources = [this](absl::string_view name) -> std::shared_ptr<contentstore::BlobSource> {
      EXPECT_TRUE(absl::StartsWith(name, "registry:registry.test")) << name;
      return source_;
    };
    options.hosts = [this](const std::string&) { return hosts_; };
    options.check = [this](const std::string& reference) {
      absl::MutexLock lock(&mutex_);
      checked_.push_back(reference);
      for (const std::string& host : good_hosts_) {
        if (absl::StartsWith(reference, host + "/")) return absl::OkStatus();
      }
      return absl::NotFoundError("no such manifest");
    };
    options.find_patience = find_patience_;
    options.learn_patience = learn_patience_;
    auto blobs = LearnedBlobs::Open(std::move(options));
    ASSERT_TRUE(blobs.ok()) << blobs.status();
    blobs_ = *std::move(blobs);
    content_.lazy = blobs_.get();
    blobs_->Start(&content_);
  }
  void Close() {
    blobs_.reset();
    store_.reset();
  }
  void Reopen() {
    Close();
    Open();
  }

  // As containerd's clients do: manifest, its labels, then the config.
  base::Digest Commit(const std::string& bytes, const std::string& name_space = "default") {
    const base::Digest digest = content_.Put(bytes);
    blobs_->Committed(digest, bytes.size(), name_space + "/7/some-ref");
    return digest;
  }
  base::Digest Pull(const std::vector<std::string>& layers, const std::string& repository = "app",
                    const std::string& name_space = "default") {
    const std::string config = Config(layers);
    const base::Digest manifest = Commit(Manifest(config, layers), name_space);
    namespaces_.Put(name_space, manifest, {{kLabel, repository}});
    Commit(config, name_space);
    return manifest;
  }
  bool Known(const std::string& layer) { return blobs_->Find(DigestOf(layer)).ok(); }
  bool Listed(const std::string& layer) {
    for (const Info& info : blobs_->Listed()) {
      if (info.digest == DigestOf(layer)) return true;
    }
    return false;
  }
  bool AwaitListed(const std::string& layer) {
    return namespaces_.Await([&](FakeNamespaces&) { return Listed(layer); });
  }
  static base::Digest ChainOf(const std::vector<std::string>& layers) {
    std::vector<base::Digest> diff_ids;
    for (const std::string& layer : layers) diff_ids.push_back(DigestOf("tar of " + layer));
    return ChainIds(diff_ids).back();
  }

  support::TempDir directory_;
  FakeContent content_;
  FakeNamespaces namespaces_;
  std::shared_ptr<support::GatedBlobSource> source_ =
      std::make_shared<support::GatedBlobSource>("registry:registry.test/app");
  std::vector<std::string> hosts_ = {"registry.test"};
  absl::Duration find_patience_ = kPatience;
  absl::Duration learn_patience_ = kPatience;
  absl::Mutex mutex_;
  std::vector<std::string> good_hosts_ ABSL_GUARDED_BY(mutex_) = {"registry.test"};
  std::vector<std::string> checked_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<LearnedBlobs> blobs_;
};

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
  EXPECT_TRUE(Known("layer"));
  EXPECT_EQ(blobs_->WithChain(ChainOf({"layer"}), {}, nullptr).size(), 1u);
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
