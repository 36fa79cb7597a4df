#include "exporter/spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "exporter/tree.h"

namespace lazyblob::exporter {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

v1::ExportRequest Spec(const char* json) {
  auto request = ParseSpec(json);
  EXPECT_TRUE(request.ok()) << request.status();
  return request.ok() ? *request : v1::ExportRequest();
}

// What is wrong with a spec that can be read.
std::string Refusal(const char* json) {
  auto checked = CheckRequest(Spec(json));
  EXPECT_EQ(checked.status().code(), absl::StatusCode::kInvalidArgument) << json;
  EXPECT_THAT(std::string(checked.status().message()), ::testing::Not(HasSubstr("\n")));
  return std::string(checked.status().message());
}

TEST(ParseDestinationTest, EveryKind) {
  for (const char* text : {"localhost:5000/a/b:tag", "oci:/dir:tag", "oci:/dir", "oci-archive:/a.tar:tag",
                           "oci-archive:/a.tar", "dir:/a:b"}) {
    auto destination = ParseDestination(text);
    ASSERT_TRUE(destination.ok()) << destination.status();
    EXPECT_EQ(ToString(*destination), text);
  }
  EXPECT_EQ(std::get<ArchiveDestination>(*ParseDestination("oci-archive:/a.tar:v1")).tag, "v1");
  for (const char* text : {"", "oci-archive:", "dir:", "oci:", "UPPER/Case", "a b"}) {
    EXPECT_EQ(ParseDestination(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(ParseSpecTest, RefusesUnknownAndDuplicateKeys) {
  auto unknown = ParseSpec(R"({"destinatons": ["a/b"]})");
  ASSERT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("destinatons"));
  EXPECT_FALSE(ParseSpec(R"({"images": [{"base": "a/b", "bass": "c"}]})").ok());
  EXPECT_FALSE(ParseSpec(R"({"id": "a", "id": "b"})").ok());
  EXPECT_FALSE(ParseSpec(R"({"compression": "LZMA"})").ok());
  EXPECT_FALSE(ParseSpec("[]").ok());
  EXPECT_FALSE(ParseSpec("").ok());
}

TEST(ParseSpecTest, WhatIsWrittenIsReadBack) {
  v1::ExportRequest request;
  request.add_images()->set_base("a/b");
  request.add_destinations("c/d");
  request.set_parallel(v1::OFF);
  auto read = ParseSpec(SpecToJson(request));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->SerializeAsString(), request.SerializeAsString());
}

TEST(CheckRequestTest, ACopyIsFine) {
  auto checked = CheckRequest(Spec(R"({"images": [{"base": "a/b", "allPlatforms": true}],
      "destinations": ["localhost:5000/c:1", "localhost:5000/c:2", "oci:/d:x"]})"));
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_EQ(checked->images.size(), 3u);
  EXPECT_THAT(checked->warnings, IsEmpty());
}

TEST(CheckRequestTest, ContradictionsAreNamed) {
  EXPECT_THAT(Refusal("{}"), HasSubstr("neither an image nor a cache"));
  EXPECT_THAT(Refusal(R"({"images": [{"base": "a/b"}]})"), HasSubstr("no destination"));
  EXPECT_THAT(Refusal(R"({"images": [{}], "destinations": ["a/b"]})"), HasSubstr("base"));
  EXPECT_THAT(Refusal(R"({"images": [{"base": "scratch"}], "destinations": ["a/b"]})"), HasSubstr("layer"));
  EXPECT_THAT(Refusal(R"({"images": [{"base": "a/b"}], "destinations": ["c/d", "docker.io/c/d:latest"]})"),
              HasSubstr("twice"));
  EXPECT_THAT(Refusal(R"({"images": [{"base": "a/b"}], "destinations": ["oci:rel"]})"),
              HasSubstr("absolute"));
  EXPECT_THAT(Refusal(R"({"images": [{"base": "a/b", "platform": "linux"}], "destinations": ["c/d"]})"),
              HasSubstr("linux"));
  EXPECT_THAT(Refusal(R"({"images": [{"base": "a/b", "allPlatforms": true, "layers": [{"source": "dir:/x"}]}],
      "destinations": ["c/d"]})"),
              HasSubstr("as they are"));
  EXPECT_THAT(Refusal(R"({"images": [{"base": "a/b", "layers": [{"source": "zip:/x"}]}],
      "destinations": ["c/d"]})"),
              HasSubstr("zip:/x"));
  EXPECT_THAT(Refusal(R"({"images": [{"base": "a/b"}, {"base": "a/c"}], "destinations": ["c/d"]})"),
              HasSubstr("platform"));
  EXPECT_THAT(Refusal(R"({"images": [{"base": "a/b", "platform": "linux/amd64"},
      {"base": "a/c", "platform": "linux/amd64"}], "destinations": ["c/d"]})"),
              HasSubstr("linux/amd64"));
}

