// Who fails when, and what becomes of the other one: every policy, judged by what registries hold afterwards.

#include <gmock/gmock.h>

#include <tuple>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "tests/exporter/wire_fixture.h"

namespace lazyblob::exporter {
namespace {

using support::Gate;
using support::TestRegistry;
using ::testing::HasSubstr;
using ::testing::SizeIs;

enum class Who : uint8_t { kImage, kCache, kUser };
enum class When : uint8_t { kBefore, kDuring, kAfter };  // the first blob

// The request that waits at `gate` and is then answered with `status`; 0: as ever, or, where a session nobody
// hears of would come of it, not at all.
void AddFault(TestRegistry* registry, When when, std::shared_ptr<Gate> gate, int status) {
  support::RequestMatcher matcher{.path_contains = "/blobs/uploads/"};
  support::FaultAction action{.gate = std::move(gate), .status = status};
  switch (when) {
    case When::kBefore:
      matcher.method = "POST";
      action.drop = status == 0;
      break;
    case When::kDuring:  // a chunk of the layer is there
      matcher.method = "PATCH";
      matcher.skip = 1;
      break;
    case When::kAfter:  // of layer and config one is there
      matcher.method = "PUT";
      matcher.skip = 1;
      break;
  }
  registry->AddFault(matcher, action);
}

std::string Requests(const TestRegistry& registry) {
  std::string text;
  for (const support::LoggedRequest& request : registry.Log()) {
    absl::StrAppend(&text, request.method, " ", request.path, " ", request.status, "\n");
  }
  return text;
}

class PolicyTest : public WireFixture, public ::testing::WithParamInterface<std::tuple<Who, When, int>> {
 protected:
  Who who() const { return std::get<0>(GetParam()); }
  When when() const { return std::get<1>(GetParam()); }
  v1::OnFailure policy() const { return static_cast<v1::OnFailure>(std::get<2>(GetParam())); }

