// Layers whose Prepare says by label where else their bytes are.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "base/file.h"
#include "daemon/recorded_sources.h"
#include "daemon/snapshot_layers.h"
#include "snapshotter/labels.h"
#include "tests/layer/toc_maker.h"
#include "tests/support/fake_mounter.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"
#include "tests/support/tls_front.h"

namespace lazyblob::daemon {
namespace {

using support::Directory;
using support::File;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr uint64_t kFileBytes = 1 << 20;
constexpr uint64_t kPage = 4096;

class ClaimedUrlsTest : public ::testing::Test {
 protected:
  ClaimedUrlsTest() {
    signal(SIGPIPE, SIG_IGN);
    std::vector<support::TarMember> members = {Directory(".")};
    for (uint64_t i = 0; i < 4; ++i) {
      files_.push_back(support::RandomBytes(kFileBytes, i));
      members.push_back(File(absl::StrCat("f", i), files_.back()));
    }
    const layer::TocBlob made = layer::MakeTocBlob(members);
    toc_offset_ = made.toc_offset;
    lazy_ = support::MakeLayerOf(support::MakeTar(members), made.blob, oci::Compression::kGzip,
                                 made.layer.annotations);
    plain_ = support::MakeLayer(support::MakeTar(members), oci::Compression::kGzip);
    Put(lazy_);
    for (const support::Layer& layer : {lazy_, plain_}) mirror_.PutBlob("m", layer.blob);
    url_hosts_ = {front_.host()};
    Start();
  }

  void Start() {
    snapshots_.reset();
    prepared_.reset();
    layers_.reset();
    store_.reset();
    registry::ClientOptions client;
    client.plain_http_hosts = {registry_.host()};
    client.ca_file = front_.ca_file();
    client.max_attempts = 1;
    client_ = std::make_unique<registry::Client>(std::move(client));
    contentstore::ContentStoreOptions store;
    store.root = directory_.File("store");
    store.min_range_bytes = store.max_range_bytes = 64 << 10;
    store.source_factory = RecordedSources(client_.get(), url_hosts_);
    store.log = [](absl::string_view) {};
    store_ = contentstore::ContentStore::Open(std::move(store)).value();
    ImageLayers::Parts parts;
    parts.root = directory_.path();
    parts.client = client_.get();
    parts.store = store_.get();
    parts.mounter = &mounter_;
    parts.reads = {[](const base::Digest&) {}, [](const base::Digest&) {}};
    parts.plain_http = &plain_http_;
    layers_ = std::make_unique<ImageLayers>(parts);
    prepared_ = std::make_unique<PreparedImages>(layers_.get(), PreparedImagesOptions());
    SnapshotLayers::Options options;
    options.url_hosts = url_hosts_;
    options.log = [this](absl::string_view line) { log_.emplace_back(line); };
    snapshots_ = std::make_unique<SnapshotLayers>(layers_.get(), prepared_.get(), options);
  }

  void Put(const support::Layer& layer) {
    support::ImageOptions host;
    host.platform = oci::HostPlatform();
    image_ = support::MakeImage({layer}, host);
    registry_.PutImage("test/image", "latest", image_);
  }
  void BreakRegistry() { registry_.AddFault({.path_contains = "/blobs/" + Digest()}, {.status = 503}); }

  std::string Digest() const { return image_.layers[0].descriptor.digest.ToString(); }
  std::string Url() const { return absl::StrCat("https://", front_.host(), "/v2/m/blobs/", Digest()); }