TEST(CheckRequestTest, CachesAreChecked) {
  const std::string record = R"("records": [{"digest": "sha256:)" + std::string(64, 'a') + R"("}])";
  EXPECT_THAT(Refusal(R"({"cache": {"destinations": ["c/d"], "layers": [{"source": "dir:/x"}]}})"),
              HasSubstr("records"));
  EXPECT_THAT(Refusal(R"({"cache": {"destinations": ["c/d"], "layers": [{"source": "dir:/x",
      "records": [{"digest": "md5:1"}]}]}})"),
              HasSubstr("record"));
  EXPECT_THAT(Refusal(R"({"cache": {"format": "INLINE", "destinations": ["c/d"]}})"), HasSubstr("inline"));
  EXPECT_THAT(Refusal(R"({"cache": {"layers": []}})"), HasSubstr("destination"));
  EXPECT_THAT(Refusal(R"({"cache": {"destinations": ["dir:/x"]}})"), HasSubstr("dir:/x"));
  EXPECT_THAT(Refusal(R"({"cache": {"destinations": ["c/d"]}})"), HasSubstr("neither layers nor imports"));
  EXPECT_THAT(Refusal(R"({"cache": {"destinations": ["c/d"], "imports": ["a/b", "docker.io/a/b:latest"]}})"),
              HasSubstr("twice"));
  EXPECT_THAT(Refusal(R"({"cache": {"destinations": ["c/d"], "imports": ["oci:rel"]}})"),
              HasSubstr("absolute"));
  EXPECT_THAT(
      Refusal((R"({"cache": {"destinations": ["c/d"], "layers": [{"source": "dir:/x", "records": [{"digest":
      "sha256:)" +
               std::string(64, 'a') + R"(", "inputs": [{"links": [{"digest": "nobody"}]}]}]}]}})")
                  .c_str()),
      HasSubstr("nobody"));
  auto fine = CheckRequest(Spec(
      (R"({"cache": {"destinations": ["c/d"], "layers": [{"source": "dir:/x", )" + record + "}]}}").c_str()));
  EXPECT_TRUE(fine.ok()) << fine.status();
}

TEST(CheckRequestTest, CacheLayersLieOnWhatTheyName) {
  const std::string digest = "sha256:" + std::string(64, 'a');
  v1::Cache cache;
  for (const char* parent : {"", "", "-", "dir:/0"}) {
    v1::LayerSource* layer = cache.add_layers();
    layer->set_source("dir:/" + std::to_string(cache.layers_size() - 1));
    layer->set_parent(parent);
  }
  auto parents = CacheParents(cache);
  ASSERT_TRUE(parents.ok()) << parents.status();
  std::vector<int> places;
  for (const CacheParent& parent : *parents) places.push_back(parent.layer);
  EXPECT_THAT(places, ElementsAre(-1, 0, -1, 0));
  // Layer 3 alone has records: layers 1 and 2 are of no use.
  v1::ExportRequest request;
  *request.mutable_cache() = cache;
  request.mutable_cache()->add_destinations("c/d");
  request.mutable_cache()->mutable_layers(3)->add_records()->set_digest(digest);
  EXPECT_THAT(std::string(CheckRequest(request).status().message()), HasSubstr("dir:/2"));
  request.mutable_cache()->mutable_layers()->DeleteSubrange(1, 2);
  EXPECT_TRUE(CheckRequest(request).ok()) << CheckRequest(request).status();

  for (const char* parent : {"dir:/1", "dir:/nobody", digest.c_str()}) {
    cache.mutable_layers(0)->set_parent(parent);
    EXPECT_THAT(std::string(CacheParents(cache).status().message()), HasSubstr(parent));
  }
  cache.add_imports("a/b");
  parents = CacheParents(cache);
  ASSERT_TRUE(parents.ok()) << parents.status();
  EXPECT_EQ((*parents)[0].imported->ToString(), digest);
}

TEST(CheckRequestTest, WarnsOfOptionsWithoutEffect) {
  auto checked = CheckRequest(Spec(R"({"images": [{"base": "a/b"}], "destinations": ["c/d"], "parallel": "ON",
      "onFailure": "FAIL_FAST"})"));
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_THAT(checked->warnings, ElementsAre(HasSubstr("parallel has no effect"), HasSubstr("on-failure")));
  checked = CheckRequest(Spec(R"({"images": [{"base": "a/b"}], "destinations": ["c/d"], "parallel": "ON",
      "cache": {"format": "INLINE"}})"));
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_THAT(checked->warnings, ElementsAre(HasSubstr("neither layers nor imports"), HasSubstr("inline")));
  checked = CheckRequest(Spec(R"({"cache": {"format": "PLAIN", "max": true, "destinations": ["c/d"],
      "imports": ["a/b"]}})"));
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_THAT(checked->warnings, ElementsAre(HasSubstr("mode max has no effect")));
}

