#include "exporter/assemble.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "exporter/publish.h"
#include "oci/index_merge.h"
#include "oci/manifest.h"
#include "oci/manifest_writer.h"
#include "tests/support/gate.h"
#include "tests/support/layer_maker.h"
#include "tests/support/test_registry.h"

namespace lazyblob::exporter {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

class AssembleTest : public ::testing::Test {
 protected:
  AssembleTest() {
    registry::ClientOptions options;
    options.plain_http = true;
    options.max_attempts = 1;
    client_ = std::make_unique<registry::Client>(std::move(options));
    indexes_ = std::make_unique<IndexWriter>(client_.get());
    tag_.host = registry_.host();
    tag_.repository = "app";
    tag_.tag = "1";
  }

  static support::Image ImageFor(const std::string& architecture, const std::string& content = "x") {
    support::ImageOptions options;
    options.platform = {"linux", architecture, "", ""};
    return support::MakeImage(
        {support::MakeLayer(support::MakeTar({support::File("a", content)}), oci::Compression::kGzip)},
        options);
  }
  // Puts the image by digest, and returns an index of it.
  Document PutImage(const support::Image& image) {
    registry_.PutImage("app", "", image);
    return IndexOf({image.manifest_descriptor});
  }
  static Document IndexOf(const std::vector<oci::Descriptor>& manifests) {
    Document index;
    index.index = true;
    index.raw = oci::MergePlatforms("", oci::kMediaTypeOciIndex, manifests).value();
    index.descriptor = oci::DescriptorOf(index.raw, oci::kMediaTypeOciIndex);
    return index;
  }
  absl::StatusOr<oci::Descriptor> Append(const Document& index, const registry::CallContext& call = {}) {
    return indexes_->PutPlatforms(tag_, index, /*append=*/true, call);
  }
  std::vector<std::string> There() {
    const std::string raw = registry_.Manifest("app", "1").value_or("{}");
    std::vector<std::string> platforms;
    const auto parsed = oci::ParseManifestOrIndex(raw, std::nullopt, "").value();
    for (const oci::Descriptor& manifest : std::get<oci::Index>(parsed).manifests) {
      platforms.push_back(manifest.platform->ToString());
    }
    return platforms;
  }

