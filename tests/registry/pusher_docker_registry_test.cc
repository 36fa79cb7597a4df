// Pushing to Debian's docker-registry, judged by its access log and by skopeo.

#include <gtest/gtest.h>

#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "oci/manifest.h"
#include "tests/registry/pusher_fixture.h"
#include "tests/registry/real_registry.h"
#include "tests/support/eventually.h"

namespace lazyblob::registry {
namespace {

constexpr size_t kChunk = 2 << 20;

class PusherDockerRegistryTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* program : {"docker-registry", "skopeo"}) {
      if (!RealRegistry::Installed(program))
        GTEST_SKIP() << program << " is not installed (see deploy/install-deps.sh)";
    }
    ASSERT_TRUE(registry_.Start()) << registry_.Log();
    ClientOptions options;
    options.plain_http = true;
    client_ = std::make_unique<Client>(options);
    pusher_ = std::make_unique<Pusher>(client_.get());
  }

  oci::Reference At(const std::string& repository, const std::string& tag = "") const {
    oci::Reference reference;
    reference.host = registry_.host();
    reference.repository = repository;
    if (!tag.empty()) reference.tag = tag;
    return reference;
  }
  static oci::Descriptor Describe(const std::string& bytes) {
    oci::Descriptor descriptor;
    descriptor.digest = base::Digest::Of(bytes);
    descriptor.size = bytes.size();
    return descriptor;
  }
  absl::Status PutWhole(const std::string& repository, const std::string& bytes, size_t fail_at = SIZE_MAX,
                        UploadSession* used = nullptr) {
    absl::StatusOr<UploadSession> session = pusher_->Start(At(repository), {});
    if (!session.ok()) return session.status();
    if (used != nullptr) *used = *session;
    size_t at = 0;
    auto source = [&](absl::Span<uint8_t> out) -> absl::StatusOr<size_t> {
      if (at >= fail_at) return absl::AbortedError("the source broke");
      size_t count = std::min(out.size(), bytes.size() - at);
      memcpy(out.data(), bytes.data() + at, count);
      at += count;
      return count;
    };
    return pusher_->PutWhole(At(repository), *session, Describe(bytes), source, {});
  }
  absl::Status PatchRest(const std::string& bytes, UploadSession* session) {
    while (session->offset < bytes.size()) {
      absl::string_view piece = absl::string_view(bytes).substr(session->offset, kChunk);
      if (absl::Status status = pusher_->Patch(At("app"), session, Bytes(piece), {}); !status.ok())
        return status;
    }
    return absl::OkStatus();
  }
  // skopeo reads and verifies every blob of it.
  bool SkopeoCopies(const std::string& image) {
    return system(absl::StrCat("skopeo --insecure-policy copy -q --preserve-digests --src-tls-verify=false ",
                               "docker://", registry_.host(), "/", image, " oci:", directory_.File("copy"),
                               ":x")
                      .c_str()) == 0;
  }

  RealRegistry registry_;
  support::TempDir directory_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<Pusher> pusher_;
};

TEST_F(PusherDockerRegistryTest, SkopeoReadsWhatWasPushedWholeInChunksAndByMount) {
  // A layer of 5 MiB in chunks, one of 3 MiB whole, the config small.
  std::vector<std::string> layers = {Noise(5 << 20), Noise(3 << 20)};
  std::string config = R"({"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[)";
  std::string manifest =
      absl::StrCat(R"({"schemaVersion":2,"mediaType":")", oci::kMediaTypeOciManifest, "\"");
  std::string listed;
  for (const std::string& layer : layers) {
    absl::StrAppend(&config, listed.empty() ? "" : ",", "\"", base::Digest::Of(layer).ToString(), "\"");
    absl::StrAppend(&listed, listed.empty() ? "" : ",",
                    R"({"mediaType":"application/vnd.oci.image.layer.v1.tar","size":)", layer.size(),
                    R"(,"digest":")", base::Digest::Of(layer).ToString(), "\"}");
  }
  absl::StrAppend(&config, "]}}");
  absl::StrAppend(&manifest, R"(,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":)",
                  config.size(), R"(,"digest":")", base::Digest::Of(config).ToString(), R"("},"layers":[)",
                  listed, "]}");
  absl::Status early =
      pusher_->PutManifest(At("app", "1"), oci::kMediaTypeOciManifest, manifest, {}).status();
  ASSERT_TRUE(RefusalOf(early)) << early;
  EXPECT_EQ(RefusalOf(early)->code, "MANIFEST_BLOB_UNKNOWN");
  EXPECT_EQ(RefusalOf(early)->digests.size(), 3u) << "all that are missing";

  absl::StatusOr<UploadSession> session = pusher_->Start(At("app"), {});
  ASSERT_TRUE(session.ok()) << session.status();
  absl::Status patched = PatchRest(layers[0], &*session);
  ASSERT_TRUE(patched.ok()) << patched;
  ASSERT_TRUE(pusher_->Commit(At("app"), *session, base::Digest::Of(layers[0]), {}).ok());
  absl::Status put = PutWhole("app", layers[1]);
  ASSERT_TRUE(put.ok()) << put;
  ASSERT_TRUE(PutWhole("app", config).ok());
  auto pushed = pusher_->PutManifest(At("app", "1"), oci::kMediaTypeOciManifest, manifest, {});
  ASSERT_TRUE(pushed.ok()) << pushed.status();
  EXPECT_EQ(pushed->digest, base::Digest::Of(manifest));
  EXPECT_FALSE(pushed->subject_indexed);
  EXPECT_TRUE(SkopeoCopies("app:1"));
  EXPECT_EQ(registry_.Logged({"\"PATCH /v2/app/blobs/uploads/", "\" 202 "}), 3u);

  // Another repository of the same registry: no byte of a blob is sent.
  for (const std::string& blob : {layers[0], layers[1], config}) {
    auto mounted = pusher_->Mount(At("copy/of"), base::Digest::Of(blob), "app", {});
    ASSERT_TRUE(mounted.ok()) << mounted.status();
    EXPECT_FALSE(*mounted);
  }
  ASSERT_TRUE(pusher_->PutManifest(At("copy/of", "2"), oci::kMediaTypeOciManifest, manifest, {}).ok());
  EXPECT_TRUE(SkopeoCopies("copy/of:2"));
  EXPECT_EQ(registry_.Logged({"\"POST /v2/copy/of/blobs/uploads/?mount=", "\" 201 "}), 3u);
  EXPECT_EQ(registry_.Logged({"/v2/copy/of/blobs/uploads/"}), 3u);
  auto absent = pusher_->Mount(At("copy/of"), base::Digest::Of("nowhere"), "app", {});
  ASSERT_TRUE(absent.ok() && *absent) << absent.status();
  EXPECT_TRUE(absl::StrContains((*absent)->location, "_state="));
}