  // As a client's Prepare says it.
  std::string Mount(absl::string_view urls) {
    auto claim = snapshotter::ParseClaim(
        {{snapshotter::kLabelSnapshotRef, "x"},
         {snapshotter::kLabelStargzReference, registry_.host() + "/test/image:latest"},
         {snapshotter::kLabelStargzDigest, Digest()},
         {snapshotter::kLabelUrls, std::string(urls)}});
    auto mounted = snapshots_->Mount(**claim, {}, std::make_shared<base::CancelToken>());
    return mounted.ok() ? "mounted" : snapshotter::NotLazyReason(mounted.status());
  }
  absl::StatusOr<std::string> Read(uint64_t offset) {
    absl::Notification done;
    absl::StatusOr<std::string> result;
    store_->Find(image_.layers[0].descriptor.digest)
        ->Acquire(offset, kPage, {}, [&](absl::StatusOr<contentstore::PinnedRange> range) {
          if (range.ok()) {
            std::vector<uint8_t> bytes(kPage);
            const absl::Status copied = range->CopyTo(absl::MakeSpan(bytes));
            result =
                copied.ok() ? absl::StatusOr<std::string>(std::string(bytes.begin(), bytes.end())) : copied;
          } else {
            result = range.status();
          }
          done.Notify();
        });
    done.WaitForNotification();
    return result;
  }
  std::string LastSource() { return store_->Find(image_.layers[0].descriptor.digest)->stats().last_source; }
  std::string Page(size_t file) const { return files_[file].substr(0, kPage); }

