// base/checked.h, base/json.h, base/status.h

#include <gtest/gtest.h>

#include <cerrno>

#include "base/checked.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/status.h"

namespace lazyblob::base {
namespace {

TEST(Checked, Arithmetic) {
  uint64_t out = 7;
  EXPECT_TRUE(CheckedAdd(UINT64_MAX - 1, 1, &out));
  EXPECT_EQ(out, UINT64_MAX);
  EXPECT_FALSE(CheckedAdd(UINT64_MAX, 1, &out));
  EXPECT_EQ(out, UINT64_MAX) << "left alone";
  EXPECT_TRUE(CheckedMul(1ull << 32, (1ull << 32) - 1, &out));
  EXPECT_FALSE(CheckedMul(1ull << 32, 1ull << 32, &out));
  EXPECT_TRUE(CheckedAlignUp(4097, 4096, &out));
  EXPECT_EQ(out, 8192u);
  EXPECT_TRUE(CheckedAlignUp(0, 4096, &out));
  EXPECT_EQ(out, 0u);
  EXPECT_FALSE(CheckedAlignUp(UINT64_MAX - 5, 4096, &out));
}

TEST(Checked, RangeWithin) {
  EXPECT_TRUE(RangeWithin(0, 10, 10));
  EXPECT_TRUE(RangeWithin(10, 0, 10));
  EXPECT_FALSE(RangeWithin(11, 0, 10));
  EXPECT_FALSE(RangeWithin(5, 6, 10));
  EXPECT_FALSE(RangeWithin(5, UINT64_MAX, 10));
  EXPECT_FALSE(RangeWithin(UINT64_MAX, UINT64_MAX, UINT64_MAX - 1));
}

TEST(Clock, MonotonicGoesOn) {
  absl::Duration first = SystemClock().Monotonic();
  EXPECT_GE(SystemClock().Monotonic(), first);
  EXPECT_LT(absl::AbsDuration(SystemClock().WallTime() - absl::Now()), absl::Minutes(1));
}

TEST(Json, ParsesOneValue) {
  auto value = ParseJson("{\"a\":[1,2,{\"b\":null}]}", 100);
  ASSERT_TRUE(value.ok()) << value.status();
  EXPECT_EQ((*value)["a"].size(), 3u);
}

TEST(Json, IsStrict) {
  for (const char* bad : {"", "{", "{}{}", "{} x", "{\"a\":1,\"a\":2}", "{\"x\":{\"a\":1,\"a\":2}}", "[1,]",
                          "{'a':1}", "NaN", "01", "\"\xff\"", "\"\\ud800\"", "// c\n1", "\xef\xbb\xbf{"}) {
    EXPECT_EQ(ParseJson(bad, 1000).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  // The same key in different objects is none twice.
  EXPECT_TRUE(ParseJson("{\"a\":{\"k\":1},\"b\":{\"k\":1},\"k\":1}", 1000).ok());
}

TEST(Json, IsBounded) {
  EXPECT_EQ(ParseJson("[1]", 2).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(ParseJson("[[[1]]]", 100, 3).ok());
  EXPECT_FALSE(ParseJson("[[[[1]]]]", 100, 3).ok());
  EXPECT_FALSE(ParseJson(std::string(1'000'000, '['), 2'000'000).ok());
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
  EXPECT_FALSE(ParseJson(deep, 2'000'000).ok());
  // Brackets in strings do not nest.
  EXPECT_TRUE(ParseJson("[\"[[[[[\\\"[[[[\"]", 100, 1).ok());
}

// A parser that looks through the list again at the end of each object is busy with this one for an hour.
TEST(Json, ManyObjectsInAListAreReadAtOnce) {
  std::string text = "[{}";
  while (text.size() < 4'000'000) text += ",{}";
  EXPECT_EQ(ParseJson(text + "]", 64 << 20)->size(), text.size() / 3);
  EXPECT_FALSE(ParseJson(text + ",{\"a\":1,\"a\":2}]", 64 << 20).ok());
}

TEST(Json, ValuesAreBounded) {
  std::string text = "[0";
  for (int i = 0; i < 99'999; ++i) text += ",0";
  EXPECT_TRUE(ParseJson(text + "]", 800'000).ok());
  EXPECT_EQ(ParseJson(text + ",0]", 800'000).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(ParseJson(text + ",0]", 1'600'000).ok());
  EXPECT_TRUE(ParseJson("\"" + std::string(700'000, ',') + "\"", 800'000).ok());
}

TEST(Json, TypedMembers) {
  auto value =
      ParseJson("{\"s\":\"x\",\"n\":5,\"neg\":-5,\"f\":1.5,\"big\":18446744073709551615,\"null\":null}", 200);
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(**JsonString(*value, "s"), "x");
  EXPECT_EQ(JsonString(*value, "absent")->has_value(), false);
  EXPECT_EQ(JsonString(*value, "null")->has_value(), false);
  EXPECT_FALSE(JsonString(*value, "n").ok());
  EXPECT_EQ(**JsonUint(*value, "n"), 5u);
  EXPECT_EQ(**JsonUint(*value, "big"), UINT64_MAX);
  for (const char* key : {"neg", "f", "s"}) EXPECT_FALSE(JsonUint(*value, key).ok()) << key;
  EXPECT_EQ(JsonUint(*ParseJson("[]", 10), "x")->has_value(), false);
}

TEST(StatusTest, ErrnoIsKept) {
  absl::Status status = Annotate(ErrnoStatus(ENOSPC, "write /x"), "layer");
  EXPECT_EQ(ErrnoOf(status), ENOSPC);
  EXPECT_EQ(status.message().substr(0, 15), "layer: write /x");
  EXPECT_EQ(ErrnoOf(absl::OkStatus()), 0);
  EXPECT_EQ(ErrnoOf(absl::NotFoundError("x")), ENOENT);
  EXPECT_EQ(ErrnoOf(absl::DataLossError("x")), EIO);
  EXPECT_EQ(ErrnoOf(absl::UnavailableError("x")), EIO);
  EXPECT_TRUE(Annotate(absl::OkStatus(), "x").ok());
}

TEST(StatusTest, Macros) {
  auto half = [](int value) -> absl::StatusOr<int> {
    if (value % 2 != 0) return absl::InvalidArgumentError("odd");
    return value / 2;
  };
  auto quarter = [&](int value) -> absl::StatusOr<int> {
    ASSIGN_OR_RETURN(int once, half(value));
    ASSIGN_OR_RETURN(once, half(once));
    return once;
  };
  EXPECT_EQ(*quarter(8), 2);
  EXPECT_EQ(quarter(6).status().message(), "odd");
  auto check = [&](int value) -> absl::Status {
    RETURN_IF_ERROR(half(value).status());
    return absl::OkStatus();
  };
  EXPECT_TRUE(check(2).ok());
  EXPECT_FALSE(check(3).ok());
}

TEST(Printable, OneSafeLine) {
  EXPECT_EQ(Printable("plain ~ text"), "plain ~ text");
  EXPECT_EQ(Printable("a\nb\t\x1b[31m\x7f\\"), "a\\x0ab\\x09\\x1b[31m\\x7f\\x5c");
  EXPECT_EQ(Printable("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\x8b"),
            "gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x90\x8b");
  EXPECT_EQ(Printable(absl::string_view("\0", 1)), "\\x00");
  // Overlong forms, surrogates, C1 controls, cut sequences, beyond Unicode.
  EXPECT_EQ(Printable("\xc0\xaf"), "\\xc0\\xaf");
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");
  EXPECT_EQ(Printable("\xc2\x9b"), "\\xc2\\x9b");
  EXPECT_EQ(Printable("\xe2\x82"), "\\xe2\\x82");
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
}

TEST(IsUtf8, ShortestFormsOfUnicodeOnly) {
  for (absl::string_view good :
       {absl::string_view(""), absl::string_view("a\0b\n\x7f", 5), absl::string_view("\xc2\x80\xc3\xbc"),
        absl::string_view("\xe2\x82\xac\xed\x9f\xbf"),
        absl::string_view("\xf0\x90\x80\x80\xf4\x8f\xbf\xbf")}) {
    EXPECT_TRUE(IsUtf8(good)) << Printable(good);
  }
  for (absl::string_view bad :
       {"\x80", "\xc3", "\xc0\xaf", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "a\xe2\x82",
        "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    EXPECT_FALSE(IsUtf8(bad)) << Printable(bad);
  }
}

}  // namespace
}  // namespace lazyblob::base
