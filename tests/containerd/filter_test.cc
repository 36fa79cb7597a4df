#include "containerd/filter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace lazyblob::containerd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Info {
  std::string name;
  std::string parent;
  std::string kind;
  std::map<std::string, std::string> labels;
};

bool Matches(const Filter& filter, const Info& info) {
  return filter.Matches(
      [&](absl::string_view name, const std::string& rest) -> std::optional<absl::string_view> {
        if (name == "labels") return LabelOf(info.labels, rest);
        if (name == "name") return info.name;
        if (name == "parent") return info.parent;
        if (name == "kind") return info.kind;
        return std::nullopt;
      });
}

std::vector<Info> Corpus() {
  return {
      {"bare", "", "active", {}},
      {"foo", "", "committed", {{"foo", "true"}}},
      {"k8s.io/12/sha256:ab",
       "foo",
       "committed",
       {{"containerd.io/snapshot.ref", "sha256:ab"}, {"foo", "omg_asdf.asdf-qwer"}}},
      {"view", "foo", "view", {{"a b", "x, y"}, {"empty", ""}}},
      {"quote", "k8s.io/12/sha256:ab", "active", {{"back\\slash \"q\".post", "\xE7\x89\x9B"}}},
  };
}

// Names of the corpus that the filters match, or the error.
std::vector<std::string> Matches(const std::vector<std::string>& filters) {
  absl::StatusOr<Filter> filter = ParseFilters(filters);
  if (!filter.ok()) return {std::string(filter.status().message())};
  std::vector<std::string> names;
  for (const Info& info : Corpus()) {
    if (Matches(*filter, info)) names.push_back(info.name);
  }
  return names;
}

std::string ErrorOf(const std::string& filter) {
  absl::StatusOr<Filter> parsed = ParseFilters({filter});
  if (parsed.ok()) return "parsed";
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << filter;
  return std::string(parsed.status().message());
}

constexpr size_t kAll = 5;

TEST(FilterTest, NoFilterOrAnEmptyOneMatchesEverything) {
  EXPECT_EQ(Matches({}).size(), kAll);
  EXPECT_EQ(Matches({""}).size(), kAll);
  EXPECT_EQ(Matches({"name==foo", ""}).size(), kAll);
}

TEST(FilterTest, PresenceIsAlwaysForFieldsAndExactForLabels) {
  EXPECT_EQ(Matches({"name"}).size(), kAll);
  EXPECT_EQ(Matches({"parent"}).size(), kAll);
  EXPECT_EQ(Matches({"kind"}).size(), kAll);
  EXPECT_THAT(Matches({"labels.foo"}), ElementsAre("foo", "k8s.io/12/sha256:ab"));
  EXPECT_THAT(Matches({"labels.empty"}), ElementsAre("view"));
  EXPECT_THAT(Matches({"labels.empty==\"\""}), ElementsAre("view"));
  EXPECT_THAT(Matches({"labels"}), IsEmpty());
  EXPECT_THAT(Matches({"unknown"}), IsEmpty());
}

TEST(FilterTest, EqualityWantsTheFieldAndInequalityDoesNot) {
  EXPECT_THAT(Matches({"name==foo"}), ElementsAre("foo"));
  EXPECT_THAT(Matches({"kind==view"}), ElementsAre("view"));
  EXPECT_THAT(Matches({"kind==Active"}), IsEmpty());
  EXPECT_THAT(Matches({"kind==active"}), ElementsAre("bare", "quote"));
  EXPECT_THAT(Matches({"parent!=\"\""}), ElementsAre("k8s.io/12/sha256:ab", "view", "quote"));
  EXPECT_THAT(Matches({"labels.foo!=true"}), ElementsAre("bare", "k8s.io/12/sha256:ab", "view", "quote"));
  EXPECT_THAT(Matches({"labels.none==\"\""}), IsEmpty());
  EXPECT_EQ(Matches({"unknown!=x"}).size(), kAll);
}

TEST(FilterTest, ConditionsOfAFilterAreAndedFiltersAreOred) {
  EXPECT_THAT(Matches({"kind==committed,parent==foo"}), ElementsAre("k8s.io/12/sha256:ab"));
  EXPECT_THAT(Matches({"name==foo", "name==view"}), ElementsAre("foo", "view"));
  EXPECT_THAT(Matches({"name==foo,name==view"}), IsEmpty());
}