  support::TempDir directory_;
  support::TestRegistry registry_;
  support::TestRegistry mirror_;
  support::TlsFront front_{mirror_.port(), directory_.path()};
  std::vector<std::string> files_;
  uint64_t toc_offset_ = 0;
  support::Layer lazy_;
  support::Layer plain_;
  support::Image image_;
  std::vector<std::string> url_hosts_;
  std::vector<std::string> log_;
  support::FakeMounter mounter_;
  PlainHttpHosts plain_http_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<contentstore::ContentStore> store_;
  std::unique_ptr<ImageLayers> layers_;
  std::unique_ptr<PreparedImages> prepared_;
  std::unique_ptr<SnapshotLayers> snapshots_;
};

TEST_F(ClaimedUrlsTest, TheRegistryIsAskedFirst) {
  EXPECT_EQ(Mount(Url()), "mounted");
  ASSERT_EQ(Read(0).value(), Page(0));
  EXPECT_THAT(mirror_.Log(), IsEmpty());
  EXPECT_THAT(log_, IsEmpty());
}

TEST_F(ClaimedUrlsTest, AUrlServesWhatTheRegistryDoesNot) {
  // Where the second file lies: a table of contents packs contents, a tar has headers of 512 bytes between
  // them.
  const std::vector<std::pair<support::Layer, uint64_t>> cases = {{lazy_, kFileBytes},
                                                                  {plain_, kFileBytes + 1536}};
  for (const auto& [layer, second] : cases) {
    Put(layer);
    BreakRegistry();
    EXPECT_EQ(Mount(Url()), "mounted") << Digest();
    EXPECT_TRUE(Read(second).value() == Page(1)) << Digest();
    EXPECT_EQ(LastSource(), "url:" + Url());
  }
  EXPECT_FALSE(mirror_.Log().empty());
  for (const support::LoggedRequest& request : mirror_.Log()) EXPECT_EQ(request.authorization, "");
  EXPECT_THAT(log_, IsEmpty());
}

TEST_F(ClaimedUrlsTest, WhatIsNotAllowedIsNotAskedAndToldOnce) {
  const std::string path = "/v2/m/blobs/" + Digest();
  const std::vector<std::string> urls = {absl::StrCat("http://", front_.host(), path),
                                         absl::StrCat("http://", mirror_.host(), path),
                                         absl::StrCat("https://localhost:", front_.host().substr(10), path),
                                         absl::StrCat("https://me:pw@", front_.host(), path),
                                         Url() + "?sig=1",
                                         "file:///etc/passwd"};
  BreakRegistry();
  EXPECT_EQ(Mount(absl::StrJoin(urls, ",")), "index-failed");
  EXPECT_THAT(mirror_.Log(), IsEmpty());
  EXPECT_THAT(log_, ElementsAre(HasSubstr(Digest() + ": 6 of 6 URLs")));
  EXPECT_THAT(log_[0], HasSubstr("snapshotter.url_hosts"));
  // Without configuration there are none.
  url_hosts_.clear();
  Start();
  EXPECT_EQ(Mount(Url()), "index-failed");
  EXPECT_THAT(mirror_.Log(), IsEmpty());
}

TEST_F(ClaimedUrlsTest, AFewAreEnough) {
  std::vector<std::string> urls;
  for (int i = 0; i < 20; ++i) urls.push_back(absl::StrCat("https://", front_.host(), "/", i));
  BreakRegistry();
  EXPECT_EQ(Mount(absl::StrJoin(urls, ",")), "index-failed");
  EXPECT_THAT(log_, ElementsAre(HasSubstr(": 12 of 20 URLs")));
  EXPECT_EQ(mirror_.Count({.path_regex = "^/7$"}) > 0, true);
  EXPECT_EQ(mirror_.Count({.path_regex = "^/8$"}), 0u);
}

TEST_F(ClaimedUrlsTest, WrongBytesAreNeverServed) {
  ASSERT_EQ(Mount(Url()), "mounted");
  BreakRegistry();
  ASSERT_EQ(Read(0).value(), Page(0));
  ASSERT_EQ(LastSource(), "url:" + Url());  // and is asked first from now on
  mirror_.AddFault({}, {.flip_bit_of_byte = toc_offset_ - kFileBytes / 2});
  const absl::Status wrong = Read(3 * kFileBytes).status();
  EXPECT_TRUE(absl::IsUnavailable(wrong) || absl::IsDataLoss(wrong)) << wrong;
  EXPECT_GT(mirror_.Count({}), 1u);
  registry_.ClearFaults();
  mirror_.ClearLog();
  const absl::StatusOr<std::string> right = Read(3 * kFileBytes);
  ASSERT_TRUE(right.ok()) << right.status();
  EXPECT_EQ(*right, Page(3));
  EXPECT_EQ(LastSource(), absl::StrCat("registry:", registry_.host(), "/test/image"));
}

TEST_F(ClaimedUrlsTest, AForgedBlobIsNoLayer) {
  Put(plain_);
  BreakRegistry();
  mirror_.AddFault({}, {.flip_bit_of_byte = plain_.blob.size() / 2});
  EXPECT_NE(Mount(Url()), "mounted");
  EXPECT_THAT(mounter_.layers, IsEmpty());
}

TEST_F(ClaimedUrlsTest, ARestartedDaemonHasTheUrlWhileItIsConfigured) {
  ASSERT_EQ(Mount(Url()), "mounted");
  BreakRegistry();
  Start();
  EXPECT_EQ(Read(0).value(), Page(0));
  EXPECT_EQ(LastSource(), "url:" + Url());
  url_hosts_ = {"cdn.example"};
  mirror_.ClearLog();
  Start();
  EXPECT_EQ(Read(0).value(), Page(0));  // kept
  EXPECT_FALSE(Read(3 * kFileBytes).ok());
  EXPECT_THAT(mirror_.Log(), IsEmpty());
}

TEST(RecordedSourcesTest, MakeWhatTheNamesSay) {
  registry::Client client{registry::ClientOptions()};
  const contentstore::SourceFactory make = RecordedSources(&client, {"cdn.example"});
  for (const char* name : {"registry:localhost:5000/debian", "layout:/path", "url:https://cdn.example/a"}) {
    auto source = make(name);
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_EQ((*source)->name(), name);
  }
  for (const char* name : {"url:https://other.example/a", "url:http://cdn.example/a", "url:", "ipfs:x", ""}) {
    EXPECT_TRUE(absl::IsNotFound(make(name).status())) << name;
  }
}

}  // namespace
}  // namespace lazyblob::daemon