  support::TestRegistry registry_;
  std::unique_ptr<registry::Client> client_;
  std::unique_ptr<IndexWriter> indexes_;
  oci::Reference tag_;
};

TEST_F(AssembleTest, ManyWritersOfOneProcessLoseNothing) {
  constexpr int kWriters = 12;
  std::vector<Document> indexes;
  for (int i = 0; i < kWriters; ++i) indexes.push_back(PutImage(ImageFor(absl::StrCat("cpu", i))));
  std::vector<std::thread> writers;
  for (const Document& index : indexes) {
    writers.emplace_back([&] { EXPECT_TRUE(Append(index).ok()); });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_THAT(There(), SizeIs(kWriters));
  // One at a time: none had to repeat its PUT.
  EXPECT_EQ(registry_.Count({.method = "PUT", .path_contains = "/manifests/1"}), kWriters);
}

TEST_F(AssembleTest, WhatIsThereAlreadyIsNotPutAgain) {
  const Document index = PutImage(ImageFor("amd64"));
  const auto first = Append(index);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(Append(index)->digest, first->digest);
  EXPECT_EQ(registry_.Count({.method = "PUT"}), 1U);
}

TEST_F(AssembleTest, AWriterInBetweenIsFoundAndJoined) {
  ASSERT_TRUE(Append(PutImage(ImageFor("amd64"))).ok());
  const Document ours = PutImage(ImageFor("arm64"));
  const support::Image other = ImageFor("s390x");
  PutImage(other);
  auto gate = std::make_shared<support::Gate>();
  registry_.AddFault({.method = "HEAD", .path_contains = "/manifests/1", .count = 1}, {.gate = gate});
  std::thread theirs([&] {
    // While ours looks at what it has put.
    ASSERT_TRUE(registry_.AwaitRequests({.method = "HEAD", .path_contains = "/manifests/1"}, 2));
    registry_.PutManifest("app", "1",
                          IndexOf({ImageFor("amd64").manifest_descriptor, other.manifest_descriptor}).raw,
                          oci::kMediaTypeOciIndex);
    gate->Open();
  });
  const auto merged = Append(ours);
  theirs.join();
  ASSERT_TRUE(merged.ok()) << merged.status();
  EXPECT_THAT(There(), UnorderedElementsAre("linux/amd64", "linux/arm64", "linux/s390x"));
}

TEST_F(AssembleTest, WithoutAppendAWriterInBetweenIsAnError) {
  const Document ours = PutImage(ImageFor("amd64"));
  const Document theirs = PutImage(ImageFor("arm64"));
  auto gate = std::make_shared<support::Gate>();
  registry_.AddFault({.method = "HEAD", .path_contains = "/manifests/1"}, {.gate = gate});
  std::thread other([&] {
    ASSERT_TRUE(registry_.AwaitRequests({.method = "HEAD", .path_contains = "/manifests/1"}, 1));
    registry_.PutManifest("app", "1", theirs.raw, oci::kMediaTypeOciIndex);
    gate->Open();
  });
  const absl::Status status = indexes_->PutPlatforms(tag_, ours, /*append=*/false, {}).status();
  other.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(tag_.ToString()));
}

TEST_F(AssembleTest, WithoutAppendNothingStays) {
  ASSERT_TRUE(Append(PutImage(ImageFor("amd64"))).ok());
  ASSERT_TRUE(indexes_->PutPlatforms(tag_, PutImage(ImageFor("arm64")), /*append=*/false, {}).ok());
  EXPECT_THAT(There(), ElementsAre("linux/arm64"));
}

TEST_F(AssembleTest, AnImageThatIsThereGetsTheOthersBesideIt) {
  registry_.PutImage("app", "1", ImageFor("amd64"));
  ASSERT_TRUE(Append(PutImage(ImageFor("arm64"))).ok());
  EXPECT_THAT(There(), ElementsAre("linux/amd64", "linux/arm64"));
}

TEST_F(AssembleTest, WhoWaitsForItsTurnCanBeCancelled) {
  auto gate = std::make_shared<support::Gate>();
  registry_.AddFault({.method = "PUT", .path_contains = "/manifests/1", .count = 1}, {.gate = gate});
  const Document first = PutImage(ImageFor("amd64"));
  const Document second = PutImage(ImageFor("arm64"));
  std::thread holder([&] { EXPECT_TRUE(Append(first).ok()); });
  ASSERT_TRUE(registry_.AwaitRequests({.method = "PUT", .path_contains = "/manifests/1"}, 1));
  registry::CallContext call;
  call.cancel = std::make_shared<base::CancelToken>();
  absl::Status status;
  std::thread waiter([&] { status = Append(second, call).status(); });
  call.cancel->Cancel();
  waiter.join();
  gate->Open();
  holder.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(There(), ElementsAre("linux/amd64"));
}

TEST_F(AssembleTest, ReferrersAreListedOnceWhoeverKeepsTheList) {
  for (const bool api : {true, false}) {
    const support::Image subject = ImageFor("amd64", api ? "with" : "without");  // never pushed
    registry_.SetReferrersApi(api);
    const PutDocument put = MakePutDocument(client_.get());
    std::vector<Document> documents;
    for (int i = 0; i < 8; ++i) {
      support::ImageOptions options;
      options.artifact_type = "application/test";
      options.subject = subject.manifest_descriptor;
      options.annotations = {{"n", absl::StrCat(i, api)}};
      const support::Image referrer = support::MakeImage({}, options);
      registry_.PutBlob("app", referrer.config);
      documents.push_back({referrer.manifest_descriptor, referrer.manifest, false, {}});
    }
    std::vector<std::thread> writers;
    for (const Document& document : documents) {
      writers.emplace_back([&] {
        oci::Reference reference = tag_;
        reference.digest = document.descriptor.digest;
        for (int twice = 0; twice < 2; ++twice) EXPECT_EQ(put(reference, document, {}), absl::OkStatus());
      });
    }
    for (std::thread& writer : writers) writer.join();
    registry::ClientOptions anew;
    anew.plain_http = true;
    registry::Client fresh(anew);
    const auto found = fresh.Referrers(tag_, subject.manifest_descriptor.digest, "application/test", {});
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_THAT(*found, SizeIs(8)) << api;
    const std::string tag = "sha256-" + std::string(subject.manifest_descriptor.digest.hex());
    EXPECT_EQ(registry_.Manifest("app", tag).has_value(), !api);
  }
}

// A content of one document that lies in memory.
Content ContentOf(const support::Image& image) {
  Content content;
  content.name = "registry/" + image.manifest_descriptor.platform->ToString();
  content.documents.push_back({image.manifest_descriptor, image.manifest, false, {}});
  content.documents[0].descriptor.platform.reset();
  content.blobs.push_back(
      {MakeMemoryBlob(image.config, image.config_descriptor.media_type), image.config_descriptor, "", false});
  return content;
}

absl::StatusOr<Content> Join(const std::vector<support::Image>& images,
                             const std::vector<std::string>& platforms, v1::IndexMode mode = v1::INDEX_NEW) {
  v1::ExportRequest request;
  request.set_index(mode);
  std::vector<Content> contents;
  for (size_t i = 0; i < images.size(); ++i) {
    request.add_images()->set_platform(platforms[i]);
    contents.push_back(ContentOf(images[i]));
  }
  contentstore::FetchContext context;
  context.cancel = std::make_shared<base::CancelToken>();
  return JoinPlatforms(std::move(contents), request, context);
}

support::Image Bare(const std::string& architecture, const std::string& command = "a") {
  support::ImageOptions options;
  options.platform = {"linux", architecture, "", ""};
  options.command = {command};
  return support::MakeImage({}, options);
}

TEST(JoinPlatforms, AnImageAloneStaysItselfUnlessAnIndexIsWanted) {
  const support::Image image = Bare("amd64");
  EXPECT_FALSE(Join({image}, {""}, v1::INDEX_UNSPECIFIED)->top().index);
  const absl::StatusOr<Content> index = Join({image}, {""});
  ASSERT_TRUE(index.ok()) << index.status();
  ASSERT_TRUE(index->top().index);
  EXPECT_EQ(ListedIn(index->top()).value()[0].platform->ToString(), "linux/amd64") << "as its config says";
}

TEST(JoinPlatforms, ThePlatformThatIsNamedMustBeTheImages) {
  const absl::Status refused = Join({Bare("amd64")}, {"linux/arm64"}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("linux/amd64"));
  EXPECT_TRUE(Join({Bare("arm64")}, {"linux/arm64/v8"}).ok());
}

TEST(JoinPlatforms, TwoOfOnePlatformAreRefused) {
  EXPECT_TRUE(Join({Bare("amd64"), Bare("arm64"), Bare("amd64")}, {"", "", ""}).ok()) << "the same twice";
  const absl::Status refused = Join({Bare("amd64"), Bare("amd64", "b")}, {"", ""}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("linux/amd64"));
}

}  // namespace
}  // namespace lazyblob::exporter
