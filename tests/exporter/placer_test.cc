#include "exporter/placer.h"

#include <gmock/gmock.h>

#include "contentstore/content_store.h"
#include "exporter/staged_blob.h"
#include "tests/exporter/layer_reading.h"
#include "tests/exporter/placer_fixture.h"
#include "tests/support/temp_dir.h"

namespace lazyblob::exporter {
namespace {

using support::Gate;
using support::RandomBytes;
using testing::HasSubstr;

class PlacerTest : public PlacerFixture {};

#define EXPECT_PLACED(result, state)                           \
  do {                                                         \
    const auto& placed_result = (result);                      \
    ASSERT_TRUE(placed_result.ok()) << placed_result.status(); \
    EXPECT_EQ(*placed_result, (state));                        \
  } while (false)

TEST_F(PlacerTest, B8_WhatExistsIsNeitherReadNorSent) {
  const auto blob = NewBlob(50'000);
  registries.Put(app, RandomBytes(50'000, 1));
  EXPECT_PLACED(placer().Place(Request(blob, app)), PlacementState::kExists);
  EXPECT_EQ(blob->reads, 0);
  EXPECT_EQ(registries.steps().size(), 1U);
  // Known now: not even asked for.
  EXPECT_PLACED(placer().Place(Request(blob, app)), PlacementState::kExists);
  EXPECT_EQ(registries.steps().size(), 1U);
}

TEST_F(PlacerTest, B8_APushOnTheSameRegistryMountsAndReadsNothing) {
  const auto blob = NewBlob(50'000);
  const oci::Reference base = Repository(app.host, "library/base");
  registries.Put(base, RandomBytes(50'000, 1));
  blob->known_in = {base};
  EXPECT_PLACED(placer().Place(Request(blob, app)), PlacementState::kMounted);
  EXPECT_EQ(blob->reads, 0);
  EXPECT_EQ(registries.body_bytes(), 0U);
  EXPECT_EQ(registries.steps().size(), 2U);
  EXPECT_TRUE(registries.Has(app, blob->digest()));
}

TEST_F(PlacerTest, B15_AnotherPortIsAnotherHost) {
  const auto blob = NewBlob(5'000);
  const oci::Reference other = Repository("registry:5002", "team/app");
  registries.Put(other, RandomBytes(5'000, 1));
  blob->known_in = {other};
  EXPECT_PLACED(placer().Place(Request(blob, app)), PlacementState::kUploaded);
  for (const FakeStep& step : registries.steps()) {
    EXPECT_EQ(step.host, app.host);
    EXPECT_TRUE(step.operation != "mount" || step.detail.empty());
  }
}

TEST_F(PlacerTest, CandidatesComeInOrderOfCommonPathAndFailuresAreLearned) {
  const auto blob = NewBlob(5'000);
  blob->known_in = {Repository(app.host, "other/thing"), Repository(app.host, "team/gone"),
                    Repository(app.host, "team/app/base")};
  registries.Put(Repository(app.host, "other/thing"), RandomBytes(5'000, 1));
  EXPECT_PLACED(placer().Place(Request(blob, app)), PlacementState::kMounted);
  std::vector<std::string> from;
  for (const FakeStep& step : registries.steps()) {
    if (step.operation == "mount") from.push_back(step.detail);
  }
  EXPECT_EQ(from, (std::vector<std::string>{"team/app/base", "team/gone", "other/thing"}));
  EXPECT_EQ(registries.open_sessions(), 0U);
  // Next time, what worked is first.
  const auto second = NewBlob(5'000, 2);
  second->known_in = blob->known_in;
  registries.Put(Repository(app.host, "other/thing"), RandomBytes(5'000, 2));
  EXPECT_PLACED(placer().Place(Request(second, app)), PlacementState::kMounted);
  EXPECT_EQ(registries.steps().back().detail, "other/thing");
}

TEST_F(PlacerTest, L7_OfSiblingsOnAHostOneUploadsAndTheOthersMount) {
  const auto blob = NewBlob(50'000);
  blob->gate = &gate;
  auto first = Async(Request(blob, app));
  ASSERT_TRUE(gate.AwaitWaiting(1));
  auto second = Async(Request(blob, cache, Priority::kCache));
  ASSERT_TRUE(registries.AwaitCount("head", 2));
  gate.Open();
  EXPECT_PLACED(first.get(), PlacementState::kUploaded);
  EXPECT_PLACED(second.get(), PlacementState::kMounted);
  EXPECT_EQ(blob->reads, 1);
  EXPECT_EQ(registries.body_bytes(), 50'000U);
  EXPECT_EQ(registries.Uploads(app.host, blob->digest()), 1U);
}

TEST_F(PlacerTest, L7_ASiblingTakesOverWhenTheOneWhoUploadsFails) {
  const auto blob = NewBlob(50'000);
  blob->gate = &gate;
  PlaceRequest request = Request(blob, app);
  auto first = Async(request);
  ASSERT_TRUE(gate.AwaitWaiting(1));
  auto second = Async(Request(blob, cache));
  ASSERT_TRUE(registries.AwaitCount("head", 2));
  request.cancel->Cancel();
  EXPECT_TRUE(absl::IsCancelled(first.get().status()));
  gate.Open();
  EXPECT_PLACED(second.get(), PlacementState::kUploaded);
  EXPECT_FALSE(registries.Has(app, blob->digest()));
}

TEST_F(PlacerTest, WhereAHostCannotMountSiblingsUploadThemselves) {
  registries.hosts[app.host].mounts = false;
  const auto blob = NewBlob(50'000);
  EXPECT_PLACED(placer().Place(Request(blob, app)), PlacementState::kUploaded);
  EXPECT_PLACED(placer().Place(Request(blob, cache)), PlacementState::kUploaded);
  EXPECT_EQ(registries.Uploads(app.host, blob->digest()), 2U);
  // Learned: the next pair does not wait for each other, and asks for no mount.
  const size_t mounts = registries.Count("mount");
  const auto next = NewBlob(50'000, 2);
  next->gate = &gate;
  auto one = Async(Request(next, app));
  auto other = Async(Request(next, cache));
  ASSERT_TRUE(registries.AwaitCount("head", 4));
  gate.Open();
  EXPECT_PLACED(one.get(), PlacementState::kUploaded);
  EXPECT_PLACED(other.get(), PlacementState::kUploaded);
  EXPECT_LE(registries.Count("mount"), mounts + 2);  // without a source repository
}

TEST_F(PlacerTest, OneRepositoryThatMayNotBeReadLeavesTheOtherCandidates) {
  const auto blob = NewBlob(5'000);
  EXPECT_PLACED(placer().Place(Request(blob, app)), PlacementState::kUploaded);  // there for certain
  registries.hosts[app.host].unreadable = {app.repository};
  const oci::Reference base = Repository(app.host, "elsewhere/base");
  registries.Put(base, RandomBytes(5'000, 1));
  blob->known_in = {base};
  EXPECT_PLACED(placer().Place(Request(blob, cache)), PlacementState::kMounted);
  EXPECT_EQ(registries.Uploads(app.host, blob->digest()), 1U);
}

TEST_F(PlacerTest, AnonymousMountsAreFoundOut) {
  registries.hosts[app.host].anonymous_mounts = true;
  registries.Put(Repository(app.host, "somebody/else"), RandomBytes(50'000, 1));
  const auto blob = NewBlob(50'000);
  EXPECT_PLACED(placer().Place(Request(blob, app)), PlacementState::kMounted);
  EXPECT_EQ(blob->reads, 0);
}

TEST_F(PlacerTest, B7_EqualPlacementsShareOneUploadAndLeaveOneByOne) {
  const auto blob = NewBlob(50'000);
  blob->gate = &gate;
  std::vector<PlaceRequest> requests;
  std::vector<std::future<absl::StatusOr<PlacementState>>> results;
  for (int i = 0; i < 8; ++i) {
    requests.push_back(Request(blob, app, Priority::kCache));
    results.push_back(AsyncJoined(requests.back()));
  }
  ASSERT_TRUE(gate.AwaitWaiting(1));
  for (int i = 0; i < 7; ++i) {  // the one that began it among them
    requests[i].cancel->Cancel();
    EXPECT_TRUE(absl::IsCancelled(results[i].get().status()));
  }
  gate.Open();
  EXPECT_PLACED(results[7].get(), PlacementState::kUploaded);
  EXPECT_EQ(blob->reads, 1);
  EXPECT_EQ(registries.Uploads(app.host, blob->digest()), 1U);
}

TEST_F(PlacerTest, L16_TheLastCancelEndsTheSession) {
  const auto blob = NewBlob(50'000);
  blob->gate = &gate;
  blob->gate_at = 20'000;
  const PlaceRequest request = Request(blob, app);
  auto result = Async(request);
  ASSERT_TRUE(gate.AwaitWaiting(1));
  ASSERT_TRUE(registries.AwaitCount("patch", 1));
  request.cancel->Cancel();
  EXPECT_TRUE(absl::IsCancelled(result.get().status()));
  gate.Open();
  Restart();  // waits for what is left
  EXPECT_EQ(registries.open_sessions(), 0U);
  EXPECT_FALSE(registries.Has(app, blob->digest()));
}

TEST_F(PlacerTest, L8_AnErrorWakesAllAndIsNotKept) {
  const auto blob = NewBlob(5'000);
  std::atomic<bool> fail = true;
  blob->check = [&](const contentstore::FetchContext&) -> absl::Status {
    gate.Pass();
    return fail ? absl::InternalError("the source is broken") : absl::OkStatus();
  };
  std::vector<std::future<absl::StatusOr<PlacementState>>> results;
  for (int i = 0; i < 16; ++i) results.push_back(AsyncJoined(Request(blob, app)));
  ASSERT_TRUE(gate.AwaitWaiting(1));
  gate.Open();
  for (auto& result : results) {
    const absl::Status status = result.get().status();
    EXPECT_TRUE(absl::IsInternal(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr(blob->digest().ToString()));
    EXPECT_THAT(status.message(), HasSubstr("registry:5001/team/app"));
  }
  fail = false;
  EXPECT_PLACED(placer().Place(Request(blob, app)), PlacementState::kUploaded);
}

TEST_F(PlacerTest, WrongBytesOfOneSourceLeadToTheNext) {
  for (const size_t size : {5'000U, 25'000U, 55'000U}) {
    const std::string right = RandomBytes(size, size);
    std::string wrong = right;
    wrong[size - 1] = static_cast<char>(wrong[size - 1] + 1);
    const auto blob = std::make_shared<TestBlob>(right);
    blob->source_bytes = {wrong, right.substr(0, size - 10), right};
    EXPECT_PLACED(placer().Place(Request(blob, app)), PlacementState::kUploaded);
    EXPECT_EQ(blob->reads, 3) << size;
    EXPECT_TRUE(registries.Has(app, blob->digest()));
  }
  EXPECT_EQ(registries.open_sessions(), 0U);
}

TEST_F(PlacerTest, WrongBytesOfAllSourcesCommitNothingAndAreListed) {
  for (const size_t size : {5'000U, 25'000U, 55'000U}) {
    const auto blob = NewBlob(size);
    blob->source_bytes = {RandomBytes(size, 77), RandomBytes(size, 78)};
    const auto result = placer().Place(Request(blob, app));
    EXPECT_TRUE(absl::IsDataLoss(result.status())) << result.status();
    EXPECT_THAT(result.status().message(), HasSubstr("source-0"));
    EXPECT_THAT(result.status().message(), HasSubstr("source-1"));
  }
  EXPECT_EQ(registries.Count("commit"), 0U);
  EXPECT_EQ(registries.open_sessions(), 0U);
}

TEST_F(PlacerTest, ProviderMissingKeepsItsType) {
  const auto blob = NewBlob(5'000);
  blob->failure = contentstore::ProviderMissingError({{blob->digest(), 5'000, "an export"}});
  const auto result = placer().Place(Request(blob, app));
  ASSERT_EQ(contentstore::GetMissingProviders(result.status()).size(), 1U) << result.status();
  EXPECT_EQ(contentstore::GetMissingProviders(result.status())[0].digest, blob->digest());
}

class NamedCredentials final : public registry::CredentialsProvider {
 public:
  explicit NamedCredentials(std::string name) : name_(std::move(name)) {}
  absl::StatusOr<std::optional<registry::Credentials>> Lookup(absl::string_view) const override {
    return std::optional(registry::Credentials{name_, "", "", ""});
  }

 private:
  const std::string name_;
};

TEST_F(PlacerTest, B11_CredentialsAreThoseOfWhoeverWaitsNow) {
  const auto blob = NewBlob(5'000);
  std::vector<std::string> seen;
  blob->check = [&](const contentstore::FetchContext& context) -> absl::Status {
    gate.Pass();
    seen.push_back((*context.credentials->Lookup("h").value()).username);
    if (seen.back() == "revoked") return absl::PermissionDeniedError("revoked");
    return absl::OkStatus();
  };
  std::vector<PlaceRequest> requests;
  std::vector<std::future<absl::StatusOr<PlacementState>>> results;
  for (const char* name : {"creator", "revoked", "good"}) {
    requests.push_back(Request(blob, app));
    requests.back().credentials = std::make_shared<NamedCredentials>(name);
    results.push_back(AsyncJoined(requests.back()));
    ASSERT_TRUE(gate.AwaitWaiting(1));
  }
  requests[0].cancel->Cancel();
  EXPECT_TRUE(absl::IsCancelled(results[0].get().status()));
  gate.Open();
  const auto second = results[1].get();
  EXPECT_PLACED(results[2].get(), PlacementState::kUploaded);
  EXPECT_EQ(std::count(seen.begin(), seen.end(), "creator"), 0);
}

TEST_F(PlacerTest, B11_WhoJoinsAPlacementThatIsBeingRefusedIsAskedToo) {
  std::atomic<bool> refuse = true;
  registries.before = [&](const FakeStep& step) -> absl::Status {
    // The session ends when all who wait have been asked.
    if (step.operation == "cancel") gate.Pass();
    return step.operation == "put" && refuse.exchange(false) ? FakeRegistries::Refused(403, "revoked")
                                                             : absl::OkStatus();
  };
  const auto blob = NewBlob(5'000);
  PlaceRequest first = Request(blob, app);
  first.credentials = std::make_shared<NamedCredentials>("revoked");
  PlaceRequest second = Request(blob, app);
  second.credentials = std::make_shared<NamedCredentials>("good");
  auto refused = AsyncJoined(first);
  ASSERT_TRUE(gate.AwaitWaiting(1));
  auto placed = AsyncJoined(second);
  gate.Open();
  EXPECT_TRUE(absl::IsPermissionDenied(refused.get().status()));
  EXPECT_PLACED(placed.get(), PlacementState::kUploaded);
}

TEST_F(PlacerTest, B12_EveryPlacementEndsInExactlyOneFinalState) {
  std::vector<PlacementProgress> seen;
  PlaceRequest request = Request(NewBlob(50'000), app);
  request.progress = [&](const PlacementProgress& progress) { seen.push_back(progress); };
  EXPECT_PLACED(placer().Place(request), PlacementState::kUploaded);
  ASSERT_FALSE(seen.empty());
  for (size_t i = 0; i + 1 < seen.size(); ++i) EXPECT_FALSE(IsFinal(seen[i].state));
  EXPECT_EQ(seen.back().state, PlacementState::kUploaded);
  EXPECT_EQ(seen.back().sent, 50'000U);
  EXPECT_EQ(seen.back().read, 50'000U);

  registries.hosts["denying"].denied = {"x"};
  std::vector<PlacementProgress> failed;
  const auto blob = NewBlob(5'000);
  PlaceRequest denied = Request(blob, Repository("denying", "x"));
  denied.progress = [&](const PlacementProgress& progress) { failed.push_back(progress); };
  registries.before = [](const FakeStep& step) {
    return step.operation == "mount" ? FakeRegistries::Refused(403, "denied") : absl::OkStatus();
  };
  EXPECT_TRUE(absl::IsPermissionDenied(placer().Place(denied).status()));
  EXPECT_EQ(failed.back().state, PlacementState::kFailed);
  EXPECT_EQ(blob->reads, 0);
}

TEST_F(PlacerTest, PlaceAgainUploadsWhatSeemedToBeThere) {
  const auto blob = NewBlob(5'000);
  registries.Put(app, RandomBytes(5'000, 1));
  EXPECT_PLACED(placer().Place(Request(blob, app)), PlacementState::kExists);
  EXPECT_PLACED(placer().PlaceAgain(Request(blob, app)), PlacementState::kUploaded);
  EXPECT_EQ(registries.Uploads(app.host, blob->digest()), 1U);
}

TEST_F(PlacerTest, DestinationsOnSeveralHostsEachGetTheirBytes) {
  const auto blob = NewBlob(100'000);
  blob->gate = &gate;
  auto one = Async(Request(blob, app));
  auto other = Async(Request(blob, Repository("elsewhere", "app")));
  ASSERT_TRUE(registries.AwaitCount("mount", 2));
  ASSERT_TRUE(gate.AwaitWaiting(1));
  gate.Open();
  EXPECT_PLACED(one.get(), PlacementState::kUploaded);
  EXPECT_PLACED(other.get(), PlacementState::kUploaded);
  EXPECT_EQ(registries.body_bytes(), 200'000U);
}

TEST_F(PlacerTest, MemoryStaysWithinItsBounds) {
  options.max_memory_bytes = 60'000;
  std::vector<std::future<absl::StatusOr<PlacementState>>> results;
  for (uint64_t i = 0; i < 12; ++i) {
    results.push_back(Async(Request(NewBlob(45'000 + i, i + 1), i % 2 == 0 ? app : cache,
                                    i % 3 == 0 ? Priority::kImage : Priority::kCache)));
  }
  for (auto& result : results) EXPECT_PLACED(result.get(), PlacementState::kUploaded);
  EXPECT_LE(placer().reads().peak_memory(), 60'000U);
  EXPECT_GT(placer().reads().peak_memory(), 0U);
}

// Blobs that are being made.
class GrowingTest : public PlacerTest {
 protected:
  GrowingTest() : writer(StagedBlobWriter::Create(directory.path()).value()) {
    blob = MakeStagedBlob(writer->blob(), [](const StagedBlob::Whole& whole) {
      oci::Descriptor descriptor;
      descriptor.media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
      descriptor.digest = whole.digest;
      descriptor.size = whole.size;
      return descriptor;
    });
  }
  void Append(absl::string_view part) { ASSERT_TRUE(writer->Append(AsBytes(part)).ok()); }
  void Finish() { ASSERT_TRUE(writer->Finish(base::Digest::Of(bytes), bytes.size()).ok()); }

  const support::TempDir directory;
  const std::unique_ptr<StagedBlobWriter> writer;
  std::shared_ptr<Blob> blob;
  const std::string bytes = RandomBytes(95'000, 9);
};

TEST_F(GrowingTest, P2_ABlobIsSentWhileItIsMade) {
  auto first = Async(Request(blob, app));
  auto second = Async(Request(blob, cache, Priority::kCache));
  Append(absl::string_view(bytes).substr(0, 60'000));
  ASSERT_TRUE(registries.AwaitCount("patch", 5));  // of a blob whose digest nobody knows yet
  Append(absl::string_view(bytes).substr(60'000));
  Finish();
  const auto one = first.get();
  const auto other = second.get();
  ASSERT_TRUE(one.ok() && other.ok()) << one.status() << other.status();
  EXPECT_NE(*one, *other);
  EXPECT_TRUE(*one == PlacementState::kMounted || *other == PlacementState::kMounted);
  EXPECT_EQ(registries.body_bytes(), bytes.size());
  EXPECT_TRUE(registries.Has(app, base::Digest::Of(bytes)));
  EXPECT_TRUE(registries.Has(cache, base::Digest::Of(bytes)));
}

TEST_F(GrowingTest, WhatTurnsOutToExistIsNotSentToItsEnd) {
  registries.Put(app, bytes);
  auto result = Async(Request(blob, app));
  Append(absl::string_view(bytes).substr(0, 25'000));
  ASSERT_TRUE(registries.AwaitCount("patch", 1));
  Append(absl::string_view(bytes).substr(25'000));
  Finish();
  EXPECT_PLACED(result.get(), PlacementState::kExists);
  EXPECT_LT(registries.body_bytes(), bytes.size());
  EXPECT_EQ(registries.open_sessions(), 0U);
}

TEST_F(GrowingTest, WithoutChunksTheEndIsWaitedFor) {
  registries.hosts[app.host].chunks = false;
  auto result = Async(Request(blob, app));
  Append(absl::string_view(bytes).substr(0, 60'000));
  ASSERT_TRUE(registries.AwaitCount("patch", 1));
  Append(absl::string_view(bytes).substr(60'000));
  Finish();
  EXPECT_PLACED(result.get(), PlacementState::kUploaded);
  EXPECT_EQ(registries.Count("put"), 1U);
  EXPECT_EQ(registries.Count("patch"), 1U);
}

TEST_F(GrowingTest, L8_WhatItsMakerFailedWithWakesAll) {
  auto one = Async(Request(blob, app));
  auto other = Async(Request(blob, cache));
  Append(absl::string_view(bytes).substr(0, 25'000));
  ASSERT_TRUE(registries.AwaitCount("patch", 1));
  writer->Fail(absl::ResourceExhaustedError("disk full"));
  EXPECT_TRUE(absl::IsResourceExhausted(one.get().status()));
  EXPECT_TRUE(absl::IsResourceExhausted(other.get().status()));
  Restart();
  EXPECT_EQ(registries.open_sessions(), 0U);
}

TEST_F(GrowingTest, ATailOfOneByteIsSentToo) {
  const std::string odd = bytes.substr(0, 50'001);
  auto result = Async(Request(blob, app));
  Append(odd);
  ASSERT_TRUE(writer->Finish(base::Digest::Of(odd), odd.size()).ok());
  EXPECT_PLACED(result.get(), PlacementState::kUploaded);
  EXPECT_TRUE(registries.Has(app, base::Digest::Of(odd)));
}

TEST_F(GrowingTest, SmallOnesGoInOnePut) {
  for (const size_t size : {0U, 1U, 2U, 9'999U, 10'001U, 20'001U}) {
    auto small = StagedBlobWriter::Create(directory.path()).value();
    const std::string part = bytes.substr(0, size);
    ASSERT_TRUE(small->Append(AsBytes(part)).ok());
    ASSERT_TRUE(small->Finish(base::Digest::Of(part), size).ok());
    const auto made = MakeStagedBlob(small->blob(), [](const StagedBlob::Whole& whole) {
      oci::Descriptor descriptor;
      descriptor.digest = whole.digest;
      descriptor.size = whole.size;
      return descriptor;
    });
    EXPECT_PLACED(placer().Place(Request(made, app)), PlacementState::kUploaded);
    EXPECT_TRUE(registries.Has(app, base::Digest::Of(part))) << size;
  }
  EXPECT_EQ(registries.Count("patch"), 0U);
}

}  // namespace
}  // namespace lazyblob::exporter
