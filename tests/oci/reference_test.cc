#include "oci/reference.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace lazyblob::oci {
namespace {

constexpr char kDigest[] = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

std::string Canonical(absl::string_view text) {
  absl::StatusOr<Reference> reference = ParseReference(text);
  return reference.ok() ? reference->ToString() : reference.status().ToString();
}

TEST(ReferenceTest, DockersDefaults) {
  EXPECT_EQ(Canonical("debian"), "docker.io/library/debian:latest");
  EXPECT_EQ(Canonical("debian:12"), "docker.io/library/debian:12");
  EXPECT_EQ(Canonical("user/app"), "docker.io/user/app:latest");
  EXPECT_EQ(Canonical("docker.io/debian"), "docker.io/library/debian:latest");
  EXPECT_EQ(Canonical("index.docker.io/debian"), "docker.io/library/debian:latest");
  EXPECT_EQ(Canonical("docker.io/a/b"), "docker.io/a/b:latest");
}

TEST(ReferenceTest, Hosts) {
  EXPECT_EQ(Canonical("localhost/a"), "localhost/a:latest");
  EXPECT_EQ(Canonical("localhost:5000/a:b"), "localhost:5000/a:b");
  EXPECT_EQ(Canonical("127.0.0.1:5000/a/b/c"), "127.0.0.1:5000/a/b/c:latest");
  EXPECT_EQ(Canonical("[::1]:5000/a"), "[::1]:5000/a:latest");
  EXPECT_EQ(Canonical("[fe80::1]/a"), "[fe80::1]/a:latest");
  EXPECT_EQ(Canonical("reg.example/a"), "reg.example/a:latest");
  EXPECT_EQ(Canonical("Reg/a"), "Reg/a:latest");
  // Without a dot, a colon or an upper-case letter the first component is part of the name.
  EXPECT_EQ(Canonical("reg/a"), "docker.io/reg/a:latest");
}

TEST(ReferenceTest, TagsAndDigests) {
  EXPECT_EQ(Canonical(absl::StrCat("h:1/a@", kDigest)), absl::StrCat("h:1/a@", kDigest));
  EXPECT_EQ(Canonical(absl::StrCat("h:1/a:t@", kDigest)), absl::StrCat("h:1/a:t@", kDigest));
  EXPECT_EQ(Canonical("a:_x.Y-z"), "docker.io/library/a:_x.Y-z");
  absl::StatusOr<Reference> reference = ParseReference(absl::StrCat("h:1/a@", kDigest));
  ASSERT_TRUE(reference.ok());
  EXPECT_FALSE(reference->tag.has_value());
  EXPECT_EQ(reference->Name(), "h:1/a");
}

TEST(ReferenceTest, ComponentSeparators) {
  for (const char* good : {"a.b", "a_b", "a__b", "a-b", "a---b", "a.b_c__d-e"}) {
    EXPECT_TRUE(ParseReference(good).ok()) << good;
  }
  for (const char* bad : {"a..b", "a___b", "a._b", "-a", "a-", ".a", "a.", "_a", "a//b", "a/", "/a"}) {
    EXPECT_FALSE(ParseReference(bad).ok()) << bad;
  }
}

TEST(ReferenceTest, RefusesAndNamesTheText) {
  for (const std::string& bad : std::vector<std::string>{"",
                                                         " ",
                                                         "a b",
                                                         "A",
                                                         "h:1/A",
                                                         "a:",
                                                         "a:-x",
                                                         "a:" + std::string(129, 'x'),
                                                         "a@",
                                                         "a@sha256:12",
                                                         "a@md5:12",
                                                         "http://h/a",
                                                         "h:0/a",
                                                         "h:65536/a",
                                                         "h:x/a",
                                                         "h:/a",
                                                         "-h.x/a",
                                                         "h..x/a",
                                                         "[::1/a",
                                                         "[]/a",
                                                         "[zz]/a",
                                                         "h:1/",
                                                         std::string(256, 'a'),
                                                         std::string(2000, 'a'),
                                                         std::string(64, 'a'),
                                                         std::string("a\0b", 3),
                                                         "a\nb",
                                                         "\xff",
                                                         "a:b:c"}) {
    absl::Status status = ParseReference(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos) << status;
    EXPECT_LT(status.message().size(), 1000u);
  }
  EXPECT_NE(ParseReference("h:1/Upper").status().message().find("h:1/Upper"), absl::string_view::npos);
}

TEST(ReferenceTest, CanonicalTextParsesToItself) {
  for (const char* text : {"debian", "h:1/a:t", "[::1]:5000/a/b"}) {
    std::string once = Canonical(text);
    EXPECT_EQ(Canonical(once), once);
  }
}

TEST(ImageReferenceTest, Layouts) {
  absl::StatusOr<ImageReference> reference = ParseImageReference("oci:/dir/x:tag");
  ASSERT_TRUE(reference.ok()) << reference.status();
  const auto& layout = std::get<LayoutReference>(*reference);
  EXPECT_EQ(layout.directory, "/dir/x");
  EXPECT_EQ(layout.tag, "tag");
  EXPECT_EQ(ToString(*reference), "oci:/dir/x:tag");
  reference = ParseImageReference("oci:relative");
  ASSERT_TRUE(reference.ok());
  EXPECT_EQ(std::get<LayoutReference>(*reference).tag, std::nullopt);
  EXPECT_EQ(ToString(*reference), "oci:relative");
  // Whole references are legal names in layouts.
  reference = ParseImageReference("oci:dir:docker.io/library/a:1");
  ASSERT_TRUE(reference.ok());
  EXPECT_EQ(std::get<LayoutReference>(*reference).tag, "docker.io/library/a:1");
}

TEST(ImageReferenceTest, RegistriesAndErrors) {
  absl::StatusOr<ImageReference> reference = ParseImageReference("h:1/a");
  ASSERT_TRUE(reference.ok());
  EXPECT_EQ(ToString(*reference), "h:1/a:latest");
  for (const char* bad : {"oci:", "oci::tag", "oci:dir:", "oci:dir:-x", "oci:dir:a b"}) {
    EXPECT_EQ(ParseImageReference(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

// A name that fits only without Docker Hub's library/ once was accepted, and then not read back.
TEST(ReferenceTest, TheLengthOfAnOfficialNameCountsItsLibrary) {
  EXPECT_TRUE(ParseReference(std::string(247, 'a')).ok());
  EXPECT_FALSE(ParseReference(std::string(248, 'a')).ok());
}

// A host that left no room for the default tag was accepted, and then not read back.
TEST(ReferenceTest, AHostIsAtMostADnsNameAndAPort) {
  EXPECT_TRUE(ParseReference("a." + std::string(253, 'a') + ":65535/b").ok());
  EXPECT_FALSE(ParseReference("a." + std::string(254, 'a') + ":65535/b").ok());
}

}  // namespace
}  // namespace lazyblob::oci