TEST(FilterTest, FindsALazilyCommittedSnapshotAsContainerdAsks) {
  EXPECT_THAT(Matches({"labels.\"containerd.io/snapshot.ref\"==sha256:ab,parent==\"foo\""}),
              ElementsAre("k8s.io/12/sha256:ab"));
  EXPECT_THAT(Matches({"parent==k8s.io/12/sha256:ab"}), ElementsAre("quote"));
}

TEST(FilterTest, QuotedFieldsAndValuesTakeGoEscapes) {
  EXPECT_THAT(Matches({"labels.\"a b\"==\"x, y\""}), ElementsAre("view"));
  EXPECT_THAT(Matches({"labels.\"back\\\\slash \\\"q\\\"\".post"}), ElementsAre("quote"));
  EXPECT_THAT(Matches({"\"name\"==\"\\x66\\157\\u006f\""}), ElementsAre("foo"));
  EXPECT_THAT(Matches({"labels.\"back\\\\slash \\\"q\\\".post\"==\"\\u725b\""}), ElementsAre("quote"));
  EXPECT_THAT(Matches({"labels.\"back\\\\slash \\\"q\\\".post\"==\"\\U0000725b\""}), ElementsAre("quote"));
  EXPECT_THAT(Matches({"labels.\"back\\\\slash \\\"q\\\".post\"==\xE7\x89\x9B"}), ElementsAre("quote"));
}

TEST(FilterTest, ExpressionsMatchAnywhereAndTakeThreeQuotes) {
  EXPECT_THAT(Matches({"name~=o+$"}), ElementsAre("foo"));
  EXPECT_THAT(Matches({"name~=/^(foo|view)$/"}), ElementsAre("foo", "view"));
  EXPECT_THAT(Matches({"name~=|k8s.io/\\\\d+/|"}), ElementsAre("k8s.io/12/sha256:ab"));
  EXPECT_THAT(Matches({"name~=/k8s\\\\.io\\/12/"}), ElementsAre("k8s.io/12/sha256:ab"));
  EXPECT_THAT(Matches({"name~=\"[a-z]{4,5}$\",kind!=active"}), ElementsAre("view"));
  EXPECT_THAT(Matches({"labels.foo~=^$,kind==view"}), ElementsAre("view")) << "absent counts as empty";
}

TEST(FilterTest, SpacesMayStandBeforeFieldsOperatorsAndValues) {
  EXPECT_THAT(Matches({"  name == foo,\t kind == committed"}), ElementsAre("foo"));
  EXPECT_THAT(Matches({"labels. foo==true"}), ElementsAre("foo"));
  EXPECT_THAT(ErrorOf("name==foo "), HasSubstr("[name==foo >| |< ]: unexpected input"));
  EXPECT_THAT(ErrorOf("name==foo bar"), HasSubstr("unexpected input"));
}

TEST(FilterTest, ValuesMayHoldOperatorsAndPunctuation) {
  EXPECT_THAT(Matches({"labels.foo==omg_asdf.asdf-qwer"}), ElementsAre("k8s.io/12/sha256:ab"));
  EXPECT_THAT(Matches({"name!=a=b~c!"}), testing::SizeIs(kAll));
}

TEST(FilterTest, ErrorsQuoteThePlace) {
  EXPECT_EQ(
      ErrorOf("labels.|foo|==omg"),
      "filter: parse error: [labels. >|||< foo|==omg]: invalid quote encountered; quote fields with \"");
  EXPECT_EQ(ErrorOf("labels.?x==y"), "filter: parse error: [labels. >|?|< x==y]: expected field or quoted");
  EXPECT_EQ(ErrorOf("name==foo,"), "filter: parse error: [name==foo,]: expected field or quoted");
  EXPECT_EQ(ErrorOf("labels."), "filter: parse error: [labels.]: expected field or quoted");
  EXPECT_EQ(ErrorOf("image~=,id?=?fbaq"),
            "filter: parse error: [image~= >|,|< id?=?fbaq]: expected value or quoted");
  EXPECT_EQ(
      ErrorOf("labels.ns/key==value"),
      "filter: parse error: [labels.ns >|/|< key==value]: expected an operator; quote keys that hold a /: "
      "labels.\"a/b\"");
  EXPECT_EQ(ErrorOf("labels.key==/value"),
            "filter: parse error: [labels.key== >|/|< value]: quoted literal not terminated");
  EXPECT_THAT(ErrorOf("labels.key==/value/"), HasSubstr("invalid quote encountered"));
  EXPECT_THAT(ErrorOf("name=foo"), HasSubstr("unsupported operator \"=\""));
  EXPECT_THAT(ErrorOf("name===foo"), HasSubstr("unsupported operator \"===\""));
  EXPECT_THAT(ErrorOf("name=="), HasSubstr("expected value or quoted"));
  EXPECT_THAT(ErrorOf("name==.x"), HasSubstr("expected value or quoted"));
  EXPECT_THAT(ErrorOf("name foo"), HasSubstr("expected an operator"));
  EXPECT_THAT(ErrorOf(","), HasSubstr("expected field or quoted"));
  EXPECT_THAT(ErrorOf("name,,kind"), HasSubstr("expected field or quoted"));
}