TEST_F(PusherDockerRegistryTest, SessionsAreTakenUpAgainBetweenChunksEvenByAnotherClient) {
  std::string bytes = Noise(7 << 20);
  absl::StatusOr<UploadSession> session = pusher_->Start(At("app"), {});
  ASSERT_TRUE(session.ok());
  UploadSession stale = *session;
  ASSERT_TRUE(pusher_->Query(At("app"), &*session, {}).ok());
  EXPECT_EQ(session->offset, 0u);
  absl::string_view view = bytes;
  ASSERT_TRUE(pusher_->Patch(At("app"), &*session, Bytes(view.substr(0, kChunk)), {}).ok());
  absl::Status refused = pusher_->Patch(At("app"), &stale, Bytes(view.substr(0, kChunk)), {});
  // Version 2.8 knows no way back from an old Location; version 3 has one, by GET.
  EXPECT_EQ(refused.code(), absl::StatusCode::kNotFound) << refused;
  EXPECT_EQ(RefusalOf(refused)->code, "BLOB_UPLOAD_INVALID");
  registry_.Stop();
  ASSERT_TRUE(registry_.Start()) << registry_.Log();
  ClientOptions options;
  options.plain_http = true;
  Client other(options);
  Pusher resumed(&other);
  UploadSession kept{session->location, 0, 0};
  absl::Status queried = resumed.Query(At("app"), &kept, {});
  ASSERT_TRUE(queried.ok()) << queried;
  EXPECT_EQ(kept.offset, kChunk);
  ASSERT_TRUE(PatchRest(bytes, &kept).ok());
  ASSERT_TRUE(resumed.Commit(At("app"), kept, base::Digest::Of(bytes), {}).ok());
  EXPECT_EQ(*other.HeadBlob(At("app"), base::Digest::Of(bytes), {}), bytes.size());
  EXPECT_EQ(registry_.Logged({"\"PATCH "}), 5u) << "four chunks and one refusal";
}

TEST_F(PusherDockerRegistryTest, WhatBreaksOffLeavesNoBlob) {
  std::string bytes = Noise(4 << 20);
  UploadSession broken;
  EXPECT_EQ(PutWhole("app", bytes, 3 << 20, &broken), absl::AbortedError("the source broke"));
  // Once the registry has noticed, the session is of no use: its state is not that of the Location.
  ASSERT_TRUE(support::Eventually([&] {
    poll(nullptr, 0, 10);
    return registry_.Logged({"\"PUT /v2/app/blobs/uploads/"}) > 0;
  }));
  absl::Status gone = pusher_->Query(At("app"), &broken, {});
  EXPECT_EQ(gone.code(), absl::StatusCode::kNotFound) << gone << " at " << broken.offset;
  EXPECT_EQ(client_->HeadBlob(At("app"), base::Digest::Of(bytes), {}).status().code(),
            absl::StatusCode::kNotFound);
  absl::StatusOr<UploadSession> session = pusher_->Start(At("app"), {});
  ASSERT_TRUE(session.ok());
  ASSERT_TRUE(PatchRest(bytes, &*session).ok());
  absl::Status wrong = pusher_->Commit(At("app"), *session, base::Digest::Of("other"), {});
  EXPECT_EQ(wrong.code(), absl::StatusCode::kDataLoss) << wrong;
  session = pusher_->Start(At("app"), {});
  ASSERT_TRUE(session.ok());
  pusher_->Cancel(At("app"), *session, {});
  EXPECT_EQ(pusher_->Query(At("app"), &*session, {}).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(PutWhole("app", bytes).ok());
  EXPECT_TRUE(PutWhole("app", bytes).ok()) << "again";
}

}  // namespace
}  // namespace lazyblob::registry
