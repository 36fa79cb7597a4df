#include "registry/internal/headers.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace lazyblob::registry::internal {
namespace {

TEST(Challenges, BearerWithQuotedParameters) {
  auto challenges = ParseChallenges(
      "Bearer realm=\"https://auth.example/token\",service=\"registry.example\","
      "scope=\"repository:a/b:pull,push\"");
  ASSERT_EQ(challenges.size(), 1u);
  EXPECT_EQ(challenges[0].scheme, "bearer");
  EXPECT_EQ(challenges[0].Get("realm"), "https://auth.example/token");
  EXPECT_EQ(challenges[0].Get("service"), "registry.example");
  EXPECT_EQ(challenges[0].Get("scope"), "repository:a/b:pull,push");
  EXPECT_EQ(challenges[0].Get("error"), "");
}

TEST(Challenges, SeveralInOneHeader) {
  auto challenges = ParseChallenges("Basic realm=\"simple\", BEARER Realm = \"x\" , Service=y,, Negotiate");
  ASSERT_EQ(challenges.size(), 3u);
  EXPECT_EQ(challenges[0].scheme, "basic");
  EXPECT_EQ(challenges[0].Get("realm"), "simple");
  EXPECT_EQ(challenges[1].Get("realm"), "x");
  EXPECT_EQ(challenges[1].Get("service"), "y");
  EXPECT_EQ(challenges[2].scheme, "negotiate");
}

TEST(Challenges, OpaqueWordsAreSteppedOver) {
  auto challenges = ParseChallenges("NTLM TlRMTVNTUAAB==, Bearer realm=\"r\"");
  ASSERT_EQ(challenges.size(), 2u);
  EXPECT_EQ(challenges[0].scheme, "ntlm");
  EXPECT_TRUE(challenges[0].parameters.empty());
  EXPECT_EQ(challenges[1].Get("realm"), "r");
}

TEST(Challenges, QuotedStringsKeepCommasAndEscapes) {
  auto challenges = ParseChallenges(R"(Bearer realm="a, Basic realm=\"b\"",scope="c\\d")");
  ASSERT_EQ(challenges.size(), 1u);
  EXPECT_EQ(challenges[0].Get("realm"), "a, Basic realm=\"b\"");
  EXPECT_EQ(challenges[0].Get("scope"), "c\\d");
}

TEST(Challenges, TheFirstOfTwoSameParametersCounts) {
  auto challenges = ParseChallenges("Bearer realm=first,realm=second");
  ASSERT_EQ(challenges.size(), 1u);
  EXPECT_EQ(challenges[0].Get("realm"), "first");
}

TEST(Challenges, MalformedInputEndsTheList) {
  EXPECT_TRUE(ParseChallenges("").empty());
  EXPECT_TRUE(ParseChallenges(", ,").empty());
  EXPECT_TRUE(ParseChallenges("=\"x\"").empty());
  // An unterminated string never becomes a value.
  auto challenges = ParseChallenges("Bearer realm=\"open");
  for (const auto& challenge : challenges) EXPECT_EQ(challenge.Get("realm"), "");
}

TEST(Challenges, AreBounded) {
  std::string many;
  for (int i = 0; i < 100; ++i) absl::StrAppend(&many, "S", i, " a=b,");
  EXPECT_EQ(ParseChallenges(many).size(), 16u);
  std::string wide = "Bearer ";
  for (int i = 0; i < 100; ++i) absl::StrAppend(&wide, "p", i, "=v,");
  ASSERT_EQ(ParseChallenges(wide).size(), 1u);
  EXPECT_EQ(ParseChallenges(wide)[0].parameters.size(), 32u);
}

TEST(ContentRange, Reads) {
  auto range = ParseContentRange("bytes 10-19/100");
  ASSERT_TRUE(range.ok()) << range.status();
  EXPECT_EQ(range->first, 10u);
  EXPECT_EQ(range->last, 19u);
  EXPECT_EQ(range->total, std::optional<uint64_t>(100));
  range = ParseContentRange("Bytes 0-0/*");
  ASSERT_TRUE(range.ok()) << range.status();
  EXPECT_EQ(range->total, std::nullopt);
  EXPECT_TRUE(ParseContentRange("bytes 0-18446744073709551614/18446744073709551615").ok());
}

TEST(ContentRange, Refuses) {
  for (const char* bad :
       {"", "bytes", "bytes 1-2", "items 0-1/2", "bytes */10", "bytes 5-4/10", "bytes 0-10/10", "bytes -1/10",
        "bytes 0-1/", "bytes 0-1/2x", "bytes 0x0-1/2", "bytes +0-1/2", "bytes 0-1-2/3",
        "bytes 0-18446744073709551616/*", "bytes 0 -1/2", "multipart/byteranges"}) {
    EXPECT_EQ(ParseContentRange(bad).status().code(), absl::StatusCode::kDataLoss) << bad;
  }
}

TEST(Decimal, OnlyDigitsThatFit) {
  EXPECT_EQ(ParseDecimal("0"), std::optional<uint64_t>(0));
  EXPECT_EQ(ParseDecimal("18446744073709551615"), std::optional<uint64_t>(UINT64_MAX));
  for (const char* bad :
       {"", " 1", "1 ", "-1", "+1", "18446744073709551616", "000000000000000000001", "1e3", "0x1"}) {
    EXPECT_EQ(ParseDecimal(bad), std::nullopt) << bad;
  }
}

TEST(RetryAfter, SecondsAndDates) {
  absl::Time now;
  std::string error;
  ASSERT_TRUE(absl::ParseTime(absl::RFC3339_full, "2024-01-02T03:04:05Z", &now, &error));
  EXPECT_EQ(ParseRetryAfter("120", now), std::optional<absl::Duration>(absl::Seconds(120)));
  EXPECT_EQ(ParseRetryAfter("Tue, 02 Jan 2024 03:05:05 GMT", now),
            std::optional<absl::Duration>(absl::Minutes(1)));
  EXPECT_EQ(ParseRetryAfter("Mon, 01 Jan 2024 00:00:00 GMT", now),
            std::optional<absl::Duration>(absl::ZeroDuration()));
  EXPECT_EQ(ParseRetryAfter("99999999999999999", now),
            std::optional<absl::Duration>(absl::Seconds(1'000'000'000)));
  EXPECT_EQ(ParseRetryAfter("-5", now), std::nullopt);
  EXPECT_EQ(ParseRetryAfter("soon", now), std::nullopt);
  EXPECT_EQ(ParseRetryAfter("", now), std::nullopt);
}

TEST(Link, FindsNext) {
  EXPECT_EQ(NextLink("</v2/a/referrers/x?n=1>; rel=\"next\""), "/v2/a/referrers/x?n=1");
  EXPECT_EQ(NextLink("</first>; rel=first, </second> ; title=x; REL=Next"), "/second");
  EXPECT_EQ(NextLink("</first>; rel=prev"), "");
  EXPECT_EQ(NextLink("</open"), "");
  EXPECT_EQ(NextLink(""), "");
}

}  // namespace
}  // namespace lazyblob::registry::internal