  // Brings what is to happen about while the other one is in the middle of its layer.
  void FailOne(Gate* failing, Gate* held) {
    const bool cache = who() == Who::kCache;
    ASSERT_TRUE(failing->AwaitWaiting(1));
    ASSERT_TRUE(held->AwaitWaiting(1));
    if (when() == When::kAfter) {
      ASSERT_TRUE(events_.Await(State("pushed", cache)));
    }
    failing->Open();
    if (policy() == v1::FAIL_FAST) return;  // the other one ends without being let go
    ASSERT_TRUE(events_.Await(State("failed", cache)));
    held->Open();
  }
  void Interrupt(Gate* image, Gate* cache) {
    ASSERT_TRUE(image->AwaitWaiting(1));
    ASSERT_TRUE(cache->AwaitWaiting(1));
    if (when() == When::kAfter) {
      ASSERT_TRUE(events_.Await(State("pushed", false)) && events_.Await(State("pushed", true)));
    }
    cancel_->Cancel();
  }
};

TEST_P(PolicyTest, L15_L16_E6) {
  v1::ExportRequest request = ImageAndCache();
  request.set_on_failure(policy());
  auto of_image = std::make_shared<Gate>();
  auto of_cache = std::make_shared<Gate>();
  const When in_the_middle = When::kDuring;
  AddFault(image_.get(), who() == Who::kCache ? in_the_middle : when(), of_image,
           who() == Who::kImage ? 403 : 0);
  AddFault(cache_.get(), who() == Who::kImage ? in_the_middle : when(), of_cache,
           who() == Who::kCache ? 403 : 0);
  std::future<absl::Status> running = Start(request);
  {
    absl::Cleanup let_go = [&] {
      if (HasFatalFailure()) cancel_->Cancel();
    };
    switch (who()) {
      case Who::kImage:
        FailOne(of_image.get(), of_cache.get());
        break;
      case Who::kCache:
        FailOne(of_cache.get(), of_image.get());
        break;
      case Who::kUser:
        Interrupt(of_image.get(), of_cache.get());
        break;
    }
  }
  const absl::Status status = running.get();
  of_image->Open();
  of_cache->Open();
  placer_.reset();  // waits for what it ends
  EXPECT_EQ(image_->upload_sessions(), 0u) << Requests(*image_);
  EXPECT_EQ(cache_->upload_sessions(), 0u) << Requests(*cache_);

  const bool image = who() == Who::kCache && policy() != v1::FAIL_FAST;
  const bool cache = who() == Who::kImage && policy() != v1::FAIL_FAST;
  if (who() == Who::kUser) {
    EXPECT_TRUE(absl::IsCancelled(status)) << status;
  } else if (image && policy() == v1::INDEPENDENT) {
    EXPECT_TRUE(status.ok()) << status;
  } else {
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(who() == Who::kImage ? "/app" : "/cache"));
  }
  const v1::Report report = Report();
  EXPECT_THAT(report.images(), SizeIs(image ? 1 : 0));
  EXPECT_THAT(report.caches(), SizeIs(cache ? 1 : 0));
  EXPECT_EQ(report.image_error().empty(), image) << report.image_error();
  EXPECT_EQ(report.cache_error().empty(), cache) << report.cache_error();
  EXPECT_THAT(report.warnings(), SizeIs(status.ok() ? 1 : 0));
  EXPECT_EQ(image_->Manifest("app", "1").has_value(), image);
  EXPECT_EQ(cache_->Manifest("cache", "1").has_value(), cache);
  EXPECT_EQ(events_.Count([](const v1::ExportEvent& event) { return event.has_image_ready(); }),
            image ? 1u : 0u);
  EXPECT_EQ(events_.Count([](const v1::ExportEvent& event) { return event.has_cache_ready(); }),
            cache ? 1u : 0u);
  ExpectOneEndEach();
}

std::string NameOf(const ::testing::TestParamInfo<PolicyTest::ParamType>& info) {
  static const char* const kWho[] = {"ImageFails", "CacheFails", "UserCancels"};
  static const char* const kWhen[] = {"Before", "During", "After"};
  static const char* const kPolicy[] = {"", "Independent", "CacheRequired", "FailFast"};
  return std::string(kWho[static_cast<size_t>(std::get<0>(info.param))]) +
         kWhen[static_cast<size_t>(std::get<1>(info.param))] + kPolicy[std::get<2>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(All, PolicyTest,
                         ::testing::Combine(::testing::Values(Who::kImage, Who::kCache, Who::kUser),
                                            ::testing::Values(When::kBefore, When::kDuring, When::kAfter),
                                            ::testing::Values<int>(v1::INDEPENDENT, v1::CACHE_REQUIRED,
                                                                   v1::FAIL_FAST)),
                         NameOf);

class DeathTest : public WireFixture {};

TEST_F(DeathTest, E6_ACacheHostThatDiesHalfwayDoesNotEndTheImage) {
  auto of_image = std::make_shared<Gate>();
  auto of_cache = std::make_shared<Gate>();
  AddFault(image_.get(), When::kDuring, of_image, 0);
  AddFault(cache_.get(), When::kDuring, of_cache, 0);
  const std::string host = cache_->host();
  std::future<absl::Status> running = Start(ImageAndCache());
  EXPECT_TRUE(of_image->AwaitWaiting(1) && of_cache->AwaitWaiting(1));
  cache_.reset();
  EXPECT_TRUE(events_.Await(State("failed", true)));
  of_image->Open();
  const absl::Status status = running.get();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(Report().cache_error(), HasSubstr(host));
  EXPECT_TRUE(image_->Manifest("app", "1").has_value());
  EXPECT_EQ(image_->upload_sessions(), 0u);
}

TEST_F(DeathTest, E6_OneAfterTheOtherThePoliciesAreTheSame) {
  for (const v1::OnFailure policy : {v1::INDEPENDENT, v1::CACHE_REQUIRED, v1::FAIL_FAST}) {
    v1::ExportRequest request = ImageAndCache();
    request.set_parallel(v1::OFF);
    request.set_on_failure(policy);
    cache_->ClearFaults();
    cache_->AddFault({.method = "PUT", .path_contains = "/manifests/"}, {.status = 403});
    Events events;
    EXPECT_EQ(Run(request, &events).ok(), policy == v1::INDEPENDENT);
    EXPECT_TRUE(image_->Manifest("app", "1").has_value());
    // An image that fails first: only fail-fast lets the cache be.
    image_->AddFault({.method = "PUT", .path_contains = "/manifests/", .count = 1}, {.status = 403});
    cache_->ClearFaults();
    EXPECT_TRUE(absl::IsPermissionDenied(Run(request, &events)));
    EXPECT_EQ(events.all().back().done().caches_size(), policy == v1::FAIL_FAST ? 0 : 1);
  }
}

}  // namespace
}  // namespace lazyblob::exporter
