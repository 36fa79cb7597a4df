#include "snapshotter/idmap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "snapshotter/labels.h"

namespace lazyblob::snapshotter {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Labels Both(std::string uids, std::string gids) {
  return {{kLabelUidMapping, std::move(uids)}, {kLabelGidMapping, std::move(gids)}};
}

// The uids that `value` means; gids are fine.
absl::StatusOr<std::string> Uids(std::string value) {
  absl::StatusOr<std::optional<fuse::IdMapping>> mapping =
      ParseIdMapping(Both(std::move(value), "0:1000:10"));
  if (!mapping.ok()) return mapping.status();
  if (!mapping->has_value()) return "none";
  return FormatIdRanges((*mapping)->uids);
}

TEST(IdMapTest, OneRangeAsContainerd17SendsIt) {
  auto mapping = ParseIdMapping(Both("0:100000:65536", "0:200000:65536"));
  ASSERT_TRUE(mapping.ok() && mapping->has_value());
  EXPECT_EQ((*mapping)->uids, (std::vector<fuse::IdRange>{{0, 100000, 65536}}));
  EXPECT_EQ((*mapping)->gids, (std::vector<fuse::IdRange>{{0, 200000, 65536}}));
}

TEST(IdMapTest, ListsAsContainerd2SendsThemAreSorted) {
  EXPECT_EQ(Uids("1000:3000:1,0:100000:1000").value(), "0:100000:1000,1000:3000:1");
}

TEST(IdMapTest, WithoutLabelsThereIsNone) {
  EXPECT_EQ(ParseIdMapping({}).value(), std::nullopt);
  EXPECT_EQ(ParseIdMapping(Both("", "")).value(), std::nullopt);
}

TEST(IdMapTest, AnImageAuthorMapsNothing) {
  Labels labels = Both("0:0:4294967295", "0:0:4294967295");
  labels[kLabelSnapshotRef] = "sha256:chain";
  EXPECT_EQ(ParseIdMapping(labels).value(), std::nullopt);
  labels[kLabelUidMapping] = "junk";
  EXPECT_EQ(ParseIdMapping(labels).value(), std::nullopt) << "nor fails a pull";
}

TEST(IdMapTest, OneWithoutTheOtherIsAnError) {
  absl::Status status = ParseIdMapping({{kLabelUidMapping, "0:1:1"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(kLabelUidMapping), HasSubstr(kLabelGidMapping)));
  EXPECT_EQ(ParseIdMapping({{kLabelGidMapping, "0:1:1"}}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(IdMapTest, MalformedValuesAreErrorsThatQuoteThem) {
  for (const char* bad :
       {"0", "0:1", "0:1:2:3", "a:b:c", "0:1:", ":1:2", "-0:1:2", "+0:1:2", " 0:1:2", "0:1:2 ", "0x0:1:2",
        "0:1:4294967296", "0:99999999999999999999:1", "0:1:2,", ",0:1:2", "0:1:2,,3:4:5"}) {
    absl::StatusOr<std::string> uids = Uids(bad);
    EXPECT_EQ(uids.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(uids.status().message()), HasSubstr(kLabelUidMapping));
  }
}

TEST(IdMapTest, RangesEndAtTheHighestId) {
  EXPECT_EQ(Uids("0:0:4294967295").value(), "0:0:4294967295");
  EXPECT_EQ(Uids("0:4294967294:1").value(), "0:4294967294:1");
  EXPECT_FALSE(Uids("0:1:4294967295").ok());
  EXPECT_FALSE(Uids("0:4294967295:1").ok());
  EXPECT_FALSE(Uids("0:0:1,4294967295:5:1").ok());
  EXPECT_FALSE(Uids("0:4294967294:4294967295").ok());
}

TEST(IdMapTest, EmptyRangesOverlapsAndAnUnmappedRootAreErrors) {
  EXPECT_FALSE(Uids("0:1:0").ok());
  EXPECT_FALSE(Uids("0:100:10,9:500:1").ok()) << "container ids overlap";
  EXPECT_FALSE(Uids("0:100:10,50:109:1").ok()) << "host ids overlap";
  EXPECT_FALSE(Uids("50:100:10,0:109:1").ok()) << "host ids overlap, in another order";
  EXPECT_EQ(Uids("0:100:10,10:110:1").value(), "0:100:10,10:110:1") << "adjacent is fine";
  EXPECT_FALSE(Uids("1:100:10").ok()) << "id 0 is unmapped";
}

TEST(IdMapTest, AtMost340Ranges) {
  std::vector<std::string> ranges;
  for (size_t i = 0; i < kMaxIdRanges; ++i) ranges.push_back(absl::StrCat(i, ":", 1000 + i, ":1"));
  EXPECT_TRUE(Uids(absl::StrJoin(ranges, ",")).ok());
  ranges.push_back("5000:5000:1");
  EXPECT_FALSE(Uids(absl::StrJoin(ranges, ",")).ok());
}

}  // namespace
}  // namespace lazyblob::snapshotter
