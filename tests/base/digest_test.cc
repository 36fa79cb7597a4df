#include "base/digest.h"

#include <gtest/gtest.h>

#include "absl/container/flat_hash_set.h"

namespace lazyblob::base {
namespace {

// FIPS 180-2: the digests of "" and "abc".
constexpr char kEmpty256[] = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
constexpr char kAbc256[] = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
constexpr char kAbc512[] =
    "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd"
    "454d4423643ce80e2a9ac94fa54ca49f";

TEST(DigestTest, KnownValues) {
  EXPECT_EQ(Digest::Of("").ToString(), kEmpty256);
  EXPECT_EQ(Digest::Of("abc").ToString(), kAbc256);
  Hasher hasher(DigestAlgorithm::kSha512);
  hasher.Update("a");
  hasher.Update("bc");
  EXPECT_EQ(hasher.Finish().ToString(), kAbc512);
}

TEST(DigestTest, ParsesWhatItPrints) {
  for (const char* text : {kEmpty256, kAbc256, kAbc512}) {
    absl::StatusOr<Digest> digest = Digest::Parse(text);
    ASSERT_TRUE(digest.ok()) << digest.status();
    EXPECT_EQ(digest->ToString(), text);
    EXPECT_EQ(digest->hex(), absl::string_view(text).substr(7));
    EXPECT_FALSE(digest->empty());
  }
  EXPECT_EQ(Digest::Parse(kAbc512)->bytes().size(), 64u);
  EXPECT_EQ(Digest::Parse(kAbc256)->bytes().size(), 32u);
}

TEST(DigestTest, RefusesOtherForms) {
  std::string upper = kAbc256;
  upper[10] = 'A';
  for (const std::string& bad :
       {std::string(), std::string("sha256:"), std::string("sha256"), upper, std::string(kAbc256) + "0",
        std::string(kAbc256).substr(0, 70), std::string("md5:d41d8cd98f00b204e9800998ecf8427e"),
        std::string("sha512:") + (kAbc256 + 7), std::string("SHA256:") + (kAbc256 + 7),
        " " + std::string(kAbc256), std::string(kAbc256).replace(20, 1, "/"),
        std::string(kAbc256).replace(20, 1, std::string(1, '\0'))}) {
    absl::Status status = Digest::Parse(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_LT(status.message().size(), 800u);
  }
}

TEST(DigestTest, OrderAndHash) {
  Digest a = *Digest::Parse(kEmpty256);
  Digest b = *Digest::Parse(kAbc256);
  EXPECT_NE(a, b);
  EXPECT_NE(a < b, b < a);
  EXPECT_FALSE(a < a);
  absl::flat_hash_set<Digest> set{a, b, a};
  EXPECT_EQ(set.size(), 2u);
  EXPECT_TRUE(Digest().empty());
  EXPECT_EQ(Digest::FromSha256(Sha256({})), a);
}

TEST(DigestTest, HashersMove) {
  Hasher first;
  first.Update("ab");
  Hasher second = std::move(first);
  second.Update("c");
  Hasher third;
  third = std::move(second);
  EXPECT_EQ(third.Finish().ToString(), kAbc256);
}

}  // namespace
}  // namespace lazyblob::base
