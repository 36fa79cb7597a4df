#include "daemon/living_requesters.h"

#include <gtest/gtest.h>

#include <utility>

namespace lazyblob::daemon {
namespace {

class Fixed final : public registry::CredentialsProvider {
 public:
  explicit Fixed(absl::StatusOr<std::optional<registry::Credentials>> answer) : answer_(std::move(answer)) {}
  absl::StatusOr<std::optional<registry::Credentials>> Lookup(absl::string_view) const override {
    return answer_;
  }

 private:
  absl::StatusOr<std::optional<registry::Credentials>> answer_;
};

std::shared_ptr<Fixed> User(const std::string& name) {
  registry::Credentials credentials;
  credentials.username = name;
  return std::make_shared<Fixed>(std::optional<registry::Credentials>(credentials));
}

std::string Ask(const LivingRequesters& requesters) {
  auto found = requesters.Lookup("registry.test");
  if (!found.ok()) return std::string(found.status().message());
  return found->has_value() ? (*found)->username : "anonymous";
}

TEST(LivingRequestersTest, NobodyIsAnonymous) { EXPECT_EQ(Ask(LivingRequesters()), "anonymous"); }

TEST(LivingRequestersTest, TakesTurnsAmongTheLiving) {
  LivingRequesters requesters;
  requesters.Add(User("a"));
  requesters.Add(User("b"));
  EXPECT_NE(Ask(requesters), Ask(requesters));
}

TEST(LivingRequestersTest, NeverAsksOneThatIsGone) {
  LivingRequesters requesters;
  uint64_t a = requesters.Add(User("a"));
  requesters.Add(User("b"));
  requesters.Remove(a);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Ask(requesters), "b");
}

TEST(LivingRequestersTest, AFailingProviderDoesNotHideAnother) {
  LivingRequesters requesters;
  requesters.Add(std::make_shared<Fixed>(absl::UnavailableError("helper failed")));
  requesters.Add(User("b"));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(Ask(requesters), "b");
}

TEST(LivingRequestersTest, AFailureIsToldWhenNobodyKnows) {
  LivingRequesters requesters;
  requesters.Add(std::make_shared<Fixed>(absl::UnavailableError("helper failed")));
  requesters.Add(std::make_shared<Fixed>(std::optional<registry::Credentials>()));
  EXPECT_EQ(Ask(requesters), "helper failed");
}

}  // namespace
}  // namespace lazyblob::daemon