TEST(FilterTest, BadEscapesAreErrors) {
  EXPECT_THAT(ErrorOf(R"(labels."\g")"), HasSubstr("illegal escape sequence"));
  EXPECT_THAT(ErrorOf(R"(labels."\xaz")"), HasSubstr("illegal numeric escape sequence"));
  EXPECT_THAT(ErrorOf(R"(labels."\777")"), HasSubstr("beyond 255"));
  EXPECT_THAT(ErrorOf(R"(labels."\U00110000")"), HasSubstr("beyond U+10FFFF"));
  EXPECT_THAT(ErrorOf(R"(labels."\)"), HasSubstr("not terminated"));
  EXPECT_THAT(ErrorOf("labels.\"a\nb\""), HasSubstr("not terminated"));
  EXPECT_THAT(ErrorOf(R"(labels."\/")"), HasSubstr("illegal escape sequence"));
}

TEST(FilterTest, BytesThatAreNoTextAreErrors) {
  EXPECT_THAT(ErrorOf(std::string("foo\0bar", 7)), HasSubstr("unexpected null"));
  EXPECT_THAT(ErrorOf("name==\xff"), HasSubstr("not UTF-8"));
  EXPECT_THAT(ErrorOf("name==\xed\xa0\x80"), HasSubstr("not UTF-8"));
  EXPECT_THAT(ErrorOf("name==\xc0\xaf"), HasSubstr("not UTF-8"));
  EXPECT_THAT(ErrorOf("name==\xe7\x89"), HasSubstr("not UTF-8"));
}

TEST(FilterTest, WhatAnErrorQuotesIsPrintableAndShort) {
  std::string error = ErrorOf(absl::StrCat(std::string(5000, 'a'), "\x1b[31m?", std::string(5000, 'b')));
  EXPECT_LT(error.size(), 400u);
  EXPECT_EQ(error.find('\x1b'), std::string::npos);
}

TEST(FilterTest, ExpressionsAreCheckedAndBounded) {
  EXPECT_THAT(ErrorOf("name~=(["), HasSubstr("not an expression"));
  EXPECT_THAT(ErrorOf("name~=/(x{1000}){1000}/"), HasSubstr("not an expression"));
  EXPECT_THAT(ErrorOf(absl::StrCat("name~=", std::string(30000, '('))), HasSubstr("not an expression"));
  std::vector<std::string> many(kMaxExpressions, "name~=x");
  EXPECT_TRUE(ParseFilters(many).ok());
  many.push_back("name~=x");
  EXPECT_THAT(Matches(many), ElementsAre(HasSubstr("more than 64 expressions")));
}

TEST(FilterTest, LongFiltersAndManyFiltersAreErrors) {
  EXPECT_EQ(Matches({absl::StrCat("name==", std::string(kMaxFilterBytes - 6, 'x'))}).size(), 0u);
  EXPECT_THAT(ErrorOf(absl::StrCat("name==", std::string(kMaxFilterBytes - 5, 'x'))), HasSubstr("more than"));
  EXPECT_TRUE(ParseFilters(std::vector<std::string>(kMaxFilters, "name")).ok());
  EXPECT_FALSE(ParseFilters(std::vector<std::string>(kMaxFilters + 1, "name")).ok());
}

}  // namespace
}  // namespace lazyblob::containerd
