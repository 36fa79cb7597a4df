#include "layer/internal/tar_header.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/support/tar_maker.h"

namespace lazyblob::layer::internal {
namespace {

absl::Span<const uint8_t> Bytes(absl::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

std::optional<int64_t> Number(absl::string_view text) { return ParseTarNumber(Bytes(text)); }

constexpr int64_t kMin = std::numeric_limits<int64_t>::min(), kMax = std::numeric_limits<int64_t>::max();

TEST(TarNumber, Octal) {
  EXPECT_EQ(Number("0000644"), 0644);
  EXPECT_EQ(Number(absl::string_view("0000644\0", 8)), 0644);
  EXPECT_EQ(Number(absl::string_view("  644 \0 ", 8)), 0644);
  EXPECT_EQ(Number(absl::string_view("\0\0 7", 4)), 7);
  EXPECT_EQ(Number(""), 0);
  EXPECT_EQ(Number("        "), 0);
  EXPECT_EQ(Number("777777777777"), 0777777777777);
  EXPECT_EQ(Number("777777777777777777777"), kMax);
  EXPECT_EQ(Number("1000000000000000000000"), std::nullopt);
  EXPECT_EQ(Number("0008"), std::nullopt);
  EXPECT_EQ(Number("-1"), std::nullopt);
  EXPECT_EQ(Number("12 34"), std::nullopt);
}

TEST(TarNumber, Base256) {
  EXPECT_EQ(Number(absl::string_view("\x80\0\0\0\0\0\0\x01", 8)), 1);
  EXPECT_EQ(Number(absl::string_view("\x80\0\0\0\xff\xff\xff\xff", 8)), 0xffffffff);
  EXPECT_EQ(Number(std::string(8, '\xff')), -1);
  EXPECT_EQ(Number(std::string(12, '\xff')), -1);
  EXPECT_EQ(Number(absl::string_view("\xff\xff\xff\xff\xff\xff\xff\x00", 8)), -256);
  EXPECT_EQ(Number(absl::string_view("\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", 12)), kMax);
  EXPECT_EQ(Number(absl::string_view("\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", 12)), kMin);
  EXPECT_EQ(Number(absl::string_view("\x80\0\0\0\x80\0\0\0\0\0\0\0", 12)), std::nullopt);
  EXPECT_EQ(Number(absl::string_view("\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", 12)), std::nullopt);
  EXPECT_EQ(Number(absl::string_view("\x80\x01\0\0\0\0\0\0\0\0\0\0", 12)), std::nullopt);
}

TEST(TarHeader, ChecksumsMayBeSigned) {
  support::TarMember member = support::File("n\xc3\xa4me", "");
  member.dialect = support::TarDialect::kUstar;
  std::string block = support::TarHeader(member, 0);
  ASSERT_TRUE(ParseTarHeader(Bytes(block)).ok());
  int sum = 0;
  for (size_t i = 0; i < block.size(); ++i) sum += i >= 148 && i < 156 ? ' ' : static_cast<int8_t>(block[i]);
  snprintf(block.data() + 148, 7, "%06o", static_cast<unsigned>(sum));
  EXPECT_EQ(ParseTarHeader(Bytes(block))->name, "n\xc3\xa4me");
  block[150] = static_cast<char>(block[150] ^ 1);
  EXPECT_FALSE(ParseTarHeader(Bytes(block)).ok());
  EXPECT_FALSE(ParseTarHeader(Bytes(block.substr(1))).ok());
}

TEST(TarHeader, EveryFlippedBitBreaksTheChecksum) {
  const std::string block = support::TarHeader(support::File("name", ""), 1234);
  for (size_t bit = 0; bit < block.size() * 8; ++bit) {
    std::string flipped = block;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    const auto header = ParseTarHeader(Bytes(flipped));
    // But for those that the checksum field ends with: its value is the same.
    EXPECT_TRUE(!header.ok() || (bit / 8 >= 148 && bit / 8 < 156)) << bit;
  }
}

TEST(Pax, Records) {
  const auto records = ParsePax("20 path=a long name\n11 x=a=b=c\n\n9 path=b\n");
  EXPECT_FALSE(records.ok());
  const auto good = ParsePax("20 path=a long name\n11 x=a=b=\n\n9 path=b\n");
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(good->Find("path"), "b");
  EXPECT_EQ(good->Find("x"), "a=b=\n");
  EXPECT_EQ(good->Find("y"), "");
  EXPECT_TRUE(ParsePax("")->values.empty());
  const auto with_nul = ParsePax(std::string("8 x=\0\0\0\n", 8));
  ASSERT_TRUE(with_nul.ok()) << with_nul.status();
  EXPECT_EQ(with_nul->Find("x"), absl::string_view("\0\0\0", 3));
}

TEST(Pax, Malformed) {
  for (const std::string& text :
       {std::string("5 a=b"), std::string("6 a=b"), std::string("a=b\n"), std::string(" 6 a=b\n"),
        std::string("7 a=b\n"), std::string("5 a=b\n"), std::string("3 \n"), std::string("4 a\n"),
        std::string("5 =b\n"), std::string("0 a=b\n"), std::string("-6 a=b\n"),
        std::string("99999999999999999999 a=b\n"), std::string("+6 a=b\n"), std::string("11 path=a\0b\n", 12),
        std::string("7 a\0=b\n", 7)}) {
    EXPECT_FALSE(ParsePax(text).ok()) << text;
  }
}

TEST(Pax, SparseNumbersMustAlternate) {
  EXPECT_EQ(ParsePax("23 GNU.sparse.offset=0\n25 GNU.sparse.numbytes=9\n")->sparse_numbers.size(), 2u);
  EXPECT_FALSE(ParsePax("25 GNU.sparse.numbytes=9\n").ok());
  EXPECT_FALSE(ParsePax("23 GNU.sparse.offset=0\n23 GNU.sparse.offset=1\n").ok());
}

TEST(Pax, Times) {
  const auto time = [](absl::string_view text) -> std::pair<int64_t, int64_t> {
    const auto parsed = ParsePaxTime(text);
    return parsed ? std::pair<int64_t, int64_t>(parsed->seconds, parsed->nanoseconds)
                  : std::pair<int64_t, int64_t>(-99, -99);
  };
  using Pair = std::pair<int64_t, int64_t>;
  EXPECT_EQ(time("1350244992"), Pair(1350244992, 0));
  EXPECT_EQ(time("1350244992.02"), Pair(1350244992, 20000000));
  EXPECT_EQ(time("1.0000000019"), Pair(1, 1));
  EXPECT_EQ(time("1."), Pair(1, 0));
  EXPECT_EQ(time("-0.5"), Pair(-1, 500000000));
  EXPECT_EQ(time("-1.000000001"), Pair(-2, 999999999));
  EXPECT_EQ(time("-1.0000000001"), Pair(-1, 0));
  for (const char* bad : {"", ".5", "abc", "1.a", "1.-5", "- 1", "99999999999999999999", "1e3", "0x10"}) {
    EXPECT_EQ(time(bad), Pair(-99, -99)) << bad;
  }
  EXPECT_EQ(time("-9223372036854775808"), Pair(kMin, 0));
  EXPECT_EQ(time("-9223372036854775808.5"), Pair(-99, -99));
}

TEST(Pax, TimesAreBound) {
  const auto bound = [](int64_t seconds, uint32_t nanoseconds) {
    const PaxTime time = BoundTime({seconds, nanoseconds});
    return std::pair<int64_t, uint32_t>(time.seconds, time.nanoseconds);
  };
  using Pair = std::pair<int64_t, uint32_t>;
  EXPECT_EQ(bound(0, 0), Pair(0, 0));
  EXPECT_EQ(bound(0, 1), Pair(0, 1));
  EXPECT_EQ(bound(-1, 999999999), Pair(0, 0));
  EXPECT_EQ(bound(9223372036, 854775807), Pair(9223372036, 854775807));
  EXPECT_EQ(bound(9223372036, 854775808), Pair(0, 0));
  EXPECT_EQ(bound(kMax, 0), Pair(0, 0));
}

}  // namespace
}  // namespace lazyblob::layer::internal
