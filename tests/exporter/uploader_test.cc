// How uploads go wrong, and right again: over registries in memory, and over HTTP against one with the habits
// of other people's.

#include "exporter/uploader.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/fault.h"
#include "base/file.h"
#include "registry/client.h"
#include "tests/exporter/placer_fixture.h"
#include "tests/registry/real_registry.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_registry.h"

namespace lazyblob::exporter {
namespace {

using support::RandomBytes;

class UploaderTest : public PlacerFixture {
 protected:
  // Cuts the body of the `number`th step of that name after `bytes`.
  void CutOnce(const std::string& operation, int number, uint64_t bytes) {
    registries.cut =
        [=, seen = std::make_shared<std::atomic<int>>(0)](const FakeStep& step) -> std::optional<uint64_t> {
      if (step.operation != operation || ++*seen != number) return std::nullopt;
      return bytes;
    };
  }
  void ExpectUploaded(const std::shared_ptr<TestBlob>& blob) {
    const auto result = placer().Place(Request(blob, app));
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(*result, PlacementState::kUploaded);
    EXPECT_TRUE(registries.Has(app, blob->digest()));
    EXPECT_EQ(registries.open_sessions(), 0U);
  }
};

TEST_F(UploaderTest, SmallIsOnePutLargeIsChunks) {
  ExpectUploaded(NewBlob(9'000, 1));
  EXPECT_EQ(registries.Count("put"), 1U);
  ExpectUploaded(NewBlob(45'000, 2));
  EXPECT_EQ(registries.Count("patch"), 5U);
  EXPECT_EQ(registries.Count("commit"), 1U);
  const auto local = NewBlob(25'000, 3);
  local->is_local = true;
  ExpectUploaded(local);
  EXPECT_EQ(registries.Count("put"), 2U);
}

TEST_F(UploaderTest, S24_ACutPatchGoesOnFromWhatTheRegistryHas) {
  CutOnce("patch", 3, 6'000);
  ExpectUploaded(NewBlob(45'000));
  EXPECT_EQ(registries.body_bytes(), 45'000U);
  EXPECT_EQ(registries.Count("query"), 1U);
}

TEST_F(UploaderTest, S24_ACutPatchOfARegistryThatForgetsStartsAgain) {
  registries.hosts[app.host].forgets_broken_sessions = true;
  CutOnce("patch", 3, 6'000);
  ExpectUploaded(NewBlob(45'000));
  EXPECT_EQ(registries.body_bytes(), 26'000U + 45'000U);
}

TEST_F(UploaderTest, S24_ACutPutGoesOnInChunks) {
  CutOnce("put", 1, 5'000);
  const auto blob = NewBlob(25'000);
  blob->is_local = true;
  ExpectUploaded(blob);
  EXPECT_EQ(registries.body_bytes(), 25'000U);
}

TEST_F(UploaderTest, S24_ACutPutOfARegistryThatForgetsStartsAgain) {
  registries.hosts[app.host].forgets_broken_sessions = true;
  CutOnce("put", 1, 5'000);
  const auto blob = NewBlob(25'000);
  blob->is_local = true;
  ExpectUploaded(blob);
}

TEST_F(UploaderTest, S24_WithoutChunksThereIsOnePutAndThatIsRemembered) {
  registries.hosts[app.host].chunks = false;
  ExpectUploaded(NewBlob(45'000, 1));
  EXPECT_EQ(registries.Count("patch"), 1U);
  ExpectUploaded(NewBlob(45'000, 2));
  EXPECT_EQ(registries.Count("patch"), 1U);
  EXPECT_EQ(registries.Count("put"), 2U);
}

TEST_F(UploaderTest, S24_ARegistryThatDropsChunksGetsOnePut) {
  registries.hosts[app.host].drops_second_chunk = true;
  ExpectUploaded(NewBlob(45'000));
  EXPECT_EQ(registries.Count("put"), 1U);
}

TEST_F(UploaderTest, S24_ChunksAreAsLargeAsTheRegistryWants) {
  registries.hosts[app.host].min_chunk = 15'000;
  ExpectUploaded(NewBlob(45'001));
  for (const FakeStep& step : registries.steps()) {
    EXPECT_TRUE(step.operation != "patch" || step.bytes >= 14'000U) << step.bytes;
  }
  EXPECT_EQ(registries.Count("patch"), 3U);
}

TEST_F(UploaderTest, S25_TheLoserOfARaceHasWon) {
  const auto blob = NewBlob(45'000);
  registries.before = [&](const FakeStep& step) -> absl::Status {
    if (step.operation != "commit") return absl::OkStatus();
    registries.Put(app, RandomBytes(45'000, 1));
    return FakeRegistries::Refused(400, "cannot be updated");
  };
  const auto result = placer().Place(Request(blob, app));
  EXPECT_TRUE(result.ok()) << result.status();
}

TEST_F(UploaderTest, AFailureThatStaysEndsTheUploadAndNamesIt) {
  registries.before = [&](const FakeStep& step) -> absl::Status {
    return step.operation == "patch" ? FakeRegistries::Refused(503, "overloaded") : absl::OkStatus();
  };
  const auto blob = NewBlob(45'000);
  const auto result = placer().Place(Request(blob, app));
  EXPECT_TRUE(absl::IsUnavailable(result.status())) << result.status();
  EXPECT_EQ(registries.Count("patch"), 6U);
  EXPECT_EQ(registries.open_sessions(), 0U);
}

TEST_F(UploaderTest, AJournaledSessionIsTakenUpByTheNextProcess) {
  const support::TempDir directory;
  options.journal = directory.File("sessions");
  const auto blob = NewBlob(95'000);
  std::atomic<int> patches = 0;
  registries.before = [&](const FakeStep& step) -> absl::Status {
    if (step.operation == "patch" && ++patches > 6) return absl::UnavailableError("gone");
    if (step.operation == "query" && patches > 6) return absl::UnavailableError("gone");
    return absl::OkStatus();
  };
  EXPECT_FALSE(placer().Place(Request(blob, app)).ok());
  EXPECT_EQ(registries.body_bytes(), 60'000U);
  EXPECT_EQ(registries.open_sessions(), 1U);
  Restart();
  registries.before = nullptr;
  blob->bytes_read = 0;
  ExpectUploaded(blob);
  EXPECT_EQ(registries.body_bytes(), 95'000U);
  EXPECT_LE(blob->bytes_read, 36'000U);
  EXPECT_TRUE(base::ListDirectory(options.journal).value().empty());
}

TEST_F(UploaderTest, WhatTheEndOfTheProcessCancelsIsTakenUpByTheNextOne) {
  const support::TempDir directory;
  options.journal = directory.File("sessions");
  const auto blob = NewBlob(95'000);
  PlaceRequest request = Request(blob, app);
  request.cancel = std::make_shared<base::CancelToken>();
  std::atomic<int> patches = 0;
  registries.before = [&](const FakeStep& step) -> absl::Status {
    if (step.operation != "patch" || ++patches <= 6) return absl::OkStatus();
    request.cancel->Cancel();
    return absl::CancelledError("cancelled");
  };
  placer().KeepSessions();
  EXPECT_TRUE(absl::IsCancelled(placer().Place(request).status()));
  Restart();
  EXPECT_EQ(registries.open_sessions(), 1U);
  registries.before = nullptr;
  ExpectUploaded(blob);
  EXPECT_EQ(registries.body_bytes(), 95'000U);
  EXPECT_TRUE(base::ListDirectory(options.journal).value().empty());
}

// Over HTTP.

constexpr size_t kBlobBytes = 10'000'000;

class PlainCredentials final : public registry::CredentialsProvider {
  absl::StatusOr<std::optional<registry::Credentials>> Lookup(absl::string_view) const override {
    return std::optional(registry::Credentials{"user", "secret", "", ""});
  }
};

struct HttpPlacer {
  explicit HttpPlacer(const std::string& journal) {
    registry::ClientOptions client_options;
    client_options.plain_http = true;
    client_options.first_backoff = absl::Milliseconds(5);
    client_options.credentials = std::make_shared<PlainCredentials>();
    client = std::make_unique<registry::Client>(client_options);
    PlacerOptions options;
    options.client = client.get();
    options.journal = journal;
    options.chunk_bytes = 1 << 20;
    options.monolithic_bytes = 2 << 20;
    placer = Placer::Create(options).value();
  }
  absl::StatusOr<PlacementState> Place(const std::shared_ptr<Blob>& blob, const oci::Reference& where) {
    PlaceRequest request;
    request.blob = blob;
    request.repository = where;
    return placer->Place(request);
  }
  std::unique_ptr<registry::Client> client;
  std::unique_ptr<Placer> placer;
};

class PersonalityTest : public testing::TestWithParam<const char*> {};

TEST_P(PersonalityTest, S24_S25_BlobsArriveInTwoRepositoriesWhateverBreaks) {
  support::UploadOptions uploads;
  support::AuthOptions auth;
  ASSERT_TRUE(support::ApplyPersonality(GetParam(), &uploads, &auth).ok());
  if (auth.kind != support::AuthOptions::Kind::kNone) {
    auth.username = "user";
    auth.password = "secret";
  }
  const std::string bytes = RandomBytes(kBlobBytes, 5);
  struct Cut {
    const char* method;
    int skip;
  };
  for (const Cut cut : {Cut{"", 0}, Cut{"POST", 0}, Cut{"PATCH", 0}, Cut{"PATCH", 4}, Cut{"PUT", 0}}) {
    support::TestRegistry registry;
    registry.SetUploads(uploads);
    registry.SetAuth(auth);
    if (cut.method[0] != '\0') {
      support::RequestMatcher matcher;
      matcher.method = cut.method;
      matcher.path_contains = "/blobs/uploads/";
      matcher.skip = cut.skip;
      matcher.count = 1;
      support::FaultAction action;
      action.cut_request_at = 300'000;
      if (cut.method == std::string("POST")) action.drop = true;
      registry.AddFault(matcher, action);
    }
    HttpPlacer http("");
    const auto blob = std::make_shared<TestBlob>(bytes);
    for (const char* name : {"team/app", "team/cache"}) {
      const auto result = http.Place(blob, Repository(registry.host(), name));
      ASSERT_TRUE(result.ok()) << cut.method << cut.skip << " " << result.status();
      // A store that is shared has it in all repositories, though it came by one.
      EXPECT_TRUE(uploads.shared_store || registry.Blob(name, blob->digest()) == bytes);
    }
    // What was cut may come twice; the second repository is mounted where the registry can.
    const bool mounts = uploads.mounts != support::UploadOptions::Mounts::kNever;
    const uint64_t received = registry.ReceivedBytes({.path_contains = "/blobs/uploads/"});
    EXPECT_LE(received, (mounts ? 1 : 2) * kBlobBytes + kBlobBytes) << cut.method << cut.skip;
    if (cut.method[0] == '\0' && mounts && auth.kind == support::AuthOptions::Kind::kNone &&
        uploads.refuse_chunks == 0 && !uploads.drops_later_chunks) {
      EXPECT_EQ(received, kBlobBytes);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, PersonalityTest,
                         testing::Values("distribution", "distribution-2.8", "zot", "ecr", "gar", "nexus",
                                         "no-mount", "anonymous-mount", "shared-store", "no-chunks",
                                         "drops-chunks", "loser-400", "first-scope", "short-tokens"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase_if(name, [](char c) { return !absl::ascii_isalnum(c); });
                           return name;
                         });

TEST(DockerRegistry, BlobsArriveInChunksAndAreMountedIntoTheNextRepository) {
  if (!registry::RealRegistry::Installed("docker-registry")) {
    GTEST_SKIP() << "NOT TESTED: needs docker-registry";
  }
  registry::RealRegistry registry;
  ASSERT_TRUE(registry.Start()) << registry.Log();
  HttpPlacer http("");
  const std::string bytes = RandomBytes(kBlobBytes, 7);
  const auto blob = std::make_shared<TestBlob>(bytes);
  const oci::Reference app = Repository(registry.host(), "team/app");
  const oci::Reference cache = Repository(registry.host(), "team/cache");
  const auto uploaded = http.Place(blob, app);
  ASSERT_TRUE(uploaded.ok()) << uploaded.status() << registry.Log();
  EXPECT_EQ(*uploaded, PlacementState::kUploaded);
  const auto mounted = http.Place(blob, cache);
  ASSERT_TRUE(mounted.ok()) << mounted.status() << registry.Log();
  EXPECT_EQ(*mounted, PlacementState::kMounted);
  EXPECT_GE(registry.Logged({"PATCH /v2/team/app/blobs/uploads/"}), 10U);
  EXPECT_EQ(registry.Logged({"PATCH /v2/team/cache/"}), 0U);
  for (const oci::Reference& repository : {app, cache}) {
    const auto read = http.client->GetSmallBlob(repository, *blob->descriptor(), kBlobBytes, {});
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(*read == bytes);
  }
  HttpPlacer other("");
  const auto found = other.Place(blob, app);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(*found, PlacementState::kExists);
}

constexpr char kHostVariable[] = "LAZYBLOB_TEST_UPLOAD_HOST";
constexpr char kJournalVariable[] = "LAZYBLOB_TEST_UPLOAD_JOURNAL";

// Run by the test below, in a process of its own that kills itself at 60 %.
TEST(Crash, DISABLED_Uploader) {
  int chunks = 0;
  const base::ScopedFault fault("exporter.chunk", [&] {
    if (++chunks == 6) ::raise(SIGKILL);
    return absl::OkStatus();
  });
  HttpPlacer http(std::getenv(kJournalVariable));
  const auto blob = std::make_shared<TestBlob>(RandomBytes(kBlobBytes, 6));
  http.Place(blob, Repository(std::getenv(kHostVariable), "team/app")).IgnoreError();
  FAIL() << "survived";
}

class CrashTest : public testing::TestWithParam<const char*> {};

TEST_P(CrashTest, E7_AfterKillNineAtMostOneChunkIsSentAgain) {
  support::UploadOptions uploads;
  support::AuthOptions auth;
  ASSERT_TRUE(support::ApplyPersonality(GetParam(), &uploads, &auth).ok());
  support::TestRegistry registry;
  registry.SetUploads(uploads);
  const support::TempDir directory;
  ::setenv(kHostVariable, registry.host().c_str(), 1);
  ::setenv(kJournalVariable, directory.File("sessions").c_str(), 1);
  const int status = std::system(
      absl::StrCat("exec ", std::filesystem::read_symlink("/proc/self/exe").string(),
                   " --gtest_also_run_disabled_tests --gtest_filter=Crash.DISABLED_Uploader >/dev/null 2>&1")
          .c_str());
  ASSERT_TRUE(WIFSIGNALED(status)) << status;
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
  EXPECT_EQ(registry.upload_sessions(), 1U);
  HttpPlacer http(directory.File("sessions"));
  const auto blob = std::make_shared<TestBlob>(RandomBytes(kBlobBytes, 6));
  const auto result = http.Place(blob, Repository(registry.host(), "team/app"));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(registry.Blob("team/app", blob->digest()) == RandomBytes(kBlobBytes, 6));
  EXPECT_LE(registry.ReceivedBytes({.path_contains = "/blobs/uploads/"}), kBlobBytes + (1 << 20));
}

INSTANTIATE_TEST_SUITE_P(All, CrashTest, testing::Values("distribution", "zot"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace lazyblob::exporter