TEST(CheckRequestTest, WarnsOfWhatNothingIsMadeOf) {
  auto checked = CheckRequest(Spec(R"({"cache": {"format": "PLAIN", "destinations": ["c/d"],
      "imports": ["a/b"]}, "parallel": "ON", "onFailure": "CACHE_REQUIRED", "compression": "ZSTD"})"));
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_THAT(checked->warnings, ElementsAre(HasSubstr("parallel has no effect: there is no image"),
                                             HasSubstr("on-failure has no effect: there is no image"),
                                             HasSubstr("compression has no effect")));
  checked = CheckRequest(Spec(R"({"images": [{"base": "a/b", "layers": [{"source": "dir:/x"}]}],
      "destinations": ["c/d"], "cache": {"format": "INLINE", "imports": ["e/f"]}, "compressionLevel": 3,
      "onFailure": "FAIL_FAST"})"));
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_THAT(checked->warnings, ElementsAre(HasSubstr("on-failure has no effect: an inline cache")));
}

TEST(CheckRequestTest, ChoicesOfOtherVersionsAreRefused) {
  const v1::ExportRequest fine = Spec(R"({"images": [{"base": "a/b"}], "destinations": ["c/d"]})");
  auto refusal = [&](auto change) {
    v1::ExportRequest request = fine;
    change(request);
    return std::string(CheckRequest(request).status().message());
  };
  EXPECT_THAT(refusal([](auto& r) { r.set_on_failure(v1::OnFailure(77)); }), HasSubstr("on-failure: 77"));
  EXPECT_THAT(refusal([](auto& r) { r.set_parallel(v1::Parallel(77)); }), HasSubstr("parallel: 77"));
  EXPECT_THAT(refusal([](auto& r) { r.set_index(v1::IndexMode(77)); }), HasSubstr("index: 77"));
  EXPECT_THAT(refusal([](auto& r) { r.set_compression(v1::Compression(77)); }), HasSubstr("compression: 77"));
  EXPECT_THAT(refusal([](auto& r) { r.mutable_cache()->set_format(v1::CacheFormat(77)); }),
              HasSubstr("cache format: 77"));
}

TEST(CheckRequestTest, AnArchiveIsNoDescriptorOfTheDaemon) {
  for (const char* file : {"/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}) {
    v1::ExportRequest request = Spec(R"({"images": [{"base": "a/b"}]})");
    request.add_destinations(absl::StrCat("oci-archive:", file));
    EXPECT_THAT(std::string(CheckRequest(request).status().message()), HasSubstr("the daemon's own"));
  }
}

TEST(MakePathsAbsoluteTest, OnlyPathsChange) {
  v1::ExportRequest request = Spec(R"({"images": [{"base": "oci:b:t", "configFile": "c.json",
      "layers": [{"source": "dir:d:/opt"}, {"source": "tar:/e"}, {"source": "snapshot:k"}]}],
      "destinations": ["host/x", "dir:f", "oci-archive:g:h"], "access": {"dockerConfig": "i"}})");
  ASSERT_TRUE(MakePathsAbsolute("/w", &request).ok());
  EXPECT_EQ(request.images(0).base(), "oci:/w/b:t");
  EXPECT_EQ(request.images(0).config_file(), "/w/c.json");
  EXPECT_EQ(request.images(0).layers(0).source(), "dir:/w/d:/opt");
  EXPECT_EQ(request.images(0).layers(1).source(), "tar:/e");
  EXPECT_EQ(request.images(0).layers(2).source(), "snapshot:k");
  EXPECT_THAT(request.destinations(), ElementsAre("host/x", "dir:/w/f", "oci-archive:/w/g:h"));
  EXPECT_EQ(request.access().docker_config(), "/w/i");
  request = Spec(R"({"cache": {"imports": ["oci:a:t", "host/x"], "layers": [{"source": "dir:b"},
      {"source": "tar:c", "parent": "dir:b"}, {"source": "dir:d", "parent": "-"}]}})");
  ASSERT_TRUE(MakePathsAbsolute("/w", &request).ok());
  EXPECT_THAT(request.cache().imports(), ElementsAre("oci:/w/a:t", "host/x"));
  EXPECT_EQ(request.cache().layers(1).parent(), "dir:/w/b");
  EXPECT_EQ(request.cache().layers(2).parent(), "-");
}

TEST(MakePathsAbsoluteTest, AColonOfTheWorkingDirectoryBeginsNoTarget) {
  v1::ExportRequest request = Spec(R"({"images": [{"base": "scratch", "layers": [{"source": "dir:x"},
      {"source": "dir:x:/opt"}, {"source": "tar:y"}]}]})");
  ASSERT_TRUE(MakePathsAbsolute("/a:b", &request).ok());
  const auto path = [&](int i) {
    const auto source = ParseSource(request.images(0).layers(i).source());
    return source.ok() ? absl::StrCat(source->path, " at ", source->target) : source.status().ToString();
  };
  EXPECT_EQ(path(0), "/a:b/x at ");
  EXPECT_EQ(path(1), "/a:b/x at opt");
  EXPECT_EQ(path(2), "/a:b/y at ");
}

}  // namespace
}  // namespace lazyblob::exporter
